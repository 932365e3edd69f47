"""Fisher's linear discriminant between members and non-members: in closed form, nothing is trained.

    w = (S + λI)⁻¹ (μ_members - μ_others)        λ = shrinkage · tr(S) / d

S: pooled covariance within the two groups. Fit a direction on one half of the examples, and use it on the other.

Source      Fisher 1936; a covariance shrunk towards a multiple of the identity: Ledoit and Wolf 2004.
Departures  the share of the identity is fixed.
"""

from __future__ import annotations

import numpy as np

SHRINKAGE = 0.1
"""λ as a share of the mean variance; more than nothing, since features may be collinear."""
FIT_CAP = 1000
"""Largest number of examples of each group that a direction is fitted on (a random sample by key)."""


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
