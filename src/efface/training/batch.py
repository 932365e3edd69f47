"""Batches of examples, and the small values that methods, objectives and the training loop exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.training.augment import Views
from efface.training.divided_images import DividedImages, ImageSource, bounds
from efface.training.lazy_images import Images, LazyImages, images_of
from efface.training.processes import World, current_world

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Makes one random view of each image: ``(images [B, C, H, W] in [0, 1], generator) -> the same shape``."""


class Batch:
    """Some examples and their random views.

    Each view is drawn once, from its own seed, and cached: ``view(1)`` always returns the same tensor. So a loss is a
    pure function of ``(model, batch)``, and two models can be compared on exactly the same views.

    Args:
        clean: Un-augmented images, [B, C, H, W] in [0, 1].
        view: Makes a random view of all images from its number, [B, C, H, W].
        ids: Positions of the examples in the data, [B].
        y: Integer labels, [B], if there are any.
        text: Captions, B of them, if there are any.

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
        """Positions of the examples in the data, [B]."""
        self.y = y
        """Integer labels, [B], or ``None``."""
        self.text = text
        """Captions, B of them, or ``None``."""
        self._make, self._views = view, dict[int, Tensor]()

    def __len__(self) -> int:
        return len(self.ids)

    def view(self, number: int) -> Tensor:
        """Return random view ``number`` (0, 1, ...) of every image, [B, C, H, W]."""
        if number not in self._views:
            self._views[number] = self._make(number)
        return self._views[number]

    def labels(self) -> Tensor:
        """Return ``y``.

        Raises:
            EffaceError: If there are no labels.

        """
        return _require_labels(self.y)

    def captions(self) -> Sequence[str]:
        """Return ``text``.

        Raises:
            EffaceError: If there are no captions.

        """
        if self.text is None:
            raise EffaceError(
                "This objective needs a caption for every image, and the data has none.",
                remedy="Give a manifest with a column 'caption', or use a label-free objective (simclr, moco, byol).",
            )
        return self.text

    def __add__(self, other: Batch) -> Batch:
        """Join two batches, rows of ``self`` first; labels or captions are kept if both have them."""
        labeled = self.y is not None and other.y is not None
        return Batch(
            torch.cat([self.clean, other.clean]),
            lambda number: torch.cat([self.view(number), other.view(number)]),
            torch.cat([self.ids, other.ids]),
            torch.cat([self.labels(), other.labels()]) if labeled else None,
            [*self.text, *other.text] if self.text is not None and other.text is not None else None,
        )

    def rows(self, first: int, last: int | None = None) -> Batch:
        """Take the examples from row ``first`` up to ``last``, with the views that they have in this batch."""
        taken = slice(first, last)
        return Batch(
            self.clean[taken],
            lambda number: self.view(number)[taken],
            self.ids[taken],
            None if self.y is None else self.y[taken],
            None if self.text is None else self.text[taken],
        )

    def copy_with(
        self,
        *,
        view: Callable[[int], Tensor] | None = None,
        y: Tensor | None = None,
        text: Sequence[str] | None = None,
    ) -> Batch:
        """Copy the batch with other views, labels or captions, such as wrong targets."""
        return Batch(
            self.clean, view or self.view, self.ids, self.y if y is None else y, self.text if text is None else text
        )

    def pair_with(self, other: Batch, number: int = 1) -> Batch:
        """Pair each example with the one of ``other`` in its row: view 1 and caption are replaced.

        Args:
            other: A batch of the same size.
            number: Which view of ``other`` becomes view 1.

        """
        paired = Batch(self.clean, self.view, self.ids, self.y, other.text)
        return paired.copy_with(view=lambda index: other.view(number) if index == 1 else self.view(index))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of the data, ready to be served in batches.

    Example:
        >>> retain = Subset.of(data, split.retain, recipe.views, "retain", device)
        >>> for batch in retain.batches(256, run.rng("retain")):
        ...     loss = model.objective.loss(model, batch)

    """

    x: Images
    """All images of the data, uint8 [N, C, H, W]; shared, possibly memory-mapped or decoded when rows are taken; only
    rows ``ids`` are read."""
    ids: Tensor
    """Positions of the examples in the data, int64 [n]."""
    augment: Augment
    y: Tensor | None = None
    """Labels of all the data, int64 [N], or ``None``."""
    text: Sequence[str] | None = None
    """Captions of all the data, N of them, or ``None``."""
    name: str = "part"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keys: np.ndarray | None = None
    """Keys of all the data, str [N], or ``None``; only sharded training reads them."""
    group: np.ndarray | None = None
    """Groups of all the data, str [N], or ``None``."""
    world: World = field(default_factory=current_world)
    """The processes that a batch is divided among; with several, images are made only where they are needed."""

    @classmethod
    def of(cls, data: Data, positions: Any, views: Views, name: str, device: torch.device) -> Subset:
        """Take the examples of ``data`` at ``positions``.

        Args:
            data: All the examples; its arrays are shared, not copied.
            positions: Positions in the data, integers [n].
            views: The augmentations that draw a random view of each image.
            name: Name of the subset in logs, such as ``retain``.
            device: Device of the batches.

        """
        return cls(
            x=images_of(data),
            ids=torch.as_tensor(positions, dtype=torch.int64),
            augment=views,
            y=None if data.y is None else torch.from_numpy(data.y),
            text=data.text,
            name=name,
            device=device,
            keys=data.keys,
            group=data.group,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Serve all examples once, in random order, in batches of near-equal size, at most ``size``."""
        order = self.ids[torch.randperm(len(self.ids), generator=rng)]
        parts = order.tensor_split(self.count_batches(size)) if len(order) else ()
        for rows, following in zip_longest(parts, parts[1:]):
            batch = self.batch(rows, rng)
            if following is not None and isinstance(self.x, LazyImages):
                edges = bounds(len(following), self.world.size)
                self.x.expect(following[edges[self.world.rank] : edges[self.world.rank + 1]])  # what this process makes
            yield batch

    def cycle(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Serve batches without end, reshuffled at each pass; an empty subset has none."""
        while len(self):
            yield from self.batches(size, rng)

    def cycle_full(self, size: int, rng: torch.Generator) -> Iterator[Batch]:
        """Serve batches of exactly ``size`` rows without end: a small subset is repeated in them, with other views.

        Each example comes equally often: one reshuffled pass follows the other, whatever ``size`` is.
        """
        waiting = self.ids[:0]
        while len(self):
            while len(waiting) < size:
                waiting = torch.cat([waiting, self.ids[torch.randperm(len(self.ids), generator=rng)]])
            rows, waiting = waiting[:size], waiting[size:]
            yield self.batch(rows, rng)

    def labels(self) -> Tensor:
        """Return the label of each example, [n].

        Raises:
            EffaceError: If there are no labels.

        """
        return _require_labels(self.y)[self.ids]

    def count_batches(self, size: int) -> int:
        """Count the batches of one pass."""
        return -(-len(self.ids) // size)

    def ordered_batches(self, size: int) -> Iterator[Batch]:
        """Serve all examples once, in order, with the same views on every call."""
        rng = torch.Generator().manual_seed(0)
        for rows in self.ids.split(size):
            yield self.batch(rows, rng)

    def batch(self, rows: Tensor, rng: torch.Generator) -> Batch:
        """Make a batch of the examples at ``rows`` (positions in the data); ``rng`` seeds their views."""
        seed = int(torch.randint(2**62, (), generator=rng))
        clean = self._images(rows) if self.world.size == 1 else self._divided(self._images, rows)

        def view(number: int) -> Tensor:
            generator = torch.Generator(self.device).manual_seed((seed + number * 0x9E3779B97F4A7C15) % 2**63)
            if self.world.size == 1:
                return self.augment(clean, generator)
            return self._divided_view(clean, generator)

        return Batch(
            clean,
            view,
            rows,
            None if self.y is None else self._move(self.y[rows]),
            None if self.text is None else [self.text[int(row)] for row in rows],
        )

    def _images(self, rows: Tensor) -> Tensor:
        """Read images at positions in the data, [n, C, H, W] in [0, 1]."""
        return self._move(self.x[rows]).float().div_(255)

    def _move(self, values: Tensor) -> Tensor:
        """Copy values to the device of the batches; a GPU goes on computing meanwhile."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def _divided(self, make: Callable[[Tensor], Tensor], rows: Tensor) -> DividedImages:
        source = ImageSource(lambda at: make(rows[at]), len(rows), self.world.rank, self.world.size)
        return DividedImages([(source, torch.arange(len(rows)))], self.x.shape[1:], self.device)

    def _divided_view(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Make a view of which each process computes its rows, with the numbers that one process would draw."""
        assert isinstance(clean, DividedImages)
        if not isinstance(self.augment, Views):  # it draws as it likes: all rows at once
            return self.augment(clean.whole(), generator)
        augment, params = self.augment, self.augment.draw_params(len(clean), clean.shape[1:], generator)
        params = params.to(self.device)
        return self._divided(lambda at: augment.apply(clean.rows_at(at), params.rows(at)), torch.arange(len(clean)))


@dataclass(frozen=True)
class LossOutput:
    """The loss of an objective on a batch."""

    per_example: Tensor
    """Loss of each example, [B]; lower: better fitted."""
    carry: Tensor | None = None
    """What :meth:`Objective.after_step` needs to move the state (MoCo: the new keys, [B, d]), or ``None``."""

    def rows(self, first: int, last: int | None = None) -> LossOutput:
        """Take some rows of a joint batch, with their carry."""
        carry = None if self.carry is None else self.carry[first:last]
        return LossOutput(self.per_example[first:last], carry)


@dataclass(frozen=True)
class ContrastiveTerms:
    """The loss of an objective that compares pairs, split: the loss of each example is ``repel - attract``."""

    anchor: Tensor
    """Normalized embedding of each anchor (the first view), [B, d]."""
    attract: Tensor
    """Similarity of each example and its partner (second view or caption), divided by the temperature, [B]."""
    repel: Tensor
    """How strongly the examples it is compared with repel it, [B]; a constant if none do (BYOL, SimSiam)."""
    partners: Tensor
    """Normalized embeddings of the partners of ``others``, [M, d]; without gradient if targets have none."""
    carry: Tensor | None = None
    """As in :class:`LossOutput`."""


@dataclass(frozen=True)
class LossTerms:
    """What one optimizer step minimizes: the sum of named, already weighted terms."""

    terms: dict[str, Tensor]
    """Name to scalar; each is logged under its name."""
    carry: Tensor | None = None
    """Passed to :meth:`Objective.after_step` after the step; ``None`` leaves the queue unchanged."""
    extra_examples: int = 0
    """Examples that the step processed in addition to those of its batch, for the training cost."""


class Log(Protocol):
    """Receives the log records of a run."""

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record: ``{"step", "phase", "terms": {name: value}, ...}``."""
        ...


def _require_labels(y: Tensor | None) -> Tensor:
    if y is None:
        raise EffaceError(
            "This objective or method needs labels, and the data has none.",
            remedy="Use a label-free objective (simclr, moco, byol), or data with labels.",
        )
    return y
