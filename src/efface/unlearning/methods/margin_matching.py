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
and stands out by its absence. The gap of one batch is noisy (0.2 for 40 of F and 40 of V); hence the running mean. V
must be drawn like F and have some hundreds of examples: with 50 the method stops short, and V tells little about a
whole class or group.

What it costs grows with F and not with the data: 24 steps and one for every 8 forgotten examples, and a step reads 48
of R, 40 of F (a small F is repeated, with other views) and 40 of V. The margins of R are those of the task's batch. V
keeps its views, so that θ₀ sees each batch of V once. Slower settings come closer where the cost does not matter:
``steps=160, forget_batch_size=100, memory=0.9, optim.lr=0.001``.

Source      ours; measured in docs/small_requests.md, and with ``penalty: hinge`` in docs/results/frontier.md. A hinge
            with the gradient of mean_F alone lowers the margins of R and V together with F's: the push never ends.
Departures  none.
Tests cover a gradient into V's margins; a push that all examples share; a bank that contains the example itself; an
            example of R held from above; a push by the noise of one batch; a gap below 0 that nothing pulls back; too
            few rows of F, V or R where F is small; passes over R; views of V that θ₀ did not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, Decay, NotNegative, PairCount, Positive
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, OptimizerType
from efface.unlearning.margins import (
    BACKBONE,
    OUTPUT,
    Embeddings,
    GapPenalty,
    RunningMean,
    compute_margins,
    margin_gap,
    repeat_to,
)
from efface.unlearning.protocol import MethodInputs, Needs

LEAST_STEPS, EXAMPLES_PER_STEP = 24, 8
"""Default number of steps: the first, and one more for so many forgotten examples."""
MOST_STEPS, LONG_TRAINING = 160, 2000
"""Most steps of this method by default, up to a tenth of the original's, where those were fewer than the second."""
LARGEST_BATCH = 48
"""Retained examples per step at most, by default: the task only keeps the encoder in place."""


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
    memory: Decay = 0.8
    """Share of earlier steps in the running mean of a gap; 0: each step uses its own batch alone."""
    tau: Positive = 0.1
    """Temperature τ of the margins in spaces of embeddings."""
    steps: Count | None = None
    """Optimizer steps; by default 24 and one for every 8 of F, but a twentieth of retraining's (of few: a tenth)."""
    epochs: Count | None = None
    """In place of ``steps``: as many as so many passes over R take at the original's batch size."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's, at most 48."""
    forget_batch_size: PairCount = 40
    """Rows of F, of V and of R per step for the margins; a smaller F is repeated with other views (not by hinge)."""
    optim: Optim = field(default_factory=lambda: Optim(rule=OptimizerType.ADAMW, lr=4e-3, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with a batch of R for the task and for its margins, and one each of F and V, per step."""
        if len(inputs.valid) < 2:
            raise EffaceError(
                f"margin_matching compares with unseen examples, and `valid` has {len(inputs.valid)}.",
                remedy="Set split.valid to at least 2 examples (better 500) when pretraining.",
            )
        size, many = self.batch_size or min(inputs.batch_size(None), LARGEST_BATCH), self.forget_batch_size
        teacher, steps, known = frozen_copy(model), self._steps(inputs), dict[int, Embeddings]()
        optimizer = self.optim.build(model, steps)
        gaps = {space: RunningMean(self.memory) for space in (BACKBONE, OUTPUT)}
        forget, order = inputs.forget.cycle(many, run.rng("forget")), run.rng("valid")
        valid = inputs.valid.ids[torch.randperm(len(inputs.valid), generator=order)]
        chunks = valid.tensor_split(max(1, len(valid) // many))

        def terms(batch: Batch) -> LossTerms:
            number = optimizer.taken % len(chunks)
            unseen = inputs.valid.batch(chunks[number], run.rng("views", number))
            if number not in known:
                with torch.no_grad():
                    known[number] = Embeddings.of(teacher, unseen)
            f = repeat_to(forget, many if self.penalty is GapPenalty.SQUARE else 1)
            output = model.objective.loss(model, batch)
            matched = self.terms(teacher, model, f, batch.rows(0, many), unseen, known[number], gaps)
            losses = {"task": output.per_example.mean(), **matched}
            return LossTerms(losses, output.carry, extra_examples=len(f) + len(unseen))

        batches = inputs.retain.cycle(size, run.rng("retain"))
        train_steps(model, islice(batches, steps), terms, optimizer, run)
        return model

    def terms(
        self,
        teacher: Model,
        model: Model,
        forgotten: Batch,
        retained: Batch,
        unseen: Batch,
        known: Embeddings,
        gaps: Mapping[str, RunningMean],
    ) -> dict[str, Tensor]:
        """The weighted gap of each space, and ``hold``; terms of weight 0 are left out. Updates ``gaps``.

        Args:
            teacher: θ₀.
            model: θ.
            forgotten: Rows of F.
            retained: Rows of R.
            unseen: Rows of V, the bank.
            known: The embeddings of ``unseen`` under θ₀.
            gaps: The running mean of each space.

        """
        weights = {BACKBONE: self.backbone, OUTPUT: self.output}
        if not any(weights.values()):
            return {}
        now = compute_margins(model, forgotten + retained + unseen, len(unseen), self.tau)
        with torch.no_grad():
            before = (Embeddings.of(teacher, retained) + known).margins(len(unseen), self.tau)
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

    def _steps(self, inputs: MethodInputs) -> int:
        """As many as F needs; at most a twentieth of the original's, or a tenth of few."""
        per_pass = inputs.retain.count_batches(inputs.batch_size(self.batch_size))
        if self.epochs is not None:
            return self.epochs * per_pass
        if self.steps is not None:
            return self.steps
        wanted, recipe = LEAST_STEPS + len(inputs.forget) // EXAMPLES_PER_STEP, inputs.original_recipe
        if recipe is None:
            return wanted
        original = recipe.epochs * per_pass
        few = min(original // 10, MOST_STEPS) if original < LONG_TRAINING else 0
        return max(1, min(wanted, max(original // 20, few)))
