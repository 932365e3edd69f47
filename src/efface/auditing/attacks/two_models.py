"""Attack by someone who holds a model before and after unlearning; in closed form and cross-fitted, nothing is trained.

    φ(x) = (a, b, (b - a - c)²)        a, b: signals of x before and after; c: mean change over never-trained examples

The score is Fisher's discriminant on φ. Each half of both groups is scored by the direction fitted on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from efface import stats
from efface.auditing.attacks.discriminant import fisher_direction
from efface.auditing.attacks.signal_tables import halves_by_key, signal_table
from efface.auditing.observations import Observations


@dataclass(frozen=True, eq=False)
class HeldOutPlacements:
    """DeLong components of held-out scores; the mean of either one is the AUC."""

    v10: np.ndarray
    """Of each example of the first group, ``[m]``."""
    v01: np.ndarray
    """Of each example of the second group, ``[n]``."""

    @property
    def auc(self) -> float:
        """P(an example of the first group scores higher), ties by half."""
        return float(self.v10.mean())

    def gain_over(self, other: HeldOutPlacements, level: float) -> tuple[float, float, float]:
        """``(AUC minus the other's, low, high)``, paired by example."""
        d10, d01 = self.v10 - other.v10, self.v01 - other.v01
        error, freedom = stats.welch(d10, d01)
        margin = stats.zero_variance_margin(d10, d01, level)
        if error > 1e-9:
            margin = float(stdtrit(freedom, (1 + level) / 2)) * error
        value = float(d10.mean())
        return value, max(-1.0, value - margin), min(1.0, value + margin)


def describe_both(before: Observations, after: Observations, part: str, names: Sequence[str]) -> np.ndarray:
    """Return φ ``[n, 3 signals]`` of the examples of a part; only a, ``[n, signals]``, if both are the same model."""
    a = signal_table(before, part, names)
    if before.model == after.model:
        return a
    unseen = signal_table(after, "holdout", names) - signal_table(before, "holdout", names)
    spread = unseen.std(axis=0)
    b = signal_table(after, part, names)
    moved = (b - a - unseen.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return np.concatenate([a, b, moved**2], axis=1)


def attack_with_both(
    before: Observations, after: Observations, first: str, second: str, names: Sequence[str]
) -> HeldOutPlacements:
    """Tell the examples of the part ``first`` from those of ``second``.

    Args:
        before: The model before unlearning.
        after: The model after it; ``before`` itself for the attacker who has that alone.
        first: Part whose examples should score high.
        second: The other part.
        names: Signals that are read.

    """
    parts = (first, second)
    table = {part: describe_both(before, after, part, names) for part in parts}
    scale = np.concatenate([table[part] for part in parts]).std(axis=0)
    table = {part: x / np.where(scale > 0, scale, 1.0) for part, x in table.items()}
    halves = {part: halves_by_key(before, part) for part in parts}
    v10, v01 = np.zeros(len(table[first])), np.zeros(len(table[second]))
    for fold in (0, 1):
        w = fisher_direction(*(table[part][halves[part][1 - fold]] for part in parts))
        held = [halves[part][fold] for part in parts]
        v10[held[0]], v01[held[1]] = stats.placements(
            *(table[p][rows] @ w for p, rows in zip(parts, held, strict=True))
        )
    return HeldOutPlacements(v10, v01)
