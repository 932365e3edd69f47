"""What kind of request is rehearsed, and the sets of retained examples that stand for it. NumPy only."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from efface.data.dataset import Data
from efface.data.split_parts import Split
from efface.errors import EffaceError

ROUNDS = 4
"""How often an example is rehearsed at most, each time with other ones, where the retained do not hold more sets."""
FEWEST_APART = 3
"""Disjoint sets that the retained must hold at least to be rehearsed again: else each is a large part of them."""
LIKE = 2.0
"""A group or class stands for another one if neither is more than so many times as large."""


def size_class(size: int) -> int:
    """Number the size of a request: sizes within a factor of about √2 share a number."""
    return round(2 * math.log2(max(1, size)))


def draw_sets(data: Data, base: Split, kind: str, size: int, count: int, seed: int, units: int = 1) -> list[np.ndarray]:
    """Draw sets of retained examples, each like a request; fewer if there are not so many.

    Random sets are disjoint as long as the retained examples last; then each of them comes again, with other ones.
    Whole groups and classes come once, so many together as the request asks for.

    Args:
        data: The data set.
        base: The split whose ``retain`` they are drawn from.
        kind: ``random``: any examples. ``group``, ``class``: whole ones of like size.
        size: Number of examples of the request that they stand for.
        count: How many.
        seed: Seed of the draw.
        units: Groups or classes in each set.

    Returns:
        Positions of each set, sorted.

    Raises:
        EffaceError: The data has no groups or classes.

    """
    rows = base.retain
    if kind == "random":
        each = len(rows) // max(1, size)
        drawn: list[np.ndarray] = []
        for again in range(ROUNDS if each >= FEWEST_APART else 1):
            texts = [f"{key}\0{again}" if again else str(key) for key in data.keys[rows]]
            order = rows[np.argsort(np.array([_number(text, seed) for text in texts], dtype=np.uint64))]
            drawn += [np.sort(order[number * size : (number + 1) * size]) for number in range(each)]
            if len(drawn) >= count:
                break
        return drawn[:count]
    names = data.group if kind == "group" else None if data.y is None else data.y.astype(str)
    if names is None:
        raise EffaceError(f"The data has no {kind} to rehearse.", remedy="Use --like random.")
    found = [name for name in np.unique(names[rows]).tolist() if name not in ("", "-1")]
    sets = {name: rows[names[rows] == name] for name in found}
    alike = [name for name, at in sets.items() if size / LIKE <= units * len(at) <= size * LIKE]
    order_of = sorted(alike, key=lambda name: _number(name, seed))
    together = [order_of[first : first + units] for first in range(0, len(order_of) - units + 1, units)]
    return [np.sort(np.concatenate([sets[name] for name in names])) for names in together[:count]]


def _number(text: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0rehearsal\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)
