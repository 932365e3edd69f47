"""Agreement of views of the same item and of different items, before and after unlearning.

    AM[i, j] = E_{t, t'} cos(z(t x_i), z(t' x_j))

z: embedding. t, t': random views; on the diagonal two different ones. All arrays are ``[n, views, d]``.

Tests cover a view compared with itself; the true pairing left out of p.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np

from efface import stats
from efface.auditing.audits.alignment_matrix import alignment_matrix
from efface.auditing.embeddings.arrays import EmbeddingPair, EmbeddingSet
from efface.auditing.observations import Observations
from efface.auditing.observers.rows import RowArrays
from efface.auditing.representations import unit_rows
from efface.data.array_files import row_chunks, take_rows

SPACE = "embeddings"
SIGNAL = f"{SPACE}.alignment"
DRAWS, PAIRED = 999, 5000
"""Number of permutations of the pairing test, and the largest number of items in it (a random sample)."""
SAMPLED = 500
"""Number of items whose pairs are compared to detect any change."""
STILL = 1e-5
"""Largest change of a cosine that can be due to rounding of 32-bit numbers."""


def view_agreement(z: np.ndarray) -> np.ndarray:
    """Return the diagonal of AM, the mean cosine of two different views of each item: float64 ``[n]``."""
    found, views = np.empty(len(z)), z.shape[1]
    for rows in row_chunks(z):
        u = _unit_views(z[rows])
        found[rows] = ((u.sum(axis=1) ** 2).sum(axis=1) - (u**2).sum(axis=(1, 2))) / (views * (views - 1))
    return found


def cross_item_similarity(z: np.ndarray) -> float:
    """Return the mean of AM off the diagonal: the mean cosine of views of two different items."""
    n, total, squares = len(z), np.zeros(z.shape[2]), 0.0
    for rows in row_chunks(z):
        center = _unit_views(z[rows]).mean(axis=1)
        total += center.sum(axis=0)
        squares += float((center**2).sum())
    return float((total @ total - squares) / (n * (n - 1)))


def pairing_statistic(before: np.ndarray, after: np.ndarray, orders: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute the mean drop of the cosine between the first half of item i's views and the second half of item j's.

    Args:
        before: Embeddings ``[n, views, d]`` before unlearning.
        after: Embeddings of the same items after unlearning.
        orders: Permutations ``[draws, n]`` that assign j = order[i].

    Returns:
        The statistic T of the true pairing (j = i), and those of the ``orders``.

    """
    halves: list[tuple[np.ndarray, np.ndarray]] = []
    for z in (before, after):
        u, cut = _unit_views(z), z.shape[1] // 2
        halves.append((u[:, :cut].mean(axis=1), u[:, cut:].mean(axis=1)))
    (a, b), (c, d) = halves

    def drop(order: np.ndarray) -> float:
        return (float(np.vdot(a, b[order])) - float(np.vdot(c, d[order]))) / len(a)

    return drop(np.arange(len(a))), np.array([drop(order) for order in orders])


def pairing_test(before: np.ndarray, after: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Test whether views of the same item lost more agreement than views of different items.

    Returns:
        T minus its mean over random pairings, and the one-sided permutation p.

    """
    rng = np.random.default_rng(seed)
    if len(before) > PAIRED:
        kept = np.sort(rng.permutation(len(before))[:PAIRED])
        before, after = take_rows(before, kept), take_rows(after, kept)
    orders = np.stack([rng.permutation(len(before)) for _ in range(DRAWS)])
    seen, drawn = pairing_statistic(before, after, orders)
    return seen - float(drawn.mean()), float(1 + (drawn >= seen - 1e-12).sum()) / (DRAWS + 1)


def unchanged(pair: EmbeddingPair) -> bool:
    """Whether no cosine changed beyond rounding, within every item and between a sample of the items."""
    some = np.arange(0, len(pair), max(1, len(pair) // SAMPLED))
    maps = [alignment_matrix(take_rows(seen.z, some)) for seen in (pair.before, pair.after)]
    own = view_agreement(pair.before.z) - view_agreement(pair.after.z)
    return max(float(np.abs(own).max()), float(np.abs(maps[0] - maps[1]).max())) < STILL


def _unit_views(z: np.ndarray) -> np.ndarray:
    return unit_rows(z.astype(np.float64), np.float64)


def alignment_observations(forget: EmbeddingPair, control: EmbeddingPair, when: str) -> Observations:
    """Convert the embeddings of both parts into observations, so that the rules of the verdict apply.

    Features are kept of those that were never trained on; where they are many, in a temporary file without a name.
    """
    arrays: dict[str, np.ndarray] = {}
    first: np.ndarray = getattr(control, when).z[:1, 0]
    means = RowArrays(len(control), {"features": first}, Path(tempfile.gettempdir()))
    for part, pair in (("forget", forget), ("holdout", control)):
        seen: EmbeddingSet = getattr(pair, when)
        upper = np.triu_indices(pair.views, 1)
        pairs = np.empty((len(pair), len(upper[0])), np.float32)
        for rows in row_chunks(seen.z):
            z = _unit_views(seen.z[rows]).astype(np.float32)
            pairs[rows] = np.matmul(z, z.transpose(0, 2, 1))[:, upper[0], upper[1]]
            if part == "holdout":
                means.write(rows.start, {"features": seen.z[rows].mean(axis=1)})
        arrays |= {f"{part}/keys": seen.keys, f"{part}/{SPACE}.pairs": pairs}
    arrays["holdout/features"] = means.finish()["features"]
    return Observations(when, "owner", arrays, {"spaces": [SPACE]})


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean (Student's t)."""
    reach = float(stats.stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - reach, float(values.mean()) + reach
