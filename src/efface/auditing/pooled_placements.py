"""Rehearsed requests placed together among never-trained examples: the pooled AUC and its interval.

The error has three parts: requests (their examples share a model), examples that are in several requests (their
placements are alike), and never-trained examples (all requests share them). The first two are the clustered variance by
request and by example, less that of the single placements, which both count (Cameron, Gelbach and Miller 2011).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from efface import stats
from efface.auditing import signals
from efface.auditing.observations import Observations


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """One rehearsed request: the model that was to forget it, and what its scores are calibrated by."""

    observed: Observations
    references: tuple[Observations, ...] = ()
    """What the models of a reference bank score on the same examples; empty without a bank."""

    def scores(self, part: str, signal: str) -> np.ndarray:
        """Scores ``[n]`` of a part, calibrated where there is a bank."""
        return signals.membership_scores(self.observed, self.references, part, signal)

    def take_rows(self, rows: Mapping[str, np.ndarray]) -> Rehearsal:
        """The same with some rows of some parts alone; ``rows``: their positions by part, others stay whole."""
        return Rehearsal(_take_rows(self.observed, rows), tuple(_take_rows(one, rows) for one in self.references))


def _take_rows(observed: Observations, rows: Mapping[str, np.ndarray]) -> Observations:
    arrays = {
        name: value[rows[part]] if (part := name.partition("/")[0]) in rows else value
        for name, value in observed.arrays.items()
    }
    return replace(observed, arrays=arrays)


@dataclass(frozen=True, eq=False)
class Placements:
    """Placements of several sets among the same never-trained examples."""

    sets: np.ndarray
    """A weighted value for each set, float [S]; their mean is the AUC."""
    others: np.ndarray
    """Share of members above each never-trained example, averaged over the sets, float [n]."""
    repeated: float = 0.0
    """Variance that the pooled AUC has more because examples are in several sets; 0 if none is."""
    examples: int = 2
    """Number of examples that are in several sets, at least 2."""

    @property
    def value(self) -> float:
        """The pooled AUC."""
        return float(np.clip(self.sets.mean(), 0, 1))

    def _scale(self) -> tuple[float, float]:
        if len(self.sets) < 2 or len(self.others) < 2:
            return 0.0, 1.0  # nothing is known of how far they spread
        error, freedom = stats.welch(self.sets, self.others)
        if not error or not self.repeated:
            return error, freedom
        total = error**2 + self.repeated
        return math.sqrt(total), total**2 / (error**4 / freedom + self.repeated**2 / (self.examples - 1))

    def interval(self, level: float) -> tuple[float, float, float]:
        """The pooled AUC and its two-sided interval: ``(value, low, high)``."""
        error, freedom = self._scale()
        if not 0 < self.value < 1 or error == 0:
            return self.value, 0.0, 1.0
        margin = float(stdtrit(freedom, (1 + level) / 2)) * error / (self.value * (1 - self.value))
        center = float(logit(self.value))
        return self.value, float(expit(center - margin)), float(expit(center + margin))

    def p_values(self, null: float) -> tuple[float, float]:
        """P-values of "the AUC is at most ``null``" and of "it is at least ``null``"."""
        error, freedom = self._scale()
        if not 0 < self.value < 1 or error == 0:
            return 1.0, 1.0
        t = (float(logit(self.value)) - float(logit(null))) * self.value * (1 - self.value) / error
        return float(stdtr(freedom, -t)), float(stdtr(freedom, t))


def pool_placements(
    rehearsals: Sequence[Rehearsal], signal: str, part: str = "forget", other: str = "holdout"
) -> Placements:
    """Place a part of every rehearsal among its never-trained examples.

    Args:
        rehearsals: The rehearsals.
        signal: The signal.
        part: Which examples are placed.
        other: The never-trained examples among which they are placed.

    """
    means, sizes = np.zeros(len(rehearsals)), np.zeros(len(rehearsals))
    total: dict[str, float] = {}
    weight: dict[str, float] = {}
    placed: dict[str, list[float]] = {}
    for number, one in enumerate(rehearsals):
        members, unseen = one.scores(part, signal), one.scores(other, signal)
        below, above = stats.placements(members, unseen)
        means[number], sizes[number] = below.mean(), len(below)
        for key, place in zip(_scored_keys(one, part, signal), below.tolist(), strict=True):
            placed.setdefault(key, []).append(place)
        for key, share in zip(_scored_keys(one, other, signal), above.tolist(), strict=True):
            total[key] = total.get(key, 0.0) + share * len(below)
            weight[key] = weight.get(key, 0.0) + len(below)
    pooled = float((means * sizes).sum() / sizes.sum())
    # The pooled value is a ratio of sums; these are its linearized contributions.
    sets = pooled + sizes / sizes.mean() * (means - pooled)
    several = [np.array(places) - pooled for places in placed.values() if len(places) > 1]
    more = sum(float(apart.sum() ** 2 - (apart**2).sum()) for apart in several) / sizes.sum() ** 2
    shares = np.array([total[key] / weight[key] for key in total])
    return Placements(sets, shares, max(0.0, more), max(2, len(several)))


def _scored_keys(one: Rehearsal, part: str, signal: str) -> list[str]:
    return one.observed.of(part, "keys")[signals.scored_rows(one.observed, part, signal)].tolist()


def all_have_signal(rehearsals: Sequence[Rehearsal], name: str, part: str) -> bool:
    """Whether a signal was observed on a part by every one of them."""
    return all(signals.has_signal(one.observed, part, name) for one in rehearsals)
