"""Fisher's linear discriminant between members and non-members: in closed form, nothing is trained.

    w = (S + λI)⁻¹ (μ_members - μ_others)        λ = shrinkage · tr(S) / d

S: pooled covariance within the two groups. Directions are fitted on one half of the examples and used on the other,
by key.

Source      Fisher 1936; a covariance shrunk towards a multiple of the identity: Ledoit and Wolf 2004.
Departures  the share of the identity is fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efface.auditing import signals
from efface.auditing.observations import Observations

SHRINKAGE = 0.1
"""λ as a share of the mean variance; more than nothing, since features may be collinear."""
FIT_CAP = 1000
"""Largest number of examples of each group that a direction is fitted on (a random sample by key)."""
FEWEST_COMPARED = 20
"""Examples of a group below which nothing is estimated."""


def fisher_direction(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute w ``[d]`` from features ``[n, d]`` of both groups; the first rows of each are used if there are many."""
    members, others = (np.asarray(x[:FIT_CAP], dtype=np.float64) for x in (members, others))
    gap = members.mean(axis=0) - others.mean(axis=0)
    z = np.concatenate([members - members.mean(axis=0), others - others.mean(axis=0)])
    n, d = z.shape
    ridge = SHRINKAGE * float((z**2).sum()) / (n * d)
    if ridge == 0:
        return gap
    if d <= n:
        return np.linalg.solve(z.T @ z / n + ridge * np.eye(d), gap)
    inner = np.linalg.solve(z @ z.T / n + ridge * np.eye(n), z @ gap)
    return (gap - z.T @ inner / n) / ridge


def halves_by_key(observed: Observations, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of a part into two random halves that depend on the keys only."""
    order = signals.random_order_by_key(observed.of(part, "keys"))
    return order[::2], order[1::2]


def shared_signals(models: Sequence[Observations], parts: Sequence[str]) -> tuple[str, ...]:
    """Return the signals that every model has for every example of every part."""

    def whole(name: str) -> bool:
        return all(
            signals.has_signal(o, part, name) and len(signals.scored_rows(o, part, name)) == o.count(part)
            for o in models
            for part in parts
        )

    return tuple(name for name in signals.signal_names(models[0].spaces) if whole(name))


def signal_table(observed: Observations, part: str, names: Sequence[str]) -> np.ndarray:
    """Stack signals of a part as columns, float64 ``[n, signals]``."""
    return np.stack([signals.scores(observed, part, name) for name in names], axis=1)
