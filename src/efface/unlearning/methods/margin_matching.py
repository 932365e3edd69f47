"""Margin matching: lower the margins of forgotten examples to those of unseen ones, and only theirs.

    L(θ) = mean_R ℓ(θ; x) + Σ_s w_s · gap_s² + hold · Σ_s mean_R ( (s_θ₀(x) - s_θ(x))₊ / σ_s )²
    gap_s has the value       mean_F s_θ - mean_V s_θ, over σ_s, as a running mean over steps
          and the gradient of mean_F s_θ - mean_R s_θ, over σ_s, in the step's own batch

s: the margin in the backbone's features and in the output (:mod:`efface.unlearning.margins`), with V as the bank; σ_s:
standard deviation of V's margins under the checkpoint as received, θ₀. Unseen examples V say how far to go, retained
ones R in which direction: what lowers all margins alike has no gradient, so the model cannot forget F by forgetting
everything. V's own margins have no gradient; V's embeddings do, as part of the bank that F is compared with. The square
pulls from both sides: where F has fallen below V it is drawn up again. With ``penalty: hinge`` the term is w_s (gap_s)₊
and only pushes down: each upward excursion of a noisy gap pushes and none is undone, so that a small F ends below V
and stands out by its absence. The gap of one batch is noisy (0.14 for 100 of F and 100 of V); hence the running mean,
and large batches of F: a small F is repeated, with other views, to as many rows as V has. V must be drawn like F and
have some hundreds of examples: with 50 the method stops short, and V tells little about a whole class or group.

Source      ours; measured in docs/small_requests.md, and with ``penalty: hinge`` in docs/results/frontier.md. A hinge
            with the gradient of mean_F alone lowers the margins of R and V together with F's: the push never ends.
Departures  none.
Tests cover a gradient into V's margins; a push that all examples share; a bank that contains the example itself; an
            example of R held from above; a push by the noise of one batch; a gap below 0 that nothing pulls back; too
            few rows of F, V or R where F is small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, Decay, NotNegative, Positive
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, OptimizerType
from efface.unlearning.margins import BACKBONE, OUTPUT, GapPenalty, RunningMean, compute_margins
from efface.unlearning.protocol import MethodInputs, Needs

FEW_STEPS, MANY_STEPS = 160, 2000
"""Steps of this method, and of the original, in :meth:`MarginMatching._epochs`."""
YARDSTICK_SIZE = 100
"""Rows of F, V and R per step at least, so that their means are precise enough; a smaller F is repeated."""


@dataclass(frozen=True, kw_only=True)
class MarginMatching(Settings):
    """Margin matching: how strongly each space is matched, and how firmly retained examples are held."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID
    exact: ClassVar[bool] = False
    backbone: NotNegative = 2.0
    """Weight of the gap in the backbone's features; 0 leaves it out."""
    output: NotNegative = 3.0
    """Weight of the gap in the projector's embeddings or the logits; 0 leaves it out."""
    hold: NotNegative = 1.0
    """Weight of keeping retained examples' margins from falling below their values under θ₀."""
    penalty: GapPenalty = GapPenalty.SQUARE
    """``square``: draws the gap to 0 from both sides; ``hinge``: only pushes down, as in earlier versions."""
    memory: Decay = 0.9
    """Share of earlier steps in the running mean of a gap; 0: each step uses its own batch alone."""
    tau: Positive = 0.1
    """Temperature τ of the margins in spaces of embeddings."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's, and up to a tenth if those were few steps."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: Count = 200
    """Most rows of F, of V and of R per step for the margins; 100 where F has fewer examples (square repeats them)."""
    optim: Optim = field(default_factory=lambda: Optim(rule=OptimizerType.ADAMW, lr=1e-3, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with one batch of R for the task, and one each of F, V and R for the margins, per step."""
        if len(inputs.valid) < 2:
            raise EffaceError(
                f"margin_matching compares with unseen examples, and `valid` has {len(inputs.valid)}.",
                remedy="Set split.valid to at least 2 examples (better 500) when pretraining.",
            )
        epochs, size, teacher = self._epochs(inputs), inputs.batch_size(self.batch_size), frozen_copy(model)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        gaps = {space: RunningMean(self.memory) for space in (BACKBONE, OUTPUT)}
        many = min(self.forget_batch_size, max(len(inputs.forget), YARDSTICK_SIZE))
        rows = min(many, YARDSTICK_SIZE) if self.penalty is GapPenalty.SQUARE else 1
        forget = inputs.forget.cycle(self.forget_batch_size, run.rng("forget"))
        valid, retain = inputs.valid.cycle(many, run.rng("valid")), inputs.retain.cycle(many, run.rng("beside"))

        def terms(batch: Batch) -> LossTerms:
            output = model.objective.loss(model, batch)
            f, v, r = repeat_to(forget, rows), next(valid), next(retain)
            losses = {"task": output.per_example.mean(), **self.terms(teacher, model, f, r, v, gaps)}
            return LossTerms(losses, output.carry, extra_examples=len(f) + len(v) + len(r))

        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model

    def terms(
        self,
        teacher: Model,
        model: Model,
        forgotten: Batch,
        retained: Batch,
        unseen: Batch,
        gaps: Mapping[str, RunningMean],
    ) -> dict[str, Tensor]:
        """The weighted gap of each space, and ``hold``; terms of weight 0 are left out. Updates ``gaps``."""
        weights = {BACKBONE: self.backbone, OUTPUT: self.output}
        if not any(weights.values()):
            return {}
        now = compute_margins(model, forgotten + retained + unseen, len(unseen), self.tau)
        with torch.no_grad():
            before = compute_margins(teacher, retained + unseen, len(unseen), self.tau)
        terms, held = dict[str, Tensor](), list[Tensor]()
        for space, weight in weights.items():
            if not weight:
                continue
            f, r, v = now[space].split([len(forgotten), len(retained), len(unseen)])
            r0, v0 = before[space].split([len(retained), len(unseen)])
            spread = v0.std().clamp_min(1e-6)
            terms[space] = weight * gaps[space].update(margin_gap(f, r, v) / spread, self.penalty)
            held.append(((r0 - r).relu() / spread).square().mean())
        return terms | ({"hold": self.hold * torch.stack(held).sum()} if self.hold else {})

    def _epochs(self, inputs: MethodInputs) -> int:
        """A twentieth of the original's; or, if that took fewer than MANY_STEPS, as many as FEW_STEPS need."""
        usual, recipe = inputs.resolve_epochs(self.epochs), inputs.original_recipe
        per_epoch = inputs.retain.count_batches(inputs.batch_size(self.batch_size))
        if self.epochs is not None or recipe is None or recipe.epochs * per_epoch >= MANY_STEPS:
            return usual
        return max(usual, min(recipe.epochs // 10, FEW_STEPS // per_epoch))


def repeat_to(batches: Iterator[Batch], rows: int) -> Batch:
    """The next batch; where it has fewer than ``rows``, with the next ones after it, cut to so many."""
    found = next(batches)
    if len(found) >= rows:
        return found
    while len(found) < rows:
        found = found + next(batches)
    return found.rows(0, rows)


def margin_gap(f: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """A scalar with the value of mean F - mean V and the gradient of mean F - mean R; 0 if F and V are alike."""
    constant = v.detach().mean() - r.detach().mean()
    return f.mean() - r.mean() - constant
