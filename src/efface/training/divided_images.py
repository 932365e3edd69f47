"""Images of a batch that are decoded and augmented only where a process needs them.

With several processes each one computes the network on some rows of a batch. :class:`DividedImages` is a tensor of all
rows that knows how to make each of them: joining and selecting rows makes nothing, the network makes the rows of its
own process, and any other operation makes all rows, so that every result is right whatever is done with the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Make = Callable[[Tensor], Tensor]
"""Makes some rows, given by their positions in their source: int64 [n] -> [n, C, H, W]."""
_ATEN = torch.ops.aten
_FRESH = (_ATEN.new_zeros.default, _ATEN.new_empty.default, _ATEN.new_ones.default, _ATEN.new_full.default)


def bounds(count: int, size: int) -> list[int]:
    """Where the rows of each of ``size`` processes begin among ``count`` rows, and where the last ones end."""
    return [number * count // size for number in range(size + 1)]


class ImageSource:
    """Rows that can be made one by one; those of the own process are made once and kept."""

    def __init__(self, make: Make, count: int, rank: int, size: int) -> None:
        self.make, self.count = make, count
        self.bounds = torch.tensor(bounds(count, size))
        self.first, self.last = (int(edge) for edge in self.bounds[rank : rank + 2])
        self.own: Tensor | None = None

    def owners(self, rows: Tensor) -> Tensor:
        """Number of the process that each row belongs to, [n]."""
        return torch.searchsorted(self.bounds, rows, right=True) - 1

    def take(self, rows: Tensor) -> Tensor:
        """Make rows, [n, C, H, W]."""
        if not len(rows) or int(rows.min()) < self.first or int(rows.max()) >= self.last:
            return self.make(rows)
        if self.own is None:
            self.own = self.make(torch.arange(self.first, self.last))
        if len(rows) == self.last - self.first and torch.equal(rows, torch.arange(self.first, self.last)):
            return self.own
        return self.own[(rows - self.first).to(self.own.device)]


class DividedImages(Tensor):
    """Images [B, C, H, W], float32, of which the rows are made when they are needed."""

    runs: list[tuple[ImageSource, Tensor]]
    """Consecutive rows: the source, and the positions in it, int64 [n] on the CPU."""

    @staticmethod
    def __new__(
        cls, runs: Sequence[tuple[ImageSource, Tensor]], shape: Sequence[int], device: torch.device
    ) -> DividedImages:
        """Make a tensor without storage."""
        size = (sum(len(rows) for _, rows in runs), *shape)
        made = Tensor._make_wrapper_subclass(cls, size, dtype=torch.float32, device=device)  # pyright: ignore
        made.runs = [run for run in runs if len(run[1])]
        return made

    def __init__(self, runs: object, shape: object, device: object) -> None:
        super().__init__()

    def __deepcopy__(self, memo: object) -> DividedImages:
        return self._of(self.runs)

    def __repr__(self, *, tensor_contents: object = None) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"DividedImages({list(self.shape)} on {self.device})"

    def owners(self) -> Tensor:
        """Number of the process that each row belongs to, int64 [B] on the CPU."""
        return torch.cat([source.owners(rows) for source, rows in self.runs] or [torch.empty(0, dtype=torch.int64)])

    def rows_at(self, positions: Tensor) -> Tensor:
        """Make the rows at some positions (int64 [n] on the CPU), as a plain tensor [n, C, H, W]."""
        made = [source.take(rows) for source, rows in self._select(positions)]
        return torch.cat(made) if len(made) != 1 else made[0]

    def whole(self) -> Tensor:
        """Make all rows, as a plain tensor."""
        if not self.runs:
            return torch.empty(self.shape, device=self.device)
        return torch.cat([source.take(rows) for source, rows in self.runs])

    def _of(self, runs: Sequence[tuple[ImageSource, Tensor]]) -> DividedImages:
        return DividedImages(runs, self.shape[1:], self.device)

    def _select(self, positions: Tensor) -> list[tuple[ImageSource, Tensor]]:
        """The runs of the rows at some positions, in their order."""
        positions = torch.where(positions < 0, positions + len(self), positions)
        number = torch.cat([torch.full((len(rows),), place) for place, (_, rows) in enumerate(self.runs)])[positions]
        row = torch.cat([rows for _, rows in self.runs])[positions]
        places, counts = torch.unique_consecutive(number, return_counts=True)
        return [
            (self.runs[int(place)][0], rows) for place, rows in zip(places, row.split(counts.tolist()), strict=True)
        ]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Join and select rows without making them; make all of them for anything else."""
        kwargs = kwargs or {}
        joins = func is _ATEN.cat.default and args[1:] in ((), (0,)) and not kwargs
        if joins and all(isinstance(one, DividedImages) for one in args[0]):
            return args[0][0]._of([run for one in args[0] for run in one.runs])
        first = args[0] if args and isinstance(args[0], DividedImages) else None
        if first is not None and not kwargs:
            if func in (_ATEN.detach.default, _ATEN.alias.default):
                return first._of(first.runs)
            if func is _ATEN.slice.Tensor and (len(args) == 1 or args[1] == 0):
                chosen = torch.arange(len(first))[slice(*args[2:])] if len(args) > 2 else torch.arange(len(first))
                return first._of(first._select(chosen) if len(chosen) else [])
            if func is _ATEN.index.Tensor and _is_row_index(args[1]) and len(args[1][0]):
                return first._of(first._select(args[1][0].cpu()))
        if first is not None and func in _FRESH:
            return func(torch.empty(0, dtype=first.dtype, device=first.device), *args[1:], **kwargs)
        made = {id(one): one.whole() for one in _lazy_ones((args, kwargs))}
        args, kwargs = tree_map(lambda one: made.get(id(one), one), (args, kwargs))
        return func(*args, **kwargs)


def _is_row_index(indices: Sequence[Tensor | None]) -> bool:
    """Whether an index is one vector of positions."""
    only = indices[0] if len(indices) == 1 else None
    return only is not None and only.dim() == 1 and only.dtype is torch.int64


def _lazy_ones(values: Any) -> list[DividedImages]:
    found: list[DividedImages] = []
    tree_map(lambda one: found.append(one) if isinstance(one, DividedImages) else None, values)
    return found
