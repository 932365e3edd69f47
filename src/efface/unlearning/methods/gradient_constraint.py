"""Gradient constraint: make the loss as steep around forgotten examples as it is around unseen ones.

    G_θ(x) = ‖ ∂ℓ(θ; x) / ∂x ‖₂    at an example of F; with ``of: output`` of Σ_k f_θ(x)_k, the network's own output;
             with ``at: interpolate`` at ε x_F + (1 - ε) x_V, ε uniform in [0, 1]
    L(θ) = MEM_train + weight · MEM_GP [ + stay · mean_{x∈R} d(θ₀, θ; x) ]
                                       [ + third_party · mean_{x∈V} (ℓ_cap - ℓ(θ; x))₊ ]
    MEM_train = mean ℓ(θ; x)  over R, over R ∪ F, or over F
    MEM_GP    SQUARE    mean_{x∈F} ( (G_θ(x) - c) / c )²,    c = target, or mean_V G_θ₀
              LOG_MEAN  ( mean_F log G_θ - mean_V log G_θ₀ )²
              QUANTILE  mean_k ( sorted(log G_θ on the batch of F)_k - q_k )²,    q: quantiles of log G_θ₀ over V

Training examples of an over-fitted model have small gradients, unseen examples V large ones; θ₀: the checkpoint as
received. ``WGAN_GP`` is the literal reading of the paper: the network as critic, interpolations of examples that were
trained on and that were not, and c = 1.

Source      Wang and Chen, Machine Unlearning in Contrastive Learning, 2024, arXiv 2405.07317; third term: the
            journal variant, Mathematics 2024, 12(24), 4001.
Departures  the text of the paper could not be read; abstracts and summaries by others do not say what is
            differentiated, nor give the norm or the coefficient: all are fields here, and the defaults are ours.
            ``WGAN_GP`` comes from such summaries. Other views and the rest of the batch are constants; BatchNorm
            statistics are frozen in the penalty; ℓ_cap is the 90 % quantile of the unseen examples' loss. Between
            examples the loss has the other views and the label of the one of F.
Tests cover a penalty on R; finite differences; BatchNorm coupling examples; a target computed from F itself; a norm of
            the output at the ends of an interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, NotNegative
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model, frozen_statistics
from efface.training.optim import Optim
from efface.unlearning.gradient_norms import (
    Critic,
    GradientVariable,
    PenaltyPoint,
    gradient_norms,
    interpolate_batches,
)
from efface.unlearning.protocol import MethodInputs, Needs, disagreement


class NormMatching(StrEnum):
    """How the gradient norms of F are compared with those of unseen examples."""

    SQUARE = "square"
    LOG_MEAN = "log_mean"
    QUANTILE = "quantile"


class TrainOn(StrEnum):
    """Which examples the task loss is taken over."""

    RETAIN = "retain"
    MEMBERS = "members"
    FORGET = "forget"


WGAN_GP: dict[str, Any] = {"of": "output", "at": "interpolate", "match": "square", "target": 1.0}
"""The literal reading, as fields: ``GradientConstraint(**WGAN_GP)``."""


@dataclass(frozen=True, kw_only=True)
class GradientConstraint(Settings):
    """Gradient constraint: which gradients are matched and how strongly, the other terms, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID
    exact: ClassVar[bool] = False
    weight: NotNegative = 1.0
    """Weight of the gradient term; 0 is fine-tuning. For classifiers start at 0.03: their norms differ more."""
    wrt: GradientVariable = GradientVariable.INPUT
    """``input``: the anchor view; ``embedding``: the backbone's output; ``parameters``: one norm per batch."""
    of: Critic = Critic.LOSS
    """``loss``, or ``output``: the sum of the logits or of the projector's outputs."""
    at: PenaltyPoint = PenaltyPoint.EXAMPLE
    """``example``, or ``interpolate``: between a forgotten and an unseen example."""
    match: NormMatching = NormMatching.QUANTILE
    """``square``, ``log_mean`` or ``quantile`` (one-dimensional optimal transport)."""
    target: NotNegative | None = None
    """c of ``square``; by default the unseen examples' mean. 1: as in WGAN-GP. 0: makes all norms small."""
    train_on: TrainOn = TrainOn.RETAIN
    """Examples that the task loss is taken over."""
    stay: NotNegative = 0.0
    """Weight of agreeing with θ₀ on retained examples; 0 leaves the term out."""
    third_party: NotNegative = 0.0
    """Weight of raising the loss of unseen examples up to ℓ_cap; 0 leaves the term out."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: Count = 64
    """Forget (and unseen) examples per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.1, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with one batch of R, one of F (and one of V for the third term) per step."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        optimizer, teacher = self.optim.build(model, epochs * inputs.retain.count_batches(size)), frozen_copy(model)
        forget_size = min(self.forget_batch_size, len(inputs.forget), len(inputs.valid))
        unseen, cap = self._measure_unseen(model, inputs.valid, forget_size, run)
        forget = inputs.forget.cycle(forget_size, run.rng("forget"))
        valid = inputs.valid.cycle(forget_size, run.rng("valid"))
        unseen_batches, epsilon = inputs.valid.cycle(forget_size, run.rng("between")), run.rng("epsilon")

        def terms(batch: Batch) -> LossTerms:
            forget_batch = next(forget)
            shown = {TrainOn.RETAIN: batch, TrainOn.FORGET: forget_batch}.get(self.train_on) or batch + forget_batch
            output = model.objective.loss(model, shown)
            task, carry = output.per_example.mean(), output.rows(0, len(batch)).carry
            losses = {"task": task}
            if self.weight:
                other = next(unseen_batches) if self.at is PenaltyPoint.INTERPOLATE else None
                x = None if other is None else interpolate_batches(forget_batch, other, epsilon)
                norms = self.norms(model, forget_batch, x, graph=True)
                losses["gradient"] = self.weight * self.penalty(norms, unseen)
            if self.stay:
                losses["stay"] = self.stay * disagreement(teacher, model, batch).mean()
            if self.third_party:
                loss = model.objective.loss(model, next(valid)).per_example
                losses["third_party"] = self.third_party * (cap - loss).relu().mean()
            carry = None if self.train_on is TrainOn.FORGET else carry
            shown = len(forget_batch) * (2 if self.weight and self.at is PenaltyPoint.INTERPOLATE else 1)
            return LossTerms(losses, carry, extra_examples=shown)

        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model

    def norms(self, model: Model, batch: Batch, x: Tensor | None = None, *, graph: bool = False) -> Tensor:
        """G_θ at the examples or at ``x``, [B] (``parameters``: [1]): see :func:`gradient_norms`."""
        return gradient_norms(model, batch, self.of, self.wrt, x, graph=graph)

    def penalty(self, norms: Tensor, unseen: Tensor) -> Tensor:
        """MEM_GP: scalar >= 0, 0 if the norms match. ``norms`` [B]: of F under θ; ``unseen`` [M]: of V under θ₀."""
        if self.match is NormMatching.SQUARE:
            center = unseen.mean() if self.target is None else norms.new_tensor(self.target)
            scale = torch.where(center > 0, center, unseen.mean())
            return ((norms - center) / scale).square().mean()
        if self.match is NormMatching.LOG_MEAN:
            return (norms.log().mean() - unseen.log().mean()).square()
        levels = (torch.arange(len(norms), device=norms.device, dtype=norms.dtype) + 0.5) / len(norms)
        return (norms.log().sort().values - unseen.log().quantile(levels)).square().mean()

    def _measure_unseen(self, model: Model, valid: Subset, size: int, run: Run) -> tuple[Tensor, Tensor]:
        """Gradient norms of V under θ₀ over four passes, in batches as large as those of F, and ℓ_cap."""
        batches = [batch for turn in range(4) for batch in valid.batches(size, run.rng("unseen", turn))]
        norms = torch.cat([self.norms(model, batch) for batch in batches])
        with torch.no_grad(), frozen_statistics(model):
            losses = torch.cat([model.objective.loss(model, batch).per_example for batch in batches])
        return norms, losses.quantile(0.9)
