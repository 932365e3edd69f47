"""The objective protocol, and the few functions that the label-free objectives share."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch
from efface.training.model import Model


def no_pairs_error(what: str) -> EffaceError:
    """The error of an objective whose loss has no parts that attract and repel single pairs."""
    return EffaceError(
        f"{what} compares no pairs of views one by one, so its loss has no parts that attract and repel.",
        remedy="Use simclr, moco, byol, simsiam or clip, or a method that works on any checkpoint.",
    )


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine, [B], in [0, 2]: how far two encoders disagree."""
    return 1 - F.cosine_similarity(a, b, dim=-1)


def swap_second_view(batch: Batch, rng: torch.Generator) -> Batch:
    """The batch whose second view comes from another of its images: the wrong target of a contrastive loss.

    The images are swapped along one random cycle, so that none keeps its own view (unless it is alone).
    """
    other = random_derangement(len(batch), rng)
    return batch.copy_with(view=lambda number: batch.view(number)[other] if number == 1 else batch.view(number))


def random_derangement(count: int, rng: torch.Generator) -> Tensor:
    """For each of ``count`` rows another one, int64 [count], along one random cycle (a row alone keeps itself)."""
    cycle = torch.randperm(count, generator=rng)
    other = torch.empty_like(cycle)
    other[cycle] = cycle.roll(1)
    return other


class ProjectorLayer(StrEnum):
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


def build_projector(
    dim: int, hidden: int, out: int, *, norm: bool = False, layers: Sequence[ProjectorLayer] | None = None
) -> nn.Sequential:
    """A network from ``dim`` over ``hidden`` (any number of times) to ``out``, with the given layers.

    By default Linear - ReLU - Linear; with ``norm`` plain - BatchNorm - ReLU - plain.
    """
    default = (
        (ProjectorLayer.PLAIN, ProjectorLayer.NORM, ProjectorLayer.RELU, ProjectorLayer.PLAIN)
        if norm
        else (ProjectorLayer.LINEAR, ProjectorLayer.RELU, ProjectorLayer.LINEAR)
    )
    layers = layers or default
    left, width = sum(layer in (ProjectorLayer.LINEAR, ProjectorLayer.PLAIN) for layer in layers), dim
    made: list[nn.Module] = []
    for layer in layers:
        if layer in (ProjectorLayer.LINEAR, ProjectorLayer.PLAIN):
            left -= 1
            after = hidden if left else out
            made.append(nn.Linear(width, after, bias=layer is ProjectorLayer.LINEAR))
            width = after
        elif layer in (ProjectorLayer.RELU, ProjectorLayer.GELU):
            made.append(nn.ReLU() if layer is ProjectorLayer.RELU else nn.GELU())
        else:
            made.append(nn.BatchNorm1d(width, affine=layer is ProjectorLayer.NORM))
    return nn.Sequential(*made)


def project_two_views(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Projections of the first two views, [B, d] each, for a loss that is a statistic of the batch."""
    if len(batch) < 2:
        raise EffaceError(
            "This loss is a statistic of a batch (variances, correlations), and the batch has one example.",
            remedy="Use a method that shows the example beside retained ones, such as neggrad, or larger batches.",
        )
    first, second = model(torch.cat([batch.view(0), batch.view(1)])).chunk(2)
    return first, second


def normalize_rows(z: Tensor) -> Tensor:
    """Rows of length one."""
    return F.normalize(z, dim=-1)
