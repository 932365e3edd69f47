"""Reference matching: give each forgotten example the margin that it has in models that never saw it.

    L(θ) = mean_R ℓ(θ; x) + Σ_s w_s · [ (ē_s + λ_s)² - λ_s² + α · mean_F (ē_s(x) - mean_F ē_s(x))² ]
                          + hold · Σ_s mean_R ( (s_θ₀(x) - s_θ(x))₊ / σ_s )² + alignment · (as in margin_matching)
    e_s(x) = [ s_θ(x) - mean_V s_θ - m_s(x) ] / σ_s
             with the gradient of s_θ(x) - mean_R s_θ
    ē_s, ē_s(x)   running means over steps: of mean_F e_s, and of e_s(x) over the steps that x was in
    λ_s    ← λ_s + rate · ē_s      in each step, from 0
    m_s(x) = b t_s(x) + (β - b) mean_F t_s                 what x would have, had it not been seen
    t_s(x) = mean over reference models that never saw x of [ s_k(x) - mean_V s_k ]
    b      = least-squares slope of s_θ₀ on t_s over V
    β      = b + (1 - b) · ( 1 - 2 var_V(t_s) (1/|F| + 1/|V|) / (mean_F t_s)² )₊

s: the margin in the backbone's features and in the output (:mod:`efface.unlearning.margins`), with V as the bank; σ_s:
standard deviation of V's margins under the checkpoint as received, θ₀. Reference models know two things that unseen
examples alone do not: where V lies by chance among examples like those trained on, and how hard the forgotten ones are.
One target is the mean of a few models over the same few views, and noisy: of a difference between targets the
checkpoint shows a part (b). But where the targets of a whole class or of one person lie beside V's by more than chance,
that is believed (β, after James and Stein). The targets come from the half of a reference bank that its audit does not
use. The squares pull from both sides. A square is at rest where its pull equals what pulls against it, the task and the
hold, and so leaves a part of the distance; the multiplier λ grows until the mean is 0, as in the method of multipliers
(Hestenes 1969, Powell 1969). What sets examples apart counts less than their mean (α): to move each of them by itself
costs the retained more. The weights of the last half of the steps are averaged, and a line search follows, as for
``margin_matching``.

What it costs grows with F and not with the data, as for ``margin_matching``: 48 steps and one for every 8 forgotten
examples, of 48 rows of R, 40 of F (a small F is repeated, with other views) and 40 of V.

Source      ours; requests of 1 to 60 examples are measured in docs/results/small_requests.md.
Departures  none.
Tests cover a target that is taken from another example; a model that starts at its targets and must not move them;
            targets of the audit's half; a distance that the square alone leaves; a slope found on other examples than
            V, or under another model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from efface.schema import NotNegative
from efface.unlearning.margins import BACKBONE, OUTPUT, GapPenalty, RunningMean
from efface.unlearning.matching import Distance, MatchedMargins, UnseenBatches
from efface.unlearning.protocol import MethodInputs, Needs
from efface.unlearning.targets import MarginTargets

SLOPE_BATCHES = 25
"""Batches of unseen examples at most that the slope is found on: a thousand examples."""


@dataclass(frozen=True, kw_only=True)
class ReferenceMatching(MatchedMargins):
    """Reference matching: how strongly each space is matched, and how firmly retained examples are held."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID | Needs.TARGETS
    individual: NotNegative = 0.1
    """Weight α of what is left of each example's own error, beside the mean of all; 0: only the mean is matched."""

    def distances(self, inputs: MethodInputs, unseen: UnseenBatches) -> dict[str, Distance]:
        """The errors of each example in each space, before the first step."""
        slopes = find_slopes(inputs.targets, unseen, self.tau)
        return {space: self.distance(space, inputs.targets, slopes[space]) for space in (BACKBONE, OUTPUT)}

    def distance(self, space: str, targets: MarginTargets, slope: float = 1.0) -> ExampleErrors:
        """The errors in one space, before the first step."""
        level, means = RunningMean(self.memory, self.multiplier), ExampleMeans(len(targets.ids), self.memory)
        return ExampleErrors(targets, targets.expect(space, slope), level, means, self.individual)


def find_slopes(targets: MarginTargets, unseen: UnseenBatches, tau: float) -> dict[str, float]:
    """How much of a difference between targets the checkpoint as received shows between unseen examples, by space."""
    ids, margins = list[Tensor](), dict[str, list[Tensor]]()
    for number, chunk in enumerate(unseen.chunks[:SLOPE_BATCHES]):
        ids.append(chunk)
        for space, values in unseen.embed(number).margins(len(chunk), tau).items():
            margins.setdefault(space, []).append(values)
    seen = torch.cat(ids)
    return {space: targets.slope(space, seen, torch.cat(values)) for space, values in margins.items()}


@dataclass
class ExampleErrors:
    """Errors of forgotten examples against their own targets, in one space."""

    targets: MarginTargets
    expected: Tensor
    """The margin that each would have, had it not been seen, less the mean of V, [n]."""
    level: RunningMean
    """Of the mean error of a step's rows."""
    means: ExampleMeans
    """Of each example's own error."""
    individual: float
    """α."""

    def penalize(self, ids: Tensor, f: Tensor, r: Tensor, v: Tensor, spread: Tensor) -> Tensor:
        """Add this step's errors, and return the penalty of their mean and of what sets them apart."""
        rows = self.targets.rows(ids).to(f.device)
        beside = r.mean() - r.mean().detach()
        error = (f - beside - v.mean() - self.expected.to(f)[rows]) / spread
        own = self.means.update(rows, error.detach())
        apart = own - own.mean()
        each = (apart.square() + 2 * apart * (error - error.detach())).mean()
        return self.level.update(error.mean(), GapPenalty.SQUARE) + self.individual * each

    def measure(self, ids: Tensor, f: Tensor, v: Tensor, spread: Tensor) -> float:
        """The mean error of some rows."""
        expected = self.expected.to(f)[self.targets.rows(ids).to(f.device)]
        return float((f - v.mean() - expected).mean() / spread)


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
