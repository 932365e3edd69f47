"""Statistics of lightly's SplitBatchNorm, which keeps one mean and variance for each split of a batch.

In evaluation lightly uses the average over the splits, so a network with ordinary BatchNorm and the averages computes
the same function. Written back, every split gets the same statistics, as after lightly's own ``eval()``.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("running_mean", "running_var")


def fold_splits(name: str, stored: Tensor, shape: torch.Size) -> Tensor:
    """Return the average over the splits of statistics that are a multiple of ``shape``, any other tensor as it is."""
    return stored.view(-1, *shape).mean(0) if _is_multiple(name, stored.shape, shape) else stored


def spread_splits(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Return statistics repeated for every split, so that they have ``shape``, and any other tensor as it is."""
    return value.repeat(shape[0] // len(value)) if _is_multiple(name, shape, value.shape) else value


def _is_multiple(name: str, larger: torch.Size, smaller: torch.Size) -> bool:
    if not name.endswith(STATISTICS) or len(larger) != 1 or len(smaller) != 1 or not smaller[0]:
        return False
    return larger[0] > smaller[0] and larger[0] % smaller[0] == 0
