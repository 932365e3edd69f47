"""LetheViT: teach a transformer to answer a forgotten image as if its most attended patches were missing.

    forget stage   L(θ) = mean_{x∈F} log(1 + e^{ ( s(Z, Z⁻) - s(Z, Z⁺) ) / τ })
                   Z = f_θ(x),   Z⁻ = f_θ₀(x),   Z⁺ = f_θ₀(x with the most attended share ρ of its patches black)
    retain stage   L(θ) = mean_{x∈R} ℓ(θ; x)

θ₀: the checkpoint as received; f: logits; s: cosine of two rows of logits; ℓ: the objective it was trained with.
Attention of a patch: that of θ₀'s last block from the class token (without one: attention received).

Source      Tong, Zhang, Yuan, Wang and Hu, LetheViT: Selective Machine Unlearning for Vision Transformers via
            Attention-Guided Contrastive Learning, 2025, arXiv 2508.01569.
Departures  the paper's equation 5 was not readable: s and the form of the forget loss are ours, as are the choice of
            attention and τ = 0.5. The forget stage uses un-augmented images, for which the attention was computed once;
            black is 0 before normalization; each stage has an optimizer of its own; the length follows our defaults.
Tests cover attention of θ in place of θ₀; a mask of another area than ρ; Z⁺ and Z⁻ swapped; a stage that cannot be left
            out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, Positive, SomeShare, Whole
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, RequestSizes, task_loss


class PatchMask(StrEnum):
    """Which patches are masked."""

    ATTENTION = "attention"
    RANDOM = "random"
    LOW = "low"


@dataclass(frozen=True, kw_only=True)
class LetheVit(Settings):
    """LetheViT: what is masked, the temperature, and the length of the two stages."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.LABELS | Needs.ATTENTION
    exact: ClassVar[bool] = False
    mask: PatchMask = PatchMask.ATTENTION
    """``attention``: the most attended patches. Controls of equal area: ``random``, and ``low``, the least attended."""
    ratio: SomeShare = 0.05
    """Share ρ of the patches that are masked, at least one patch."""
    tau: Positive = 0.5
    """Temperature τ of the forget loss."""
    forget_epochs: Whole = 2
    """Passes over F; 0 leaves out the forget stage, which is fine-tuning."""
    retain_epochs: Whole | None = None
    """Passes over R; by default a twentieth of the original's minus the forget stage's, at least 1; 0: none."""
    batch_size: Count | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer of each stage."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Run the forget stage, then the retain stage."""
        size, epochs = inputs.batch_size(self.batch_size), self._retain_epochs(inputs.sizes)
        if self.forget_epochs:
            self.forget(model, inputs.forget, size, run)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        for epoch in range(epochs):
            batches = inputs.retain.batches(size, run.rng("retain", epoch))
            train_steps(model, batches, task_loss(model), optimizer, run, phase="retain")
        return model

    def count_steps(self, sizes: RequestSizes) -> int:
        """Passes over F, then over R."""
        size = sizes.batch_size(self.batch_size)
        return self.forget_epochs * -(-sizes.forget // size) + self._retain_epochs(sizes) * -(-sizes.retain // size)

    def _retain_epochs(self, sizes: RequestSizes) -> int:
        if self.retain_epochs is not None:
            return self.retain_epochs
        return max(1, sizes.resolve_epochs(None) - self.forget_epochs)

    def forget(self, model: Model, subset: Subset, size: int, run: Run) -> None:
        """Run the forget stage, with targets that the original gives before it."""
        with run.timed():
            targets, place = self.targets(frozen_copy(model), subset, size, run)
        optimizer = self.optim.build(model, self.forget_epochs * subset.count_batches(size))

        def away(batch: Batch) -> LossTerms:
            positive, negative = targets[:, place[batch.ids]]
            return LossTerms({"away": lethe_loss(model(batch.clean), positive, negative, self.tau).mean()})

        for epoch in range(self.forget_epochs):
            train_steps(model, subset.batches(size, run.rng("forget", epoch)), away, optimizer, run, phase="forget")

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
    """log(1 + e^{(s(Z, Z⁻) - s(Z, Z⁺)) / τ}) of rows of logits, [B] > 0; lower: closer to ``positive``."""
    to_negative, to_positive = F.cosine_similarity(z, negative, dim=-1), F.cosine_similarity(z, positive, dim=-1)
    return F.softplus((to_negative - to_positive) / tau)


def mask_patches(x: Tensor, score: Tensor, ratio: float) -> Tensor:
    """Images [B, C, H, W] whose share ``ratio`` of patches with the highest ``score`` [B, rows, columns] is 0."""
    flat = score.flatten(1)
    chosen = flat.topk(max(1, round(ratio * flat.shape[1])), 1).indices
    visible = torch.ones_like(flat).scatter_(1, chosen, 0).view_as(score)
    return x * F.interpolate(visible[:, None], size=x.shape[2:], mode="nearest")
