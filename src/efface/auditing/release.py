"""Is a real request like its rehearsals? Its numbers must lie in the range that they predict for one more.

Rehearsals look at a sample of the retained and of the never-trained examples, the same in all of them, and a real
request at more. A sample is a little easier or harder than another one, in every model alike, so the real request is
placed among the examples that the rehearsals looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from efface import stats
from efface.auditing import signals
from efface.auditing.pooled_placements import Rehearsal, all_have_signal

RANGE = 0.95
"""Probability of the prediction range of one more request, over all of its checks together."""
REDUCED_PARTS = ("retain", "holdout", "spare", "control")
"""Parts of which rehearsals observe a sample."""
DRAWN_FROM_EACH = 5
"""Small requests that are drawn from a rehearsal of many examples."""
FEWEST_SHARED = 8
"""With fewer examples in common, those of the real request stay: they were matched to it."""


@dataclass(frozen=True)
class ReleaseCheck:
    """Whether the real request is like its rehearsals in one number."""

    name: str
    value: float
    low: float
    """Lower end of the range that the rehearsals predict."""
    high: float

    @property
    def inside(self) -> bool:
        """Whether the real request is in that range."""
        return self.low <= self.value <= self.high


def check_release(
    rehearsals: Sequence[Rehearsal], real: Rehearsal, names: Sequence[str], parts: Sequence[str] = ("forget", "retain")
) -> tuple[ReleaseCheck, ...]:
    """Compare the real request with the range that its rehearsals predict for one more.

    Args:
        rehearsals: The rehearsals.
        real: The real request, observed in the same way.
        names: The signals that decide.
        parts: Which of the forgotten and the retained are compared.

    Returns:
        For each signal the mean placement of the forgotten, and of the retained where they were observed.

    """
    real = keep_rehearsed_examples(real, rehearsals)
    wanted: list[tuple[str, np.ndarray, float]] = []
    for name in names:
        for part in parts:
            everyone = [*rehearsals, real]
            if not all_have_signal(everyone, name, part):
                continue
            means = np.array([_mean_placement(one, name, part) for one in everyone])
            wanted.append((f"{name} of the {'forgotten' if part == 'forget' else 'retained'}", means[:-1], means[-1]))
    count, checks = len(rehearsals), max(1, len(wanted))
    reach = float(stdtrit(count - 1, 1 - (1 - RANGE) / 2 / checks)) * math.sqrt(1 + 1 / count)
    found: list[ReleaseCheck] = []
    for name, means, value in wanted:
        middle, wide = float(means.mean()), reach * float(means.std(ddof=1))
        found.append(ReleaseCheck(name, float(value), middle - wide, middle + wide))
    return tuple(found)


def draw_requests(rehearsals: Sequence[Rehearsal], size: int) -> list[Rehearsal]:
    """Draw small requests from rehearsals of many more examples, such as the models of a bank.

    Args:
        rehearsals: The rehearsals.
        size: Examples in a request; of rehearsals with fewer all are taken.

    """
    drawn: list[Rehearsal] = []
    for number, one in enumerate(rehearsals):
        for again in range(DRAWN_FROM_EACH):
            chosen = np.random.default_rng([number, again]).permutation(one.observed.count("forget"))[:size]
            drawn.append(one.take_rows({"forget": np.sort(chosen)}))
    return drawn


def _mean_placement(one: Rehearsal, name: str, part: str) -> float:
    other = signals.nonmember_part(one.observed, part)
    other = other if signals.has_signal(one.observed, other, name) else "holdout"
    return float(stats.placements(one.scores(part, name), one.scores(other, name))[0].mean())


def keep_rehearsed_examples(real: Rehearsal, rehearsals: Sequence[Rehearsal]) -> Rehearsal:
    """Leave of a request's sampled parts what was observed in its rehearsals too."""
    rows: dict[str, np.ndarray] = {}
    for part in REDUCED_PARTS:
        looked = [one.observed.of(part, "keys") for one in rehearsals if one.observed.count(part)]
        if looked and real.observed.count(part):
            kept = np.isin(real.observed.of(part, "keys"), np.unique(np.concatenate(looked)))
            if kept.sum() >= FEWEST_SHARED:
                rows[part] = np.flatnonzero(kept)
    return real.take_rows(rows)
