"""VICReg: two views agree, every dimension varies over the batch, and no two dimensions covary.

    L(θ) = weight · mean_ik (a_ik - b_ik)² + Σ_{z ∈ {a, b}} [ ½ spread · V(z) + covariance · W(z) ]
    V(z) = mean_k (1 - S_k)₊,    S_k = √(c_kk + 10⁻⁴)            W(z) = 1/d · Σ_{k≠l} c_kl²

a, b: projections of the two views, [B, d]; c: the covariance matrix of z over the batch, with 1/(B - 1). The first
term belongs to an example, V and W to a batch; example i's part in them is, as in ``barlow``,

    L + d/dε L(batch in which x_i weighs ε more) = L + t_i - mean_j t_j,    t_i = B/(B - 1) · e_iᵀ (∂L/∂c) e_i

e_i = z_i - mean z. So mean_i ℓ = L exactly, and with everything else held constant the gradient of ℓ_i is B times
that of L with respect to x_i.

Source      Bardes et al., VICReg, 2021, arXiv 2105.04906.
Departures  first term averaged over dimensions and V halved, as in the authors' code, not as printed; an expander
            of two layers, not three, and narrower; the paper has no loss per example.
Tests kill  a mean that is not the published loss; biased covariances; a batch of one scored as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import (
    ProjectorLayer,
    build_projector,
    cosine_distance,
    no_pairs_error,
    project_two_views,
    swap_second_view,
)

VARIANCE_EPS = 1e-4
"""Added to each variance."""


@dataclass(frozen=True, eq=False)
class CovarianceStatistics:
    """What of a batch's projections of one view enters every example's loss."""

    center: Tensor
    """Mean, [d]."""
    slope: Tensor
    """B/(B - 1) times the derivative of V's and W's share in L by the covariances, [d, d]."""
    total: Tensor
    """V's and W's share in L."""

    @staticmethod
    def of(z: Tensor, spread: float, covariance: float) -> CovarianceStatistics:
        """From one view's projections, [B, d]."""
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
        """t of each projection, [B]."""
        e = z - self.center
        return ((e @ self.slope) * e).sum(-1)


@dataclass(frozen=True, kw_only=True)
class VicReg:
    """A projector (the paper's expander) with BatchNorm; the state is the weights alone."""

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = False
    needs_captions: ClassVar[bool] = False
    weight: float = 25.0
    """Weight of the views' agreement."""
    spread: float = 25.0
    """Weight of every dimension's variance."""
    covariance: float = 1.0
    """Weight of the covariances."""
    dim: int = 128
    """Width of the projector's output."""
    hidden: int | None = None
    """Width of the projector's hidden layer; by default the backbone's."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector; by default plain, norm, relu, plain."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A projector on the backbone."""
        return Model(
            backbone, build_projector(dim, self.hidden or dim, self.dim, norm=True, layers=self.layers), self, mean, std
        )

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Each example's part in the batch's loss, [B]; it may be negative, their mean is not."""
        return LossOutput(self.contributions(*project_two_views(model, batch)))

    def contributions(self, a: Tensor, b: Tensor) -> Tensor:
        """ℓ of each pair of projections, [B]; their mean is the published loss."""
        loss = self.weight * (a - b).square().mean(-1)
        for z in (a, b):
            batchwide = CovarianceStatistics.of(z, self.spread, self.covariance)
            own = batchwide.influence(z)
            loss = loss + batchwide.total + own - own.mean()
        return loss

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The first view's projection varies; the second view, all means and covariances are constants."""
        with torch.no_grad():
            a, b = project_two_views(model, batch)
            batchwide = CovarianceStatistics.of(a, self.spread, self.covariance)
            rest = self.contributions(a, b) - self.weight * (a - b).square().mean(-1) - batchwide.influence(a)

        def per_example(x: Tensor) -> Tensor:
            z = model(x)
            return rest + self.weight * (z - b).square().mean(-1) + batchwide.influence(z)

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Its loss is about dimensions, not pairs: an error."""
        raise no_pairs_error("VICReg")

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """There is neither twin nor queue."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B]."""
        return cosine_distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Another image's view as the partner."""
        return swap_second_view(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """There is neither twin nor queue."""
        return {}
