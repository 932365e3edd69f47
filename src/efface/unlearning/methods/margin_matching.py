"""Margin matching: lower the margins of forgotten examples to those of unseen ones, and only theirs.

    L(θ) = mean_R ℓ(θ; x) + Σ_s w_s · [ (gap_s + λ_s)² - λ_s² ] + hold · Σ_s mean_R ( (s_θ₀(x) - s_θ(x))₊ / σ_s )²
                          + alignment · Σ_s w_s · [ (gap'_s + λ'_s)² - λ'_s² ]
    gap_s  has the value       mean_F s_θ - mean_V s_θ, over σ_s, as a running mean over steps
           and the gradient of mean_F s_θ - mean_R s_θ, over σ_s, in the step's own batch
    λ_s  ← λ_s + rate · gap_s      in each step, from 0

s: the margin in the backbone's features and in the output (:mod:`efface.unlearning.margins`), with V as the bank; σ_s:
standard deviation of V's margins under the checkpoint as received, θ₀. gap': the same of the cosine of two views, in
spaces in which views are compared; the margin alone leaves a part of what makes the views of F agree. Unseen examples V
say how far to go, retained ones R in which direction: what lowers all margins alike has no gradient, so the model
cannot forget F by forgetting everything. V's own margins have no gradient; V's embeddings do, as part of the bank that
F is compared with. The square pulls from both sides: where F has fallen below V it is drawn up again. Alone it rests
where its pull equals that of the task and the hold, and a part of the gap is left; the multiplier λ grows until none
is, as in the method of multipliers (Hestenes 1969, Powell 1969). With ``penalty: hinge`` the term is w_s (gap_s)₊ and
only pushes down: each upward excursion of a noisy gap pushes and none is undone, so that a small F ends below V and
stands out by its absence. The gap of one batch is noisy (0.2 for 40 of F and 40 of V); hence the running mean. V must
be drawn like F and have some hundreds of examples: the gap to V is as uncertain as V's mean, with 200 of them 0.02 in
an AUC, and V tells little about a whole class or group. Where a reference bank exists, ``reference_matching`` knows
more of both.

A gap that is drawn to 0 from both sides swings around it while steps are large, the more the smaller F is, and where a
run ends is where that swing happens to be: the result has the mean weights of the last half of the steps
(:mod:`efface.unlearning.averaging`). Then the gap is measured on all of F and V, at both ends in the same views, and a
share a of the whole change is taken: θ₀ + a (θ - θ₀), with the a from 1/2 to 3/2 that brings the gaps closest to 0; the
head, which moves the output alone, takes a share of its own (:mod:`efface.unlearning.line_search`). The steps see 40
rows at a time, and by themselves end a tenth of a standard deviation to either side.

What it costs grows with F and not with the data: 48 steps and one for every 8 forgotten examples, of image-text models
twice as many, and a step reads 48 of R, 40 of F (a small F is repeated) and 40 of V, each time in other views: one pair
of views for all steps is off by as much at the end as at the start. The margins of R are those of the task's batch. The
line search shows F and V to three models, a thousand rows of each at most. Slower settings come closer where the cost
does not matter: ``steps=160, forget_batch_size=100, memory=0.9, optim.lr=0.001``.

Source      ours; measured in docs/results/small_requests.md, and with ``penalty: hinge`` in docs/results/frontier.md.
            A hinge with the gradient of mean_F alone lowers the margins of R and V together with F's: the push never
            ends.
Departures  none.
Tests cover a gradient into V's margins; a push that all examples share; a bank that contains the example itself; an
            example of R held from above; a push by the noise of one batch; a gap below 0 that nothing pulls back; a gap
            that the square alone leaves; too few rows of F, V or R where F is small; passes over R; views of V that
            stay; a share that moves one example as far as a hundred; a variance that falls below 0; views that
            still agree; a mean that leaves out a step; a head that is moved with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.unlearning.margins import BACKBONE, OUTPUT, GapPenalty, RunningMean
from efface.unlearning.matching import Distance, Gap, MatchedMargins, UnseenBatches
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class MarginMatching(MatchedMargins):
    """Margin matching: how strongly each space is matched, and how firmly retained examples are held."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID
    penalty: GapPenalty = GapPenalty.SQUARE
    """``square``: draws the gap to 0 from both sides; ``hinge``: only pushes down, as in earlier versions, and shows a
    small F as it is, without matching views or a line search."""

    def distances(self, inputs: MethodInputs, unseen: UnseenBatches) -> dict[str, Distance]:
        """The gap in each space, before the first step."""
        return {space: Gap(RunningMean(self.memory, self.multiplier), self.penalty) for space in (BACKBONE, OUTPUT)}

    def two_sided(self) -> bool:
        """Only the square is."""
        return self.penalty is GapPenalty.SQUARE
