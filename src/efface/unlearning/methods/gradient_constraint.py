"""Gradient constraint: make the loss around forgotten examples as steep as it is around unseen ones.

    G_θ(x) = ‖ ∂ℓ(θ; x) / ∂x ‖₂
    L(θ) = MEM_train + weight · MEM_GP [ + stay · mean_{x∈R} d(θ₀, θ; x) ]
                                       [ + third_party · mean_{x∈V} (ℓ_cap - ℓ(θ; x))₊ ]
    MEM_train = mean ℓ(θ; x)  over R, over R ∪ F, or over F
    MEM_GP    SQUARE    mean_{x∈F} ( (G_θ(x) - c) / c )²,    c = target, or mean_V G_θ₀
              LOG_MEAN  ( mean_F log G_θ - mean_V log G_θ₀ )²
              QUANTILE  mean_k ( sorted(log G_θ on the batch of F)_k - q_k )²,    q: quantiles of log G_θ₀ over V

Members of an over-fitted model have small gradients, unseen data V large ones; θ₀: the checkpoint as received.

Source      Wang and Chen, Machine Unlearning in Contrastive Learning, 2024, arXiv 2405.07317; third term: the
            journal variant, Mathematics 2024, 12(24), 4001.
Departures  the paper does not print what is differentiated, the norm, the target or the coefficient: all are fields
            here and all are our choice. Other views and the rest of the batch are constants; BatchNorm statistics are
            frozen in the penalty; ℓ_cap is the 90 % quantile of the unseen examples' loss. c = 1 is WGAN-GP's.
Tests kill  a penalty on R; finite differences; BatchNorm coupling examples; a target taken from F itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from efface.training.batch import Batch, LossTerms, Subset
from efface.training.gradients import differentiable_twice, feature_norms, input_norms, parameter_norm
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model, frozen_statistics
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, disagreement


class GradientVariable(StrEnum):
    """What the loss is differentiated with respect to."""

    INPUT = "input"
    EMBEDDING = "embedding"
    PARAMETERS = "parameters"


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


@dataclass(frozen=True, kw_only=True)
class GradientConstraint:
    """What is matched, how hard, and what else is asked for."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID
    exact: ClassVar[bool] = False
    weight: float = 1.0
    """Weight of the gradient term; 0 is fine-tuning. For classifiers start at 0.03: their norms lie further apart."""
    wrt: GradientVariable = GradientVariable.INPUT
    """``input``: the anchor view; ``embedding``: the backbone's output; ``parameters``: one norm per batch."""
    match: NormMatching = NormMatching.QUANTILE
    """``square``, ``log_mean`` or ``quantile`` (one-dimensional optimal transport)."""
    target: float | None = None
    """c of ``square``; by default the unseen examples' mean. 1: the literal WGAN-GP. 0: plain flattening."""
    train_on: TrainOn = TrainOn.RETAIN
    """Examples of the task loss."""
    stay: float = 0.0
    """Weight of agreeing with θ₀ on retained examples."""
    third_party: float = 0.0
    """Weight of raising the loss of unseen examples up to ℓ_cap."""
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: int = 64
    """Forget (and unseen) examples per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.1, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """One batch of R, one of F (and one of V for the third term) per step."""
        epochs, size = given.resolve_epochs(self.epochs), given.batch_size(self.batch_size)
        optimizer, teacher = self.optim.build(model, epochs * given.retain.count_batches(size)), frozen_copy(model)
        few = min(self.forget_batch_size, len(given.forget), len(given.valid))
        unseen, cap = self._unseen(model, given.valid, few, run)
        forget = given.forget.cycle(few, run.rng("forget"))
        valid = given.valid.cycle(few, run.rng("valid"))

        def terms(batch: Batch) -> LossTerms:
            gone = next(forget)
            shown = {TrainOn.RETAIN: batch, TrainOn.FORGET: gone}.get(self.train_on) or batch + gone
            outcome = model.objective.loss(model, shown)
            task, carry = outcome.per_example.mean(), outcome.rows(0, len(batch)).carry
            parts = {"task": task}
            if self.weight:
                parts["gradient"] = self.weight * self.penalty(self.norms(model, gone, graph=True), unseen)
            if self.stay:
                parts["stay"] = self.stay * disagreement(teacher, model, batch).mean()
            if self.third_party:
                loss = model.objective.loss(model, next(valid)).per_example
                parts["third_party"] = self.third_party * (cap - loss).relu().mean()
            return LossTerms(parts, None if self.train_on is TrainOn.FORGET else carry, extra_examples=len(gone))

        for epoch in range(epochs):
            train_steps(model, given.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model

    def norms(self, model: Model, batch: Batch, *, graph: bool = False) -> Tensor:
        """G_θ of each example of the batch, [B] (``parameters``: [1]), in float32 with frozen BatchNorm statistics."""
        with differentiable_twice(model):
            loss = model.objective.anchor_loss(model, batch)
            by: dict[GradientVariable, Callable[[], Tensor]] = {
                GradientVariable.INPUT: lambda: input_norms(loss, batch.view(0), graph=graph),
                GradientVariable.EMBEDDING: lambda: feature_norms(model, loss, batch.view(0), graph=graph),
                GradientVariable.PARAMETERS: lambda: parameter_norm(model, loss, batch.view(0), graph=graph),
            }
            return by[self.wrt]()

    def penalty(self, norms: Tensor, unseen: Tensor) -> Tensor:
        """MEM_GP: scalar >= 0, 0 where F's norms match. ``norms`` [B]; ``unseen`` [M]: norms of V under θ₀."""
        if self.match is NormMatching.SQUARE:
            center = unseen.mean() if self.target is None else norms.new_tensor(self.target)
            scale = center if center > 0 else unseen.mean()
            return ((norms - center) / scale).square().mean()
        if self.match is NormMatching.LOG_MEAN:
            return (norms.log().mean() - unseen.log().mean()).square()
        levels = (torch.arange(len(norms), device=norms.device, dtype=norms.dtype) + 0.5) / len(norms)
        return (norms.log().sort().values - unseen.log().quantile(levels)).square().mean()

    def _unseen(self, model: Model, valid: Subset, few: int, run: Run) -> tuple[Tensor, Tensor]:
        """Norms of V under θ₀ over four passes, in batches as large as F's, and the cap ℓ_cap."""
        batches = [b for turn in range(4) for b in valid.batches(few, run.rng("unseen", turn))]
        norms = torch.cat([self.norms(model, batch) for batch in batches])
        with torch.no_grad(), frozen_statistics(model):
            losses = torch.cat([model.objective.loss(model, batch).per_example for batch in batches])
        return norms, losses.quantile(0.9)
