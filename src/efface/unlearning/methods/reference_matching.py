"""Reference matching: give each forgotten example the margin that it has in models that never saw it.

    L(θ) = mean_R ℓ(θ; x) + Σ_s w_s · mean_F e_s(x)² + hold · Σ_s mean_R ( (s_θ₀(x) - s_θ(x))₊ / σ_s )²
    e_s(x) = [ s_θ(x) - mean_V s_θ - t_s(x) ] / σ_s          as a running mean of each example over steps
             with the gradient of s_θ(x) - mean_R s_θ
    t_s(x) = mean over reference models that never saw x of [ s_k(x) - mean_V s_k ]

s: the margin in the backbone's features and in the output (:mod:`efface.unlearning.margins`), with V as the bank; σ_s:
standard deviation of V's margins under the checkpoint as received, θ₀. How hard an example is in a model that never saw
it cannot be known from other examples, and for one picture it is most of the error: reference models know it. The
targets come from the half of a reference bank that its audit does not use. The square pulls from both sides, and V's
embeddings are constants in each step: with a gradient through them V is drawn to the forgotten examples, and is no
longer an unseen yardstick.

Source      ours; SMALL requests are measured in docs/small_requests.md.
Departures  none.
Tests cover a target that is taken from another example; a model that starts at its targets and must not move them; a
            gradient into V; targets of the audit's half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, Decay, NotNegative, Positive
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, OptimizerType
from efface.unlearning.margins import BACKBONE, OUTPUT, compute_margins_beside
from efface.unlearning.protocol import MethodInputs, Needs
from efface.unlearning.targets import MarginTargets

FEWEST_STEPS = 160
"""Steps at least, if the original took so few that a twentieth of them would be fewer."""
MARGIN_ROWS = 100
"""Rows of F, V and R per step for the margins, with other views of the same examples where there are fewer."""


@dataclass(frozen=True, kw_only=True)
class ReferenceMatching(Settings):
    """Reference matching: how strongly each space is matched, and how firmly retained examples are held."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID | Needs.TARGETS
    exact: ClassVar[bool] = False
    backbone: NotNegative = 2.0
    """Weight of the error in the backbone's features; 0 leaves it out."""
    output: NotNegative = 3.0
    """Weight of the error in the projector's embeddings or the logits; 0 leaves it out."""
    hold: NotNegative = 1.0
    """Weight of keeping retained examples' margins from falling below their values under θ₀."""
    memory: Decay = 0.9
    """Share of earlier steps in the running mean of an example's error."""
    tau: Positive = 0.1
    """Temperature τ of the margins in spaces of embeddings; that of the bank."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's, and up to a tenth if those were few steps."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(rule=OptimizerType.ADAMW, lr=1e-3, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with one batch of R for the task, and MARGIN_ROWS of F, V and R for the margins, per step."""
        epochs, size, teacher = self._epochs(inputs), inputs.batch_size(self.batch_size), frozen_copy(model)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        errors = {space: ExampleMeans(len(inputs.forget), self.memory) for space in (BACKBONE, OUTPUT)}
        served = [
            collect_rows(subset.cycle(MARGIN_ROWS, run.rng(name)), MARGIN_ROWS)
            for subset, name in ((inputs.forget, "forget"), (inputs.retain, "beside"), (inputs.valid, "valid"))
        ]

        def terms(batch: Batch) -> LossTerms:
            output = model.objective.loss(model, batch)
            f, r, v = (next(one) for one in served)
            losses = {"task": output.per_example.mean(), **self.terms(teacher, model, f, r, v, inputs.targets, errors)}
            return LossTerms(losses, output.carry, extra_examples=len(f) + len(r) + len(v))

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
        targets: MarginTargets,
        errors: Mapping[str, ExampleMeans],
    ) -> dict[str, Tensor]:
        """The weighted error of each space, and ``hold``; terms of weight 0 are left out. Updates ``errors``."""
        weights = {BACKBONE: self.backbone, OUTPUT: self.output}
        now, unseen_now = compute_margins_beside(model, forgotten + retained, unseen, self.tau)
        with torch.no_grad():
            before, unseen_before = compute_margins_beside(teacher, retained, unseen, self.tau)
        rows = targets.rows(forgotten.ids).to(forgotten.clean.device)
        terms, held = dict[str, Tensor](), list[Tensor]()
        for space, weight in weights.items():
            if not weight:
                continue
            f, r = now[space].tensor_split([len(forgotten)])
            spread = unseen_before[space].std().clamp_min(1e-6)
            wanted = targets.margins[space].to(f)[rows]
            error = (f.detach() - unseen_now[space].mean() - wanted) / spread
            mean = errors[space].update(rows, error)
            moved = (f - f.detach() - (r.mean() - r.mean().detach())) / spread
            terms[space] = weight * (mean.square() + 2 * mean * moved).mean()
            held.append(((before[space] - r).relu() / spread).square().mean())
        return terms | ({"hold": self.hold * torch.stack(held).sum()} if self.hold and held else {})

    def _epochs(self, inputs: MethodInputs) -> int:
        """A twentieth of the original's; or, if that is fewer than FEWEST_STEPS, up to a tenth."""
        usual, recipe = inputs.resolve_epochs(self.epochs), inputs.original_recipe
        per_epoch = inputs.retain.count_batches(inputs.batch_size(self.batch_size))
        if self.epochs is not None or recipe is None:
            return usual
        return max(usual, min(recipe.epochs // 10, FEWEST_STEPS // per_epoch))


def collect_rows(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """Join batches until they have ``rows``; a small subset comes several times, with other views."""
    for found in batches:
        joined = found
        while len(joined) < rows:
            joined = joined + next(batches)
        yield joined.rows(0, rows)


class ExampleMeans:
    """Exponential running mean of each example's error over the steps that it was in, with bias correction."""

    def __init__(self, count: int, memory: float) -> None:
        self.memory, self.total, self.mass = memory, torch.zeros(count), torch.zeros(count)

    def update(self, rows: Tensor, now: Tensor) -> Tensor:
        """Add the errors ``now`` [b] of the examples ``rows`` [b], and return their running means [b]."""
        self.total, self.mass = self.total.to(now), self.mass.to(now)
        count = torch.zeros_like(self.mass).index_add(0, rows, torch.ones_like(now))
        mean = torch.zeros_like(self.total).index_add(0, rows, now) / count.clamp_min(1)
        here = count > 0
        self.total = torch.where(here, self.memory * self.total + (1 - self.memory) * mean, self.total)
        self.mass = torch.where(here, self.memory * self.mass + (1 - self.memory), self.mass)
        return (self.total / self.mass.clamp_min(1e-12))[rows]
