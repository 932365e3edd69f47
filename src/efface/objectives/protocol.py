"""The objective protocol, and the few functions that the label-free objectives share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.model import Model
from efface.types import Batch, Contrast, Outcome


class Objective(Protocol):
    """A frozen dataclass: temperatures and sizes. ``loss`` is pure; state (twin, queue) moves only in ``advance``."""

    labelled: ClassVar[bool]
    """Whether the loss reads labels: a classifier."""
    paired: ClassVar[bool]
    """Whether the loss compares pairs, so that :meth:`contrast` has its parts."""
    captioned: ClassVar[bool]
    """Whether the loss reads captions: an image-text model, with a text tower."""

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

    def contrast(self, model: Model, batch: Batch, others: Batch) -> Contrast:
        """The loss in its parts, and the embeddings of the partners (second views, captions) of ``others``.

        The further partners go through the network in the same pass, but nothing is compared with them. ``others``
        may be empty. An error for objectives that are not ``paired``.
        """
        ...

    def advance(self, model: Model, carry: Tensor | None) -> None:
        """Move twin and queue once, after an optimizer step; without a carry the queue stays."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far two models disagree about each example, [B] >= 0: ``a``, ``b`` are their :meth:`Model.outputs`."""
        ...

    def scramble(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with a wrong target: another label, another image's view, another caption."""
        ...

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Remove what state remembers of training images: part name to what was done with it."""
        ...


def unpaired(what: str) -> EffaceError:
    """The error of an objective whose loss has no parts that attract and repel single pairs."""
    return EffaceError(
        f"{what} compares no pairs of views one by one, so its loss has no parts that attract and repel.",
        remedy="Use simclr, moco, byol, simsiam or clip, or a method that works on any checkpoint.",
    )


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine, [B], in [0, 2]: how far two encoders disagree."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def foreign_view(batch: Batch, rng: torch.Generator) -> Batch:
    """The batch whose second view comes from another of its images: the wrong target of a contrastive loss.

    The images are swapped along one random cycle, so that none keeps its own view (unless it is alone).
    """
    other = swapped(len(batch), rng)
    return batch.but(view=lambda number: batch.view(number)[other] if number == 1 else batch.view(number))


def swapped(count: int, rng: torch.Generator) -> Tensor:
    """For each of ``count`` rows another one, int64 [count], along one random cycle (a row alone keeps itself)."""
    cycle = torch.randperm(count, generator=rng)
    other = torch.empty_like(cycle)
    other[cycle] = cycle.roll(1)
    return other


class Layer(StrEnum):
    """A layer of a projector or predictor."""

    LINEAR = "linear"
    """Linear, with a bias."""
    PLAIN = "plain"
    """Linear, without a bias: where a BatchNorm would take it out again."""
    NORM = "norm"
    """BatchNorm."""
    BARE = "bare"
    """BatchNorm without weights of its own."""
    RELU = "relu"
    GELU = "gelu"


def projector(
    dim: int, hidden: int, out: int, *, norm: bool = False, layers: Sequence[Layer] | None = None
) -> nn.Sequential:
    """A network from ``dim`` over ``hidden`` (any number of times) to ``out``, with the given layers.

    By default Linear - ReLU - Linear; with ``norm`` plain - BatchNorm - ReLU - plain.
    """
    default = (Layer.PLAIN, Layer.NORM, Layer.RELU, Layer.PLAIN) if norm else (Layer.LINEAR, Layer.RELU, Layer.LINEAR)
    layers = layers or default
    left, width = sum(layer in (Layer.LINEAR, Layer.PLAIN) for layer in layers), dim
    made: list[nn.Module] = []
    for layer in layers:
        if layer in (Layer.LINEAR, Layer.PLAIN):
            left -= 1
            after = hidden if left else out
            made.append(nn.Linear(width, after, bias=layer is Layer.LINEAR))
            width = after
        elif layer in (Layer.RELU, Layer.GELU):
            made.append(nn.ReLU() if layer is Layer.RELU else nn.GELU())
        else:
            made.append(nn.BatchNorm1d(width, affine=layer is Layer.NORM))
    return nn.Sequential(*made)


def two_views(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Projections of the first two views, [B, d] each, for a loss that is a statistic of the batch."""
    if len(batch) < 2:
        raise EffaceError(
            "This loss is a statistic of a batch (variances, correlations), and the batch has one example.",
            remedy="Use a method that shows the example beside retained ones, such as neggrad, or larger batches.",
        )
    first, second = model(torch.cat([batch.view(0), batch.view(1)])).chunk(2)
    return first, second


def unit(z: Tensor) -> Tensor:
    """Rows of length one."""
    return F.normalize(z, dim=-1)
