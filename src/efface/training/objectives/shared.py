"""What objectives share: a base class with defaults, wrong targets, and projectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.config import Settings
from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms
from efface.training.model import Model


class BaseObjective(Settings):
    """Default answers to the :class:`Objective` protocol; a subclass overrides what is different for it.

    The defaults fit an encoder that is trained without labels on two views of each image, with a loss that does not
    compare pairs, and has no state but its weights.
    """

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = False
    needs_captions: ClassVar[bool] = False
    smallest_batch: ClassVar[int] = 2
    """Fewest examples that a loss can be computed on: 2 where it compares within the batch, or normalizes over it."""

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Raise an error: the loss has no parts that attract and repel single pairs."""
        raise EffaceError(
            f"The objective {type(self).__name__} compares no pairs of views one by one, so its loss has no parts that "
            "attract and repel.",
            remedy="Use simclr, moco, byol, simsiam or clip, or a method that works on any checkpoint.",
        )

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Do nothing: there is no state to move."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B]."""
        return cosine_distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Take the second view from another image."""
        return swap_second_view(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Do nothing: no state but the weights remembers training images."""
        return {}


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Compute 1 - cosine of each pair of rows, [B], in [0, 2]; higher: two encoders disagree more."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def swap_second_view(batch: Batch, rng: torch.Generator) -> Batch:
    """Give each image the second view of another one in the batch: a wrong target for a contrastive loss.

    The views move along one random cycle, so no image keeps its own, except in a batch of one.
    """
    other = random_derangement(len(batch), rng)
    return batch.copy_with(view=lambda number: batch.view(number)[other] if number == 1 else batch.view(number))


def random_derangement(count: int, rng: torch.Generator) -> Tensor:
    """Draw another row for each of ``count`` rows, int64 [count], along one random cycle; a single row keeps itself."""
    cycle = torch.randperm(count, generator=rng)
    other = torch.empty_like(cycle)
    other[cycle] = cycle.roll(1)
    return other


class ProjectorLayer(StrEnum):
    """A layer of a projector or predictor."""

    LINEAR = "linear"
    """Linear, with a bias."""
    PLAIN = "plain"
    """Linear, without a bias, which a BatchNorm after it would cancel."""
    NORM = "norm"
    """BatchNorm."""
    BARE = "bare"
    """BatchNorm without learned scale and offset."""
    RELU = "relu"
    GELU = "gelu"
    NONE = "none"
    """Nothing: where a file has dropout, which does nothing in evaluation."""


def build_projector(
    dim: int, hidden: int, out: int, *, norm: bool = False, layers: Sequence[ProjectorLayer] | None = None
) -> nn.Sequential:
    """Build a projector or predictor.

    Args:
        dim: Width of the input.
        hidden: Width of every hidden layer.
        out: Width of the output.
        norm: Whether the default layers are plain, norm, relu, plain; otherwise they are linear, relu, linear.
        layers: The layers, in order, in place of the default.

    """
    default = (
        (ProjectorLayer.PLAIN, ProjectorLayer.NORM, ProjectorLayer.RELU, ProjectorLayer.PLAIN)
        if norm
        else (ProjectorLayer.LINEAR, ProjectorLayer.RELU, ProjectorLayer.LINEAR)
    )
    layers = layers or default
    remaining, width = sum(layer in (ProjectorLayer.LINEAR, ProjectorLayer.PLAIN) for layer in layers), dim
    made: list[nn.Module] = []
    for layer in layers:
        if layer in (ProjectorLayer.LINEAR, ProjectorLayer.PLAIN):
            remaining -= 1
            after = hidden if remaining else out
            made.append(nn.Linear(width, after, bias=layer is ProjectorLayer.LINEAR))
            width = after
        elif layer in (ProjectorLayer.RELU, ProjectorLayer.GELU):
            made.append(nn.ReLU() if layer is ProjectorLayer.RELU else nn.GELU())
        elif layer is ProjectorLayer.NONE:
            made.append(nn.Identity())
        else:
            made.append(nn.BatchNorm1d(width, affine=layer is ProjectorLayer.NORM))
    return nn.Sequential(*made)


def project_two_views(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute projections of the first two views, [B, d] each, for a loss that is a statistic of the batch.

    Raises:
        EffaceError: If the batch has one example only.

    """
    if len(batch) < 2:
        raise EffaceError(
            "This loss is a statistic of a batch (variances, correlations), and the batch has one example.",
            remedy="Use larger batches, or a method that mixes the example with retained ones, such as neggrad.",
        )
    first, second = model(torch.cat([batch.view(0), batch.view(1)])).chunk(2)
    return first, second


def normalize_rows(z: Tensor) -> Tensor:
    """Scale each row to length one."""
    return F.normalize(z, dim=-1)
