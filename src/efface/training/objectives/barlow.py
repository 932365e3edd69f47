"""Barlow Twins: two views' projections correlate perfectly per dimension, and not at all across dimensions.

    L(θ) = Σ_k (1 - C_kk)² + weight · Σ_{k≠l} C_kl²,    C_kl = mean_i a_ik b_il

a, b: projections of the two views, standardized over the batch. L belongs to a batch; example i's part in it is

    ℓ(θ; x_i) = L + d/dε L(batch in which x_i weighs ε more)
              = L + t_i - mean_j t_j,    t_i = Σ_kl G_kl [ a_ik b_il - ½ C_kl (a_ik² + b_il²) ],    G = ∂L/∂C

(the influence function of a correlation). So mean_i ℓ = L exactly, and with everything else held constant the
gradient of ℓ_i is B times that of L with respect to x_i.

Source      Zbontar et al., Barlow Twins, 2021, arXiv 2103.03230.
Departures  a projector of two layers, not three, and narrower; the paper has no loss per example.
Tests kill  a mean that is not the published loss; a diagonal weighed as the rest; a batch of one scored as a number.
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

NORM_EPS = 1e-5
"""Added to each variance, as BatchNorm does."""


@dataclass(frozen=True, eq=False)
class CorrelationStatistics:
    """What of a batch enters every example's loss."""

    center: Tensor
    """Mean of each view's projections, [2, 1, d]."""
    scale: Tensor
    """Standard deviation of each, [2, 1, d]."""
    slope: Tensor
    """G = ∂L/∂C, [d, d]."""
    pull: Tensor
    """Σ over the other view's dimensions of ½ G C, [2, d]: what an example's own variance costs."""
    total: Tensor
    """L."""

    @staticmethod
    def of(a: Tensor, b: Tensor, weight: float) -> CorrelationStatistics:
        """From both views' projections, [B, d] each."""
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
        """t of each pair of projections, [B]."""
        u, v = (a - self.center[0]) / self.scale[0], (b - self.center[1]) / self.scale[1]
        return ((u @ self.slope) * v).sum(-1) - u.square() @ self.pull[0] - v.square() @ self.pull[1]


@dataclass(frozen=True, kw_only=True)
class Barlow:
    """A projector with BatchNorm; the state is the weights alone."""

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = False
    needs_captions: ClassVar[bool] = False
    weight: float = 5e-3
    """Weight of the correlations across dimensions."""
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
        a, b = project_two_views(model, batch)
        return LossOutput(per_example_losses(a, b, self.weight))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The first view's projection varies; the second view, C and all means are constants."""
        with torch.no_grad():
            a, b = project_two_views(model, batch)
            batchwide = CorrelationStatistics.of(a, b, self.weight)
            rest = batchwide.total - batchwide.influence(a, b).mean()
        return lambda x: rest + batchwide.influence(model(x), b)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Its loss is about dimensions, not pairs: an error."""
        raise no_pairs_error("Barlow Twins")

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


def per_example_losses(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """ℓ of each pair of projections, [B]; their mean is the published loss."""
    batchwide = CorrelationStatistics.of(a, b, weight)
    own = batchwide.influence(a, b)
    return batchwide.total + own - own.mean()
