"""SISA (Bourtoule et al., 2021), one shard after the other: no stages that are kept, no addresses, no reuse."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

Weights = TypeVar("Weights")


def place(unit: str, seed: int, purpose: str, count: int) -> int:
    """The shard or slice of one unit: a hash of it, the seed and what it is for."""
    digest = hashlib.blake2b(f"{purpose}:{seed}:{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def sisa(
    keys: Sequence[str],
    shards: int,
    slices: int,
    seed: int,
    start: Callable[[int], Weights],
    train: Callable[[Weights, list[int], int, int], Weights],
) -> list[Weights]:
    """Train every shard on its first slice, then on its first two, and so on.

    ``start(shard)`` gives untrained weights, ``train(weights, rows, shard, slice)`` goes on training on these rows.
    """
    found = []
    for shard in range(shards):
        mine = [row for row, key in enumerate(keys) if place(key, seed, "shard", shards) == shard]
        weights = start(shard)
        for last in range(slices):
            rows = [row for row in mine if place(keys[row], seed, "slice", slices) <= last]
            weights = train(weights, rows, shard, last)
        found.append(weights)
    return found
