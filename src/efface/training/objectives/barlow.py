"""Barlow Twins: the projections of two views correlate within each dimension, and not across dimensions.

    L(θ) = Σ_k (1 - C_kk)² + weight · Σ_{k≠l} C_kl²,    C_kl = mean_i a_ik b_il

a, b: projections of the two views, standardized over the batch. L belongs to a batch; the contribution of example i is

    ℓ(θ; x_i) = L + d/dε L(batch in which x_i weighs ε more)
              = L + t_i - mean_j t_j,    t_i = Σ_kl G_kl [ a_ik b_il - ½ C_kl (a_ik² + b_il²) ],    G = ∂L/∂C

where t is the influence function of a correlation. So mean_i ℓ = L exactly, and with everything else held constant
the gradient of ℓ_i with respect to x_i is B times that of L.

Source      Zbontar et al., Barlow Twins, 2021, arXiv 2103.03230.
Departures  a narrower projector of two layers instead of three; the paper defines no loss per example;
            both views in one pass, with shared batch statistics.
Tests cover a mean that is not the published loss; a diagonal weighted like the rest; a loss for a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.schema import LayerWidth, NotNegative
from efface.training.batch import Batch, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import (
    BaseObjective,
    ProjectorLayer,
    build_projector,
    project_two_views,
)

NORM_EPS = 1e-5
"""Added to each variance, as in BatchNorm."""


@dataclass(frozen=True, eq=False)
class CorrelationStatistics:
    """Statistics of a batch that enter the loss of each of its examples."""

    center: Tensor
    """Mean of the projections of each view, [2, 1, d]."""
    scale: Tensor
    """Standard deviation of the projections of each view, [2, 1, d]."""
    slope: Tensor
    """G = ∂L/∂C, [d, d]."""
    pull: Tensor
    """Sum of ½ G C over the other view's dimensions, [2, d]: the weight of an example's own variance."""
    total: Tensor
    """L."""

    @staticmethod
    def of(a: Tensor, b: Tensor, weight: float) -> CorrelationStatistics:
        """Compute the statistics from the projections of both views, [B, d] each."""
        z = torch.stack([a, b])
        center = z.mean(1, keepdim=True)
        scale = (z.var(1, correction=0, keepdim=True) + NORM_EPS).sqrt()
        u, v = ((z - center) / scale).unbind()
        c = u.T @ v / len(a)
        one = torch.eye(len(c), device=c.device, dtype=c.dtype)
        weights = weight + (1 - weight) * one
        slope = 2 * weights * (c - one)
        half = slope * c / 2
        return CorrelationStatistics(
            center, scale, slope, torch.stack([half.sum(1), half.sum(0)]), (weights * (c - one) ** 2).sum()
        )

    def influence(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute t of each pair of projections, [B]."""
        u, v = (a - self.center[0]) / self.scale[0], (b - self.center[1]) / self.scale[1]
        return ((u @ self.slope) * v).sum(-1) - u.square() @ self.pull[0] - v.square() @ self.pull[1]


@dataclass(frozen=True, kw_only=True)
class Barlow(BaseObjective):
    """Barlow Twins with a two-layer projector; it has no state but the weights."""

    weight: NotNegative = 5e-3
    """Weight of the correlations across dimensions."""
    dim: LayerWidth = 128
    """Width of the projector's output."""
    hidden: LayerWidth | None = None
    """Width of the projector's hidden layer; by default that of the backbone's features."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector, in order; by default plain, norm, relu, plain."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projector on the backbone."""
        return Model(
            backbone, build_projector(dim, self.hidden or dim, self.dim, norm=True, layers=self.layers), self, mean, std
        )

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute each example's contribution to the batch's loss, [B]; it may be negative, but the mean is not."""
        a, b = project_two_views(model, batch)
        return LossOutput(per_example_losses(a, b, self.weight))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Vary the first view's projection; the second view, C and all means are constants."""
        with torch.no_grad():
            a, b = project_two_views(model, batch)
            statistics = CorrelationStatistics.of(a, b, self.weight)
            constant = statistics.total - statistics.influence(a, b).mean()
        return lambda x: constant + statistics.influence(model(x), b)


def per_example_losses(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Compute ℓ of each pair of projections, [B]; the mean is the published loss."""
    statistics = CorrelationStatistics.of(a, b, weight)
    influence = statistics.influence(a, b)
    return statistics.total + influence - influence.mean()
