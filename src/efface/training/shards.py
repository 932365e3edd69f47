"""Sharded training (SISA): a model of several networks, each trained on examples of its own, slice after slice.

    shard(x) = h(seed, unit of x) mod S          slice(x) = h'(seed, unit of x) mod R
    stage r of shard k: from the weights after stage r - 1, train on slices 1 ... r of shard k

S: shards; R: slices of each; the unit is the example or its group. Which shard and slice an example belongs to depends
on its own unit and the seed alone, never on other examples: without one example, all others stay where they are.

Source      Bourtoule et al., Machine Unlearning, S&P 2021, for classifiers. Here the networks are encoders as well,
            whose features are concatenated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from efface.config import Settings
from efface.data.dataset import rank_by_hash
from efface.errors import EffaceError

MOST_SHARDS = 256
MOST_SLICES = 64


class ShardUnit(StrEnum):
    """What is kept together in one shard and slice."""

    EXAMPLE = "example"
    GROUP = "group"
    """All examples of a person or other group; those without a group are alone."""


@dataclass(frozen=True, kw_only=True)
class Shards(Settings):
    """How training is divided so that a few examples can be deleted exactly."""

    count: Annotated[int, Ge(1), Le(MOST_SHARDS)] = 4
    """Number of shards S: networks of the recipe's size, each trained on about 1 / S of the examples."""
    slices: Annotated[int, Ge(1), Le(MOST_SLICES)] = 1
    """Number of slices R of each shard. Deleting retrains a shard from the last stage before the example's slice."""
    unit: ShardUnit = ShardUnit.EXAMPLE
    """``example``, or ``group``: all examples of a group are in one slice, so that one request concerns one shard."""

    def epochs(self, whole: int) -> int:
        """Epochs of each stage, so that all stages together take about as many steps as ``whole`` epochs would."""
        return max(1, round(2 * whole / (self.slices + 1)))

    def assign(self, keys: np.ndarray, group: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Assign examples to shards and slices.

        Args:
            keys: Keys of the examples, str [n].
            group: Their groups, str [n], or None.
            seed: The seed of the training.

        Returns:
            Number of the shard and of the slice of each, int64 [n] each, from 0.

        Raises:
            EffaceError: The unit is the group, and there are none.

        """
        units = keys
        if self.unit is ShardUnit.GROUP:
            if group is None:
                raise EffaceError(
                    "The examples have no groups to keep together in one shard.",
                    remedy="Use data with groups, or set recipe.shards.unit=example.",
                )
            units = np.where(group == "", keys, group)
        shard, part = (rank_by_hash(units, seed, purpose) for purpose in ("shard", "slice"))
        return (shard % self.count).astype(np.int64), (part % self.slices).astype(np.int64)


def derive_seed(seed: int, *place: int) -> int:
    """The seed of one shard, or of one of its stages, from that of the training."""
    text = f"{seed}:shards:{','.join(map(str, place))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
