"""LetheViT: a transformer shall answer a forgotten image as the original does with its most looked-at patches gone.

    forget stage   L(θ) = mean_{x∈F} log(1 + e^{ ( s(Z, Z⁻) - s(Z, Z⁺) ) / τ })
                   Z = f_θ(x),   Z⁻ = f_θ₀(x),   Z⁺ = f_θ₀(x with its top ρ of patches black)
    retain stage   L(θ) = mean_{x∈R} ℓ(θ; x)

θ₀: the checkpoint as received; f: logits; s: cosine of two rows of logits; ℓ: the objective it was trained with.
Which patches are looked at most: attention of θ₀'s last block, from the class token (without one: received).

Source      Tong, Zhang, Yuan, Wang and Hu, LetheViT: Selective Machine Unlearning for Vision Transformers via
            Attention-Guided Contrastive Learning, 2025, arXiv 2508.01569.
Departures  the paper's equation 5 was not readable: s and the form of the forget loss are ours, as are which attention
            is meant and τ = 0.5. The forget stage shows un-augmented images, for which the attention was computed once;
            black is 0 before normalization; each stage has an optimizer of its own; length defaults to the house's.
Tests kill  attention of θ instead of θ₀; a mask of another area than ρ; Z⁺ and Z⁻ exchanged; a stage that cannot be
            left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, task_loss


class PatchMask(StrEnum):
    """Which patches are blackened."""

    ATTENTION = "attention"
    RANDOM = "random"
    LOW = "low"


@dataclass(frozen=True, kw_only=True)
class LetheVit:
    """What is masked, the temperature, and the length of the two stages."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.LABELS | Needs.ATTENTION
    exact: ClassVar[bool] = False
    mask: PatchMask = PatchMask.ATTENTION
    """``attention``: the patches looked at most. Controls of equal area: ``random``, and ``low``, looked at least."""
    ratio: float = 0.05
    """Share ρ of the patches that are blackened, at least one."""
    tau: float = 0.5
    """Temperature τ of the forget loss."""
    forget_epochs: int = 2
    """Passes over F; 0 leaves out the forget stage, and what is left is fine-tuning."""
    retain_epochs: int | None = None
    """Passes over R; by default a twentieth of the original's less the forget stage's, at least 1; 0 leaves it out."""
    batch_size: int | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer of each stage."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or not self.tau > 0:
            raise EffaceError(
                f"lethevit cannot blacken {self.ratio} of the patches with tau {self.tau}.",
                "The ratio is a share above 0, at most 1; tau is above 0.",
            )

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """The forget stage, then the retain stage."""
        size, epochs = given.batch_size(self.batch_size), self.retain_epochs
        if epochs is None:
            epochs = max(1, given.resolve_epochs(None) - self.forget_epochs)
        if self.forget_epochs:
            self.forget(model, given.forget, size, run)
        optimizer = self.optim.build(model, epochs * given.retain.count_batches(size))
        for epoch in range(epochs):
            batches = given.retain.batches(size, run.rng("retain", epoch))
            train_steps(model, batches, task_loss(model), optimizer, run, phase="retain")
        return model

    def forget(self, model: Model, part: Subset, size: int, run: Run) -> None:
        """The forget stage, against answers that the original gave before it."""
        with run.timed():
            targets, place = self.targets(frozen_copy(model), part, size, run)
        optimizer = self.optim.build(model, self.forget_epochs * part.count_batches(size))

        def away(batch: Batch) -> LossTerms:
            positive, negative = targets[:, place[batch.ids]]
            return LossTerms({"away": lethe_loss(model(batch.clean), positive, negative, self.tau).mean()})

        for epoch in range(self.forget_epochs):
            train_steps(model, part.batches(size, run.rng("forget", epoch)), away, optimizer, run, phase="forget")

    @torch.no_grad()
    def targets(self, original: Model, forget: Subset, size: int, run: Run) -> tuple[Tensor, Tensor]:
        """Z⁺ and Z⁻ of the examples of F, [2, n, classes], and the row of each position in the data, [N]."""
        rng, rows = run.rng("mask"), []
        for batch in forget.ordered_batches(size):
            maps = original.attention(batch.clean)
            score = {
                PatchMask.ATTENTION: maps,
                PatchMask.RANDOM: torch.rand(maps.shape, generator=rng).to(maps),
                PatchMask.LOW: -maps,
            }[self.mask]
            rows.append(torch.stack([original(mask_patches(batch.clean, score, self.ratio)), original(batch.clean)]))
        place = torch.zeros(len(forget.x), dtype=torch.int64)
        place[forget.ids] = torch.arange(len(forget))
        targets = torch.cat(rows, 1)
        closeness = float(F.cosine_similarity(*targets, dim=-1).mean())
        run.log_values("targets", {"closeness": closeness}, examples=3 * len(forget))
        return targets, place


def lethe_loss(z: Tensor, positive: Tensor, negative: Tensor, tau: float) -> Tensor:
    """log(1 + e^{(s(Z, Z⁻) - s(Z, Z⁺)) / τ}) of rows of logits, [B] > 0; lower: nearer to ``positive``."""
    there, here = F.cosine_similarity(z, negative, dim=-1), F.cosine_similarity(z, positive, dim=-1)
    return F.softplus((there - here) / tau)


def mask_patches(x: Tensor, score: Tensor, ratio: float) -> Tensor:
    """Images [B, C, H, W] whose patches of the highest ``score`` [B, rows, columns] are 0."""
    flat = score.flatten(1)
    chosen = flat.topk(max(1, round(ratio * flat.shape[1])), 1).indices
    seen = torch.ones_like(flat).scatter_(1, chosen, 0).view_as(score)
    return x * F.interpolate(seen[:, None], size=x.shape[2:], mode="nearest")
