"""What methods that match margins share: their settings, the rows of a step, the hold, and how many steps they take.

A subclass says how far the margins of forgotten examples are from where they should be (:class:`Distance`). The step
has one batch of R for the task, whose rows also show the margins of the retained, and rows of F and V. The weights of
the last half of the steps are averaged, and :mod:`efface.unlearning.line_search` takes as much of the change as brings
the distances closest to 0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from operator import add
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, Decay, NotNegative, PairCount, Positive
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, OptimizerType
from efface.unlearning.averaging import WeightAverage
from efface.unlearning.line_search import MeasuredRows, find_share, search_head, take_share
from efface.unlearning.margins import BACKBONE, OUTPUT, Embeddings, GapPenalty, RunningMean, margin_gap
from efface.unlearning.protocol import MethodInputs, RequestSizes

LEAST_STEPS, EXAMPLES_PER_STEP = 48, 8
"""Default number of steps: the first, and one more for so many forgotten examples."""
MOST_STEPS, LONG_TRAINING = 160, 2000
"""Most steps of these methods by default, up to a tenth of the original's, where those were fewer than the second."""
STEPS_OF_PAIRS = 2
"""How many times as many image-text models take by default."""
OUTPUT_WEIGHT, OUTPUT_WEIGHT_OF_SCORES = 4.0, 1.0
"""Default weight of the distance in the output, and that where it is what the model answers with: logits, pairs."""
HOLD, HOLD_OF_PAIRS = 1.0, 16.0
"""Default weight of the hold, and that for image-text models."""
LARGEST_BATCH = 48
"""Retained examples per step at most, by default: the task only keeps the encoder in place."""


class Distance(Protocol):
    """How far the margins of forgotten examples are from where they should be, in one space."""

    def penalize(self, ids: Tensor, f: Tensor, r: Tensor, v: Tensor, spread: Tensor) -> Tensor:
        """Add this step to the running means, and return the penalty, a scalar.

        Args:
            ids: Positions in the data of the rows of F, int64 [F].
            f: Their margins, [F].
            r: Margins of rows of R, [R]: the direction of the gradient is away from theirs.
            v: Margins of rows of V, [V]; they have no gradient here.
            spread: σ, the standard deviation of V's margins under the checkpoint as received.

        """
        ...

    def measure(self, ids: Tensor, f: Tensor, v: Tensor, spread: Tensor) -> float:
        """The mean distance of some rows of F, in standard deviations; changes nothing.

        Args:
            ids: Positions in the data of the rows of F, int64 [F].
            f: Their margins, [F].
            v: Margins of V, [V].
            spread: σ.

        """
        ...


@dataclass(frozen=True, kw_only=True)
class MatchedMargins(Settings):
    """Settings of a method that matches margins, and its step."""

    exact: ClassVar[bool] = False
    backbone: NotNegative = 1.0
    """Weight of the distance in the backbone's features; 0 leaves it out."""
    output: NotNegative | None = None
    """Weight of the distance in the projector's embeddings, the logits or the pairs; by default 4, and 1 for logits and
    pairs, where a larger one costs accuracy once many are forgotten; 0 leaves it out."""
    alignment: NotNegative = 0.1
    """Weight of the gap in the agreement of two views, as a share of the weight of each space; 0 leaves it out."""
    multiplier: NotNegative = 0.04
    """Share of a mean distance that each step adds to its multiplier λ; 0: the square alone. Not used by a hinge."""
    hold: NotNegative | None = None
    """Weight of keeping retained examples' margins from falling below their values under θ₀; by default 1, and 16 for
    image-text models, where a few examples of the task say little about what is paired with what."""
    memory: Decay = 0.8
    """Share of earlier steps in the running mean of a distance; 0: each step uses its own batch alone."""
    tau: Positive = 0.1
    """Temperature τ of the margins in spaces of embeddings."""
    steps: Count | None = None
    """Optimizer steps; by default 48 and one for every 8 of F, of image-text models twice as many, but at most a
    twentieth of retraining's (of few: a tenth)."""
    epochs: Count | None = None
    """In place of ``steps``: as many as so many passes over R take at the original's batch size."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's, at most 48."""
    forget_batch_size: PairCount = 40
    """Rows of F, of V and of R per step for the margins; a smaller F is repeated with other views."""
    compared: Count | None = None
    """Unseen examples that margins are compared with in a step; by default its rows of V. An audit has up to 1 024.
    With more, single examples end closer to unseen ones, and the retained lose more."""
    averaged: Decay = 0.5
    """Which weights are averaged: those after each of the last ``round(averaged * steps)`` steps, and those that the
    first of these starts from, so 25 of 48 at 0.5; never θ₀. 0: the last alone. Not used by a hinge."""
    line_search: bool = True
    """Whether to measure the distances after the last step, and take a share of the whole change accordingly."""
    optim: Optim = field(default_factory=lambda: Optim(rule=OptimizerType.ADAMW, lr=1e-3, clip=5.0))
    """Optimizer."""

    def distances(self, inputs: MethodInputs, unseen: UnseenBatches) -> dict[str, Distance]:
        """The distance in each space, before the first step."""
        raise NotImplementedError

    def two_sided(self) -> bool:
        """Whether distances pull from both sides: then a small F is repeated, views count, and a line is searched."""
        return True

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with a batch of R for the task and for its margins, and one each of F and V, per step."""
        if len(inputs.valid) < 2:
            raise EffaceError(
                f"Methods that match margins compare with unseen examples, and `valid` has {len(inputs.valid)}.",
                remedy="Set split.valid to at least 2 examples (better 500) when pretraining.",
            )
        size, many = self.batch_size or min(inputs.batch_size(None), LARGEST_BATCH), self.forget_batch_size
        teacher, steps = frozen_copy(model), self.count_steps(inputs.sizes)
        unseen_batches = UnseenBatches(teacher, inputs.valid, many, run, self.compared or 0)
        optimizer, distances = self.optim.build(model, steps), self.distances(inputs, unseen_batches)
        aligned = self.alignment_gaps()
        serve = inputs.forget.cycle_full if self.two_sided() else inputs.forget.cycle
        forget, average = serve(many, run.rng("forget")), WeightAverage(model)
        alone = max(1, steps - round(self.averaged * steps)) if self.two_sided() else steps

        def terms(batch: Batch) -> LossTerms:
            if alone <= unseen_batches.taken < steps:
                average.add()
            unseen = unseen_batches.take()
            f = next(forget)
            output = model.objective.loss(model, batch)
            matched = self.terms(teacher, model, f, batch.rows(0, many), unseen, distances, aligned)
            losses = {"task": output.per_example.mean(), **matched}
            return LossTerms(losses, output.carry, extra_examples=len(f) + len(unseen))

        batches = inputs.retain.cycle(size, run.rng("retain"))
        train_steps(model, islice(batches, steps), terms, optimizer, run)
        if average.count:
            average.add()
            average.take()
        if self.line_search and self.two_sided() and any(self.weights(model).values()):
            with run.timed():
                self.search_line(teacher, model, inputs, run, distances)
        return model

    def weights(self, model: Model) -> dict[str, float]:
        """The weight of each space for a kind of model."""
        output = self.output
        if output is None:
            scores = model.objective.needs_labels or model.objective.needs_captions
            output = OUTPUT_WEIGHT_OF_SCORES if scores and self.two_sided() else OUTPUT_WEIGHT
        return {BACKBONE: self.backbone, OUTPUT: output}

    def hold_of(self, model: Model) -> float:
        """The weight of the hold for a kind of model."""
        if self.hold is not None:
            return self.hold
        return HOLD_OF_PAIRS if model.objective.needs_captions else HOLD

    def alignment_gaps(self) -> dict[str, Gap]:
        """The gap in the agreement of views in each space, before the first step; empty if it is left out."""
        spaces = (BACKBONE, OUTPUT) if self.alignment and self.two_sided() else ()
        return {space: Gap(RunningMean(self.memory, self.multiplier)) for space in spaces}

    def search_line(
        self, teacher: Model, model: Model, inputs: MethodInputs, run: Run, distances: Mapping[str, Distance]
    ) -> None:
        """Set θ to θ₀ and the share of the change that brings the measured distances closest to 0."""
        rows = MeasuredRows(inputs.forget, inputs.valid, run)
        before, after = (rows.margins(shown, self.tau) for shown in rows.embed(teacher, model))
        spread = {space: spread_of(v) for space, (_, v) in before.items()}

        def measure(margins: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
            return {space: distances[space].measure(rows.ids, f, v, spread[space]) for space, (f, v) in margins.items()}

        luck = 1 / len(inputs.forget) + 1 / len(rows.unseen)
        weights = self.weights(model)
        share = find_share(measure(before), measure(after), weights, luck)
        head, end = share, copy.deepcopy(model.head)
        take_share(model, teacher, share)
        if weights[OUTPUT]:
            (shown,) = rows.embed(model)

            def measure_output() -> float:
                return measure(rows.margins(shown.with_head_of(model), self.tau, (OUTPUT,)))[OUTPUT]

            head = search_head(model.head, teacher.head, end, measure_output)
        run.log_values("line search", {"share": share, "head": head}, examples=len(rows))

    def terms(
        self,
        teacher: Model,
        model: Model,
        forgotten: Batch,
        retained: Batch,
        unseen: UnseenBatch,
        distances: Mapping[str, Distance],
        aligned: Mapping[str, Gap],
    ) -> dict[str, Tensor]:
        """The weighted distance in each space, ``alignment`` and ``hold``; terms of weight 0 are left out.

        Updates ``distances`` and ``aligned``.

        Args:
            teacher: θ₀.
            model: θ.
            forgotten: Rows of F.
            retained: Rows of R.
            unseen: Rows of V, the bank.
            distances: The distance of the margins in each space.
            aligned: The gap in the agreement of views in each space.

        """
        weights = {space: weight for space, weight in self.weights(model).items() if weight}
        if not weights:
            return {}
        rows = len(unseen.batch)
        counts = [len(forgotten), len(retained), rows]
        shown = Embeddings.of(model, forgotten + retained + unseen.batch)
        with torch.no_grad():
            before = Embeddings.of(teacher, retained) + unseen.known
            more = None if unseen.more is None else Embeddings.of_one_view(model, unseen.more)
        terms, held, apart = dict[str, Tensor](), list[Tensor](), list[Tensor]()
        now = shown.margins(rows, self.tau, more, weights)
        then = before.margins(rows, self.tau, unseen.more_known, weights)
        for space, weight in weights.items():
            f, r, v = now[space].split(counts)
            r0, v0 = then[space].split(counts[1:])
            spread = spread_of(v0)
            terms[space] = weight * distances[space].penalize(forgotten.ids, f, r, v.detach(), spread)
            held.append(((r0 - r).relu() / spread).square().mean())
        now, then = shown.alignments(), before.alignments()
        for space in (space for space in weights if space in now and space in aligned):
            f, r, v = now[space].split(counts)
            spread = spread_of(then[space][-rows:])
            apart.append(weights[space] * aligned[space].penalize(forgotten.ids, f, r, v.detach(), spread))
        if apart:
            terms["alignment"] = self.alignment * torch.stack(apart).sum()
        hold = self.hold_of(model)
        return terms | ({"hold": hold * torch.stack(held).sum()} if hold else {})

    def count_steps(self, sizes: RequestSizes) -> int:
        """As many as F needs; at most a twentieth of the original's, or a tenth of few."""
        per_pass = -(-sizes.retain // sizes.batch_size(self.batch_size))
        if self.epochs is not None:
            return self.epochs * per_pass
        if self.steps is not None:
            return self.steps
        wanted, recipe = LEAST_STEPS + sizes.forget // EXAMPLES_PER_STEP, sizes.recipe
        if recipe is None:
            return wanted
        if recipe.objective.needs_captions and self.two_sided():
            wanted *= STEPS_OF_PAIRS
        original = recipe.epochs * per_pass
        few = min(original // 10, MOST_STEPS) if original < LONG_TRAINING else 0
        return max(1, min(wanted, max(original // 20, few)))


@dataclass
class Gap:
    """The running mean of the gap between forgotten and unseen examples, and its penalty."""

    running: RunningMean
    penalty: GapPenalty = GapPenalty.SQUARE

    def penalize(self, ids: Tensor, f: Tensor, r: Tensor, v: Tensor, spread: Tensor) -> Tensor:
        """Add this step's gap, and return the penalty of the running mean."""
        return self.running.update(margin_gap(f, r, v) / spread, self.penalty)

    def measure(self, ids: Tensor, f: Tensor, v: Tensor, spread: Tensor) -> float:
        """The gap of some rows."""
        return float((f.mean() - v.mean()) / spread)


@dataclass(frozen=True, eq=False)
class UnseenBatch:
    """A batch of V, and what else margins are compared with."""

    batch: Batch
    """Rows of V: their margins are matched, and they are in the bank, with gradient."""
    known: Embeddings
    """The embeddings of the same examples under θ₀."""
    more: Batch | None = None
    """Further rows of V, one view of each, for the bank alone."""
    more_known: Embeddings | None = None
    """The embeddings of these under θ₀."""

    def __len__(self) -> int:
        return len(self.batch) + (0 if self.more is None else len(self.more))


class UnseenBatches:
    """Batches of V, one after the other, each time in other views; with those after it, as many as a bank asks for.

    θ₀ sees each batch once, with views of its own: it tells how margins spread, and is the bank that the retained had
    before.
    """

    def __init__(self, teacher: Model, valid: Subset, rows: int, run: Run, compared: int = 0) -> None:
        self.teacher, self.valid, self.taken = teacher, valid, 0
        self.views, self.teacher_views = run.rng("views"), run.rng("teacher views")
        order = valid.ids[torch.randperm(len(valid), generator=run.rng("valid"))]
        self.chunks = order.tensor_split(max(1, len(order) // rows))
        self.known = dict[int, Embeddings]()
        self.others = min(max(0, -(-compared // len(self.chunks[-1])) - 1), len(self.chunks) - 1)

    def embed(self, number: int) -> Embeddings:
        """The embeddings of a batch under θ₀."""
        if number not in self.known:
            with torch.no_grad():
                batch = self.valid.batch(self.chunks[number], self.teacher_views)
                self.known[number] = Embeddings.of(self.teacher, batch)
        return self.known[number]

    def take(self) -> UnseenBatch:
        """The next batch."""
        first = self.taken % len(self.chunks)
        self.taken += 1
        batch, known = self.valid.batch(self.chunks[first], self.views), self.embed(first)
        if not self.others:
            return UnseenBatch(batch, known)
        numbers = [(first + 1 + number) % len(self.chunks) for number in range(self.others)]
        more = self.valid.batch(torch.cat([self.chunks[number] for number in numbers]), self.views)
        return UnseenBatch(batch, known, more, reduce(add, [self.embed(number) for number in numbers]))


def spread_of(values: Tensor) -> Tensor:
    """σ: the standard deviation of unseen examples' values, [V], never 0."""
    return values.std().clamp_min(1e-6)
