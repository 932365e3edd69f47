"""Margin matching: forgotten examples stand out no more than unseen ones, and what is taken is taken from them alone.

    L(θ) = mean_R ℓ(θ; x) + Σ_s w_s · ( gap_s )₊ + hold · Σ_s mean_R ( (s_θ₀(x) - s_θ(x))₊ / σ_s )²
    gap_s has the value       mean_F s_θ - mean_V s_θ, over σ_s, as a running mean over steps
          and the gradient of mean_F s_θ - mean_R s_θ, over σ_s, in the step's own batch

s: the margin in the backbone's features and in the output (:mod:`efface.unlearning.margins`), V being the bank; σ_s: standard
deviation of V's under the checkpoint as received, θ₀. Unseen examples V say how far, retained ones R say in which
direction: what lowers everybody's margin alike has no gradient, so the model cannot forget F by forgetting all. V's own
margins have no gradient; V's embeddings have, as the crowd that F is drawn into. Where F no longer stands out the push
ends; a batch's own gap is noise long before (0.14 for 100 of F and 100 of V), and would push on for another such
noise's width: hence the mean over steps, and large batches of F. V must be drawn as F was, and be some hundreds: with
50 it stops short, and of a whole class or group V says little.

Source      ours; measured in docs/frontier.md. Its forerunner is a hinge on the same gap, with the gradient of mean_F
            alone: that one lowers the retained examples' margins and V's with the forgotten ones', so that the gap
            stays and the push goes on.
Departures  none.
Tests kill  a gradient into V's margins; a push that all examples share; a bank that has the example itself; an example
            of R held from above; a push by one batch's noise; fewer of V and R than make a yardstick beside a small F.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, OptimizerType
from efface.unlearning.margins import BACKBONE, OUTPUT, compute_margins
from efface.unlearning.protocol import MethodInputs, Needs

FEW_STEPS, MANY_STEPS = 160, 2000
"""Steps, see `_epochs`."""
YARDSTICK_SIZE = 100
"""Examples of V and of R a step where F has fewer: a yardstick."""


@dataclass
class RunningMean:
    """Exponential mean of what each step measured, without bias from the first on."""

    memory: float
    total: Tensor | float = 0.0
    mass: float = 0.0

    def update_and_hinge(self, now: Tensor) -> Tensor:
        """The mean, ``now`` among it, where it is above 0, with the gradient of ``now``; else 0."""
        value = now.detach()
        self.total = self.memory * self.total + (1 - self.memory) * value
        self.mass = self.memory * self.mass + (1 - self.memory)
        mean = self.total / self.mass
        return mean.relu() + (mean > 0) * (now - value)


@dataclass(frozen=True, kw_only=True)
class MarginMatching:
    """How hard each space is matched, and how firmly the retained examples are held."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID
    exact: ClassVar[bool] = False
    backbone: float = 2.0
    """Weight of the gap in the backbone's features; 0 leaves them out."""
    output: float = 3.0
    """Weight of the gap in the projector's embeddings or the logits; 0 leaves them out."""
    hold: float = 1.0
    """Weight of retained examples' margins not falling below their own under θ₀."""
    memory: float = 0.9
    """Share of the past in the running mean of a gap; 0: every step has its own batch's."""
    tau: float = 0.1
    """Temperature τ of the margins in spaces of embeddings."""
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's, and of an original of few steps up to a tenth."""
    batch_size: int | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: int = 200
    """Most examples of F per step, and of V and of R beside them: as many as of F, up to 100 where F has fewer."""
    optim: Optim = field(default_factory=lambda: Optim(rule=OptimizerType.ADAMW, lr=1e-3, clip=5.0))
    """Optimizer."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise EffaceError(f"margin_matching.tau cannot be {self.tau}.", "It is a temperature, above 0.")
        if not 0 <= self.memory < 1:
            raise EffaceError(f"margin_matching.memory cannot be {self.memory}.", "It is a share, 0 or more, below 1.")

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """One batch of R for the task, and one each of F, V and R for the margins, per step."""
        if len(given.valid) < 2:
            raise EffaceError(
                f"margin_matching compares with unseen examples, and `valid` has {len(given.valid)}.",
                remedy="Set split.valid to at least 2 examples (better 500) when pretraining.",
            )
        epochs, size, teacher = self._epochs(given), given.batch_size(self.batch_size), frozen_copy(model)
        optimizer = self.optim.build(model, epochs * given.retain.count_batches(size))
        gaps = {space: RunningMean(self.memory) for space in (BACKBONE, OUTPUT)}
        many = min(self.forget_batch_size, max(len(given.forget), YARDSTICK_SIZE))
        forget = given.forget.cycle(self.forget_batch_size, run.rng("forget"))
        valid, beside = given.valid.cycle(many, run.rng("valid")), given.retain.cycle(many, run.rng("beside"))

        def terms(batch: Batch) -> LossTerms:
            outcome = model.objective.loss(model, batch)
            gone, unseen, kept = next(forget), next(valid), next(beside)
            losses = {"task": outcome.per_example.mean(), **self.terms(teacher, model, gone, kept, unseen, gaps)}
            return LossTerms(losses, outcome.carry, extra_examples=len(gone) + len(unseen) + len(kept))

        for epoch in range(epochs):
            train_steps(model, given.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model

    def terms(
        self, teacher: Model, model: Model, gone: Batch, kept: Batch, unseen: Batch, gaps: Mapping[str, RunningMean]
    ) -> dict[str, Tensor]:
        """The weighted gaps and what holds R; nothing where its weight is 0. Adds this step to ``gaps``."""
        wanted = {BACKBONE: self.backbone, OUTPUT: self.output}
        if not any(wanted.values()):
            return {}
        now = compute_margins(model, gone + kept + unseen, len(unseen), self.tau)
        with torch.no_grad():
            before = compute_margins(teacher, kept + unseen, len(unseen), self.tau)
        found, held = dict[str, Tensor](), list[Tensor]()
        for space, weight in wanted.items():
            if not weight:
                continue
            f, r, v = now[space].split([len(gone), len(kept), len(unseen)])
            r0, v0 = before[space].split([len(kept), len(unseen)])
            spread = v0.std().clamp_min(1e-6)
            found[space] = weight * gaps[space].update_and_hinge(margin_gap(f, r, v) / spread)
            held.append(((r0 - r).relu() / spread).square().mean())
        return found | ({"hold": self.hold * torch.stack(held).sum()} if self.hold else {})

    def _epochs(self, given: MethodInputs) -> int:
        """A twentieth of the original's, or what gives FEW steps where the original had fewer than MANY."""
        usual = given.resolve_epochs(self.epochs)
        per_epoch = given.retain.count_batches(given.batch_size(self.batch_size))
        if (
            self.epochs is not None
            or given.original_recipe is None
            or given.original_recipe.epochs * per_epoch >= MANY_STEPS
        ):
            return usual
        return max(usual, min(given.original_recipe.epochs // 10, FEW_STEPS // per_epoch))


def margin_gap(f: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """mean F - mean V in value, mean F - mean R in gradient; a scalar, 0 where F stands out no more than V."""
    still = v.detach().mean() - r.detach().mean()
    return f.mean() - r.mean() - still
