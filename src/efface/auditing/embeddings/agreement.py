"""How well views agree: of one item, of two, before and after; and whether a change is particular to one item.

    AM[i, j] = E_{t, t'} cos(z(t x_i), z(t' x_j))

z: embedding. t, t': random views, on the diagonal two different ones. All arrays are ``[n, views, d]``.
Tests kill  a view compared with itself; the true pairing left out of p.
"""

from __future__ import annotations

import math

import numpy as np

from efface import stats
from efface.auditing.audits.alignment_matrix import alignment_matrix
from efface.auditing.embeddings.arrays import EmbeddingPair, EmbeddingSet
from efface.auditing.observations import Observations

SPACE = "embeddings"
SIGNAL = f"{SPACE}.alignment"
DRAWS, PAIRED = 999, 5000
"""Permutations, and the items (a fixed random sample) that the pairing test is made on at most."""
SAMPLED = 500
"""Items whose pairs are looked at to see whether anything changed."""
STILL = 1e-5
"""Largest change of a cosine that is rounding of 32-bit numbers."""


def view_agreement(z: np.ndarray) -> np.ndarray:
    """The diagonal of AM: mean cosine of two different views of each item, float64 ``[n]`` from ``[n, views, d]``."""
    z = unit_rows_float64(z)
    views, center = z.shape[1], z.sum(axis=1)
    return ((center**2).sum(axis=1) - (z**2).sum(axis=(1, 2))) / (views * (views - 1))


def cross_item_similarity(z: np.ndarray) -> float:
    """Mean of AM off the diagonal: of two views of different items."""
    center = unit_rows_float64(z).mean(axis=1)
    n, whole = len(center), center.sum(axis=0)
    return float((whole @ whole - (center**2).sum()) / (n * (n - 1)))


def pairing_statistic(before: np.ndarray, after: np.ndarray, orders: np.ndarray) -> tuple[float, np.ndarray]:
    """``(T, T of each order)``: mean change of cosine between the first half of item i's views and the second half of
    item ``order[i]``'s; ``orders`` ``[draws, n]``. T is that of the true pairing.
    """
    halves: list[tuple[np.ndarray, np.ndarray]] = []
    for z in (before, after):
        u, cut = unit_rows_float64(z), z.shape[1] // 2
        halves.append((u[:, :cut].mean(axis=1), u[:, cut:].mean(axis=1)))
    (a, b), (c, d) = halves
    change = a @ b.T - c @ d.T
    rows = np.arange(len(a))
    return float(change[rows, rows].mean()), np.array([change[rows, order].mean() for order in orders])


def pairing_test(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """``(T less the mean over random pairings, one-sided p)``: views of one item lost more than views of two."""
    rng = np.random.default_rng(seed)
    if len(before) > PAIRED:
        kept = np.sort(rng.permutation(len(before))[:PAIRED])
        before, after = before[kept], after[kept]
    orders = np.stack([rng.permutation(len(before)) for _ in range(DRAWS)])
    seen, drawn = pairing_statistic(before, after, orders)
    return seen - float(drawn.mean()), float(1 + (drawn >= seen - 1e-12).sum()) / (DRAWS + 1)


def unchanged(pair: EmbeddingPair) -> bool:
    """Whether no cosine changed but for rounding: of every item's views, and between a sample of the items."""
    some = slice(0, None, max(1, len(pair) // SAMPLED))
    maps = [alignment_matrix(seen.z[some]) for seen in (pair.before, pair.after)]
    own = view_agreement(pair.before.z) - view_agreement(pair.after.z)
    return max(float(np.abs(own).max()), float(np.abs(maps[0] - maps[1]).max())) < STILL


def unit_rows_float64(z: np.ndarray) -> np.ndarray:
    """Each row divided by its length, float64."""
    z = z.astype(np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def alignment_observations(forget: EmbeddingPair, control: EmbeddingPair, when: str) -> Observations:
    """The alignment of both parts as observations, so that the one set of verdict rules applies."""
    arrays: dict[str, np.ndarray] = {}
    for part, pair in (("forget", forget), ("holdout", control)):
        seen: EmbeddingSet = getattr(pair, when)
        z = unit_rows_float64(seen.z).astype(np.float32)
        upper = np.triu_indices(z.shape[1], 1)
        arrays[f"{part}/keys"] = seen.keys
        arrays[f"{part}/features"] = seen.z.mean(axis=1)
        arrays[f"{part}/{SPACE}.pairs"] = np.matmul(z, z.transpose(0, 2, 1))[:, upper[0], upper[1]]
    return Observations(when, "owner", arrays, {"spaces": [SPACE]})


def clustered_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean (Student)."""
    reach = float(stats.stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach
