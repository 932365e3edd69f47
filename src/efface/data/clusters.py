"""Groups of examples that are copies of each other, so that a draw never separates them. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from efface.data.dataset import Data
from efface.data.duplicates import CANDIDATE, FINE, NEAR, ROWS_AT_ONCE, THUMBNAIL_SIDE, edges, hash_pixels


def cluster_copies(data: Data, rows: np.ndarray) -> np.ndarray:
    """Number the examples so that exact and near copies have the same number, int64 [m].

    Two examples are near copies if the edges of both correlate above 0.99 (:mod:`efface.data.duplicates`), or if a
    third one is a near copy of both.

    Args:
        data: The data set.
        rows: Positions of the examples [m].

    """
    return _join(len(rows), _pairs(data, rows))


def join_units(names: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Join units of which each has a copy of a picture in the next.

    Args:
        names: Name of the unit of each example, str [m]; units of a single picture begin with ``copy``.
        copies: Number of the picture of each example, [m]: see :func:`cluster_copies`.

    Returns:
        The names, of which those of joined units are the same: the first by the alphabet, of a group or class if there
        is one. Units that share no picture keep theirs.

    """
    known, unit = np.unique(names, return_inverse=True)
    order = sorted(range(len(known)), key=lambda at: (str(known[at]).startswith("copy "), str(known[at])))
    rank = np.empty(len(known), dtype=np.int64)
    rank[order] = np.arange(len(known))
    first_with: dict[int, int] = {}
    pairs = [
        (first_with.setdefault(copy, at), at) for copy, at in zip(copies.tolist(), rank[unit].tolist(), strict=True)
    ]
    return known[np.array(order, dtype=np.int64)[_join(len(known), pairs)]][rank[unit]]


def _join(count: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Number things so that those of a pair have the same number, the smallest of all that hang together, [count]."""
    parent = np.arange(count)

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = int(parent[at])
        return at

    for first, second in pairs:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)
    return np.array([root(at) for at in range(count)], dtype=np.int64)


def _pairs(data: Data, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices into ``rows`` whose pictures are copies; near ones of one color only if they are equal."""
    if len(rows) < 2:
        return
    first_with: dict[bytes, int] = {}
    for at, row in enumerate(rows):
        content = hash_pixels(data, row)
        if first_with.setdefault(content, at) != at:
            yield first_with[content], at
    starts = range(0, len(rows), ROWS_AT_ONCE)
    coarse = np.concatenate([edges(data.x[rows[s : s + ROWS_AT_ONCE]], THUMBNAIL_SIDE) for s in starts])
    for start in starts:
        alike = coarse[start : start + ROWS_AT_ONCE] @ coarse[start:].T
        first, second = np.nonzero(alike > CANDIDATE)
        first, second = first[second > first] + start, second[second > first] + start
        for at in range(0, len(first), ROWS_AT_ONCE):
            a, b = first[at : at + ROWS_AT_ONCE], second[at : at + ROWS_AT_ONCE]
            likeness = np.einsum("nd,nd->n", edges(data.x[rows[a]], FINE), edges(data.x[rows[b]], FINE))
            same = likeness > NEAR
            yield from zip(a[same].tolist(), b[same].tolist(), strict=True)
