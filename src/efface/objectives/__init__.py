"""Objectives: what a checkpoint was trained with. Methods talk to this protocol and never ask which one it is.

Adding one: a file here with a frozen dataclass, one line in ``OBJECTIVES``, a slow twin in ``tests/reference``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import unknown
from efface.model import Model
from efface.types import Batch, Outcome


class Objective(Protocol):
    """A frozen dataclass: temperatures and sizes. ``loss`` is pure; state (twin, queue) moves only in ``advance``."""

    labelled: ClassVar[bool]
    """Whether the loss reads labels."""

    def equip(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Put the objective's head, twin, predictor or queue on a backbone of ``dim`` features."""
        ...

    def loss(self, model: Model, batch: Batch) -> Outcome:
        """Per-example loss [B]. Called twice on the same batch it gives the same values."""
        ...

    def anchored(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The per-example loss [B] as a function of the anchor view [B, C, H, W] alone.

        Everything else in the batch (other views, other examples, queue, keys) is held constant, so the gradient
        with respect to one anchor is the gradient of that example's own loss.
        """
        ...

    def advance(self, model: Model, carry: Tensor | None) -> None:
        """Move twin and queue once, after an optimizer step; without a carry the queue stays."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far two models disagree about each example, [B] >= 0: ``a`` and ``b`` are their outputs, [B, d]."""
        ...

    def scramble(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with a wrong target: another label, or another image's view."""
        ...

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Remove what state remembers of training images: part name to what was done with it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What the label-free objectives have in common: a projector, cosine distance, another image as wrong target."""

    labelled: ClassVar[bool] = False
    dim: int = 128
    """Width of the projector's output."""
    hidden: int | None = None
    """Width of the projector's hidden layer; by default the backbone's."""

    def advance(self, model: Model, carry: Tensor | None) -> None:
        """Nothing moves: there is neither twin nor queue."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B], in [0, 2]."""
        return 1 - F.cosine_similarity(a, b, dim=-1)

    def scramble(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The second view comes from another image of the batch (a random cyclic order, so never from itself)."""
        order = torch.randperm(len(batch), generator=rng)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        return batch.but(view=lambda number: batch.view(number)[other] if number == 1 else batch.view(number))

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Nothing to purge: there is neither twin nor queue."""
        return {}


def projector(dim: int, hidden: int, out: int, *, norm: bool) -> nn.Sequential:
    """Linear - [BatchNorm] - ReLU - Linear."""
    middle: list[nn.Module] = [nn.BatchNorm1d(hidden)] if norm else []
    return nn.Sequential(nn.Linear(dim, hidden), *middle, nn.ReLU(), nn.Linear(hidden, out))


from efface.objectives.byol import Byol  # noqa: E402  (the protocol above must exist first)
from efface.objectives.cross_entropy import CrossEntropy  # noqa: E402
from efface.objectives.moco import Moco  # noqa: E402
from efface.objectives.simclr import SimClr  # noqa: E402

OBJECTIVES: dict[str, type[Objective]] = {
    "byol": Byol,
    "cross_entropy": CrossEntropy,
    "moco": Moco,
    "simclr": SimClr,
}


def objective_class(name: str) -> type[Objective]:
    """The objective called ``name``, or an error that suggests the nearest."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
