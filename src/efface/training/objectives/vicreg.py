"""VICReg: two views agree, every dimension varies over the batch, and no two dimensions are correlated.

    L(θ) = weight · mean_ik (a_ik - b_ik)² + Σ_{z ∈ {a, b}} [ ½ spread · V(z) + covariance · W(z) ]
    V(z) = mean_k (1 - S_k)₊,    S_k = √(c_kk + 10⁻⁴)            W(z) = 1/d · Σ_{k≠l} c_kl²

a, b: projections of the two views, [B, d]; c: the covariance matrix of z over the batch, with 1/(B - 1). The first
term is a loss per example, V and W are statistics of the batch; example i's contribution to L is, as in ``barlow``,

    L + d/dε L(batch in which x_i weighs ε more) = L + t_i - mean_j t_j,    t_i = B/(B - 1) · e_iᵀ (∂L/∂c) e_i

e_i = z_i - mean z. So mean_i ℓ = L exactly, and with everything else held constant the gradient of ℓ_i is B times
that of L, both with respect to x_i.

Source      Bardes et al., VICReg, 2021, arXiv 2105.04906.
Departures  the first term is averaged over dimensions and V halved, as in the authors' code, not as printed; a
            narrower expander of two layers instead of three; the paper defines no loss per example; both views
            in one pass, with shared batch statistics.
Tests cover a mean that is not the published loss; biased covariances; a loss for a batch of one.
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

VARIANCE_EPS = 1e-4
"""Added to each variance."""


@dataclass(frozen=True, eq=False)
class CovarianceStatistics:
    """Statistics of one view's projections over a batch that enter the loss of each of its examples."""

    center: Tensor
    """Mean of the projections, [d]."""
    slope: Tensor
    """B/(B - 1) times the derivative of V's and W's share in L with respect to the covariances, [d, d]."""
    total: Tensor
    """V's and W's share in L."""

    @staticmethod
    def of(z: Tensor, spread: float, covariance: float) -> CovarianceStatistics:
        """Compute the statistics from the projections of one view, [B, d]."""
        size, dim = z.shape
        center = z.mean(0)
        c = (z - center).T @ (z - center) / (size - 1)
        deviation = (c.diagonal() + VARIANCE_EPS).sqrt()
        across = c - c.diagonal().diag()
        narrow = -(deviation < 1).to(z.dtype) / (2 * deviation)
        slope = spread / 2 * narrow.diag() / dim + covariance * 2 * across / dim
        total = spread / 2 * (1 - deviation).relu().mean() + covariance * across.square().sum() / dim
        return CovarianceStatistics(center, slope * size / (size - 1), total)

    def influence(self, z: Tensor) -> Tensor:
        """Compute t of each projection, [B]."""
        e = z - self.center
        return ((e @ self.slope) * e).sum(-1)


@dataclass(frozen=True, kw_only=True)
class VicReg(BaseObjective):
    """VICReg with a two-layer projector (the paper's expander); it has no state but the weights."""

    weight: NotNegative = 25.0
    """Weight of the distance between the two views."""
    spread: NotNegative = 25.0
    """Weight of the variance term V."""
    covariance: NotNegative = 1.0
    """Weight of the covariance term W."""
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
        return LossOutput(self.contributions(*project_two_views(model, batch)))

    def contributions(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute ℓ of each pair of projections, [B]; the mean is the published loss."""
        loss = self.weight * (a - b).square().mean(-1)
        for z in (a, b):
            statistics = CovarianceStatistics.of(z, self.spread, self.covariance)
            influence = statistics.influence(z)
            loss = loss + statistics.total + influence - influence.mean()
        return loss

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Vary the first view's projection; the second view, all means and covariances are constants."""
        with torch.no_grad():
            a, b = project_two_views(model, batch)
            statistics = CovarianceStatistics.of(a, self.spread, self.covariance)
            constant = self.contributions(a, b) - self.weight * (a - b).square().mean(-1) - statistics.influence(a)

        def per_example(x: Tensor) -> Tensor:
            z = model(x)
            return constant + self.weight * (z - b).square().mean(-1) + statistics.influence(z)

        return per_example
