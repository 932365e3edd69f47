"""The small values that methods, objectives and the training loop hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.training.augment import Views

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``(images [B, C, H, W] in [0, 1], generator) -> the same shape``: one random view of each image."""


@dataclass(frozen=True)
class LossOutput:
    """What an objective says of a batch."""

    per_example: Tensor
    """Loss of each example, [B]; lower is better fitted."""
    carry: Tensor | None = None
    """What :meth:`ObjectiveOption.after_step` needs to move the state (MoCo: the new keys, [B, d]); ``None`` if nothing."""

    def rows(self, first: int, last: int | None = None) -> LossOutput:
        """The outcome of some rows of a joint batch, their carry with them."""
        carry = None if self.carry is None else self.carry[first:last]
        return LossOutput(self.per_example[first:last], carry)


@dataclass(frozen=True)
class ContrastiveTerms:
    """An objective that compares pairs, in its parts: the loss of each example is ``repel - attract``."""

    anchor: Tensor
    """Normalized embedding of each anchor (the first view), [B, d]."""
    attract: Tensor
    """How much the example is pulled to its partner (the second view, the caption), over the temperature, [B]."""
    repel: Tensor
    """How much it is pushed from all that it is compared with, [B]; a constant where nothing is (BYOL, SimSiam)."""
    partners: Tensor
    """Normalized embeddings of the further partners asked for, [M, d]; without gradient where targets have none."""
    carry: Tensor | None = None
    """As in :class:`LossOutput`."""


@dataclass(frozen=True)
class LossTerms:
    """What one optimizer step minimizes: the sum of named terms that are already weighted."""

    terms: dict[str, Tensor]
    """Name to scalar; each is logged under its name."""
    carry: Tensor | None = None
    """Passed to :meth:`ObjectiveOption.after_step` after the step; leave it out and the queue does not move."""
    extra_examples: int = 0
    """Examples that the step showed beside its batch's own."""


class Batch:
    """Some examples and their random views.

    A view is drawn once and remembered, from a seed of its own: asking for ``view(1)`` twice gives the same tensor,
    so a loss is a pure function of ``(model, batch)`` and two models can be shown the very same views.
    """

    def __init__(
        self,
        clean: Tensor,
        view: Callable[[int], Tensor],
        ids: Tensor,
        y: Tensor | None = None,
        text: Sequence[str] | None = None,
    ) -> None:
        self.clean = clean
        """Un-augmented images, [B, C, H, W] in [0, 1]."""
        self.ids = ids
        """Positions in the data, [B]."""
        self.y = y
        """Integer labels, [B], or ``None``."""
        self.text = text
        """Captions, B of them, or ``None``."""
        self._make, self._views = view, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.ids)

    def view(self, number: int) -> Tensor:
        """Random view ``number`` (0, 1, ...) of every image, [B, C, H, W]."""
        if number not in self._views:
            self._views[number] = self._make(number)
        return self._views[number]

    def labels(self) -> Tensor:
        """``y``, or an error that says labels are needed."""
        return _known(self.y)

    def captions(self) -> Sequence[str]:
        """``text``, or an error that says captions are needed."""
        if self.text is None:
            raise EffaceError(
                "This objective needs a caption for every image, and the data has none.",
                remedy="Give a manifest with a column 'caption', or use a label-free objective (simclr, moco, byol).",
            )
        return self.text

    def __add__(self, other: Batch) -> Batch:
        """Both batches as one: the rows of ``self`` first."""
        both = self.y is not None and other.y is not None
        return Batch(
            torch.cat([self.clean, other.clean]),
            lambda number: torch.cat([self.view(number), other.view(number)]),
            torch.cat([self.ids, other.ids]),
            torch.cat([self.labels(), other.labels()]) if both else None,
            [*self.text, *other.text] if self.text is not None and other.text is not None else None,
        )

    def rows(self, first: int, last: int | None = None) -> Batch:
        """Some of the examples, with the views that they have here."""
        some = slice(first, last)
        return Batch(
            self.clean[some],
            lambda number: self.view(number)[some],
            self.ids[some],
            None if self.y is None else self.y[some],
            None if self.text is None else self.text[some],
        )

    def copy_with(
        self,
        *,
        view: Callable[[int], Tensor] | None = None,
        y: Tensor | None = None,
        text: Sequence[str] | None = None,
    ) -> Batch:
        """The same examples with other views, labels or captions (a wrong target)."""
        return Batch(
            self.clean, view or self.view, self.ids, self.y if y is None else y, self.text if text is None else text
        )

    def pair_with(self, other: Batch, number: int = 1) -> Batch:
        """The same examples, each paired with the example of ``other`` in its row: its view ``number``, its text."""
        own = Batch(self.clean, self.view, self.ids, self.y, other.text)
        return own.copy_with(view=lambda asked: other.view(number) if asked == 1 else self.view(asked))


def _known(y: Tensor | None) -> Tensor:
    if y is None:
        raise EffaceError(
            "This objective or method needs labels, and the data has none.",
            remedy="Use a label-free objective (simclr, moco, byol), or data with labels.",
        )
    return y


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of the data, ready to be served in batches: what a method holds in its hand."""

    x: Tensor
    """Every image of the data, uint8 [N, C, H, W]; shared, possibly memory-mapped; only ``ids`` are read."""
    ids: Tensor
    """Positions of this part's examples, int64 [n]."""
    augment: Augment
    y: Tensor | None = None
    """Labels of all the data, int64 [N], or ``None``."""
    text: Sequence[str] | None = None
    name: str = "part"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, data: Data, positions: Any, views: Views, name: str, device: torch.device) -> Subset:
        """The examples of ``data`` at ``positions``, ready to be served in batches.

        Args:
            data: All the examples; its arrays are shared, not copied.
            positions: Positions in the data, integers [n].
            views: The augmentations that draw a random view of each image.
            name: What it is called in logs, such as ``retain``.
            device: Where batches are put.
        """
        return cls(
            x=torch.from_numpy(data.x),
            ids=torch.as_tensor(positions, dtype=torch.int64),
            augment=views,
            y=None if data.y is None else torch.from_numpy(data.y),
            text=data.text,
            name=name,
            device=device,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        """One pass in random order, in near-equal batches of at most ``size``: nothing is left out."""
        order = self.ids[torch.randperm(len(self.ids), generator=rng)]
        for rows in order.tensor_split(self.count_batches(size)) if len(order) else ():
            yield self.batch(rows, rng)

    def cycle(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Batches without end, reshuffled at each pass; of an empty part, none."""
        while len(self):
            yield from self.batches(size, rng)

    def labels(self) -> Tensor:
        """Label of each of its examples, [n], or an error that says labels are needed."""
        return _known(self.y)[self.ids]

    def count_batches(self, size: int) -> int:
        """How many batches one pass gives."""
        return -(-len(self.ids) // size)

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """One pass in order, nothing left out; views are seeded by position."""
        rng = torch.Generator().manual_seed(0)
        for rows in self.ids.split(size):
            yield self.batch(rows, rng)

    def batch(self, rows: Tensor, rng: torch.Generator) -> Batch:
        """The examples at ``rows`` (positions in the data); one number is drawn from ``rng`` to seed their views."""
        seed = int(torch.randint(2**62, (), generator=rng))
        clean = self.x[rows].to(self.device).float().div_(255)

        def view(number: int) -> Tensor:
            generator = torch.Generator(self.device).manual_seed((seed + number * 0x9E3779B97F4A7C15) % 2**63)
            return self.augment(clean, generator)

        return Batch(
            clean,
            view,
            rows,
            None if self.y is None else self.y[rows].to(self.device),
            None if self.text is None else [self.text[int(row)] for row in rows],
        )


class Log(Protocol):
    """Where a run writes what it does."""

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one line: ``{"step", "phase", "terms": {name: value}, ...}``."""
        ...
