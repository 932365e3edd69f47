"""SimCLR: two views of an image agree, in contrast to every other view in the batch (NT-Xent).

    ℓ(θ; x_i) = ½ Σ_{(u,v) ∈ {(a_i,b_i), (b_i,a_i)}} [ -u·v/τ + log Σ_{w ≠ u} e^{u·w/τ} ]

a_i, b_i: normalized projections of two random views; w runs over the other 2B - 1 projections of the batch.

Source      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv 2002.05709.
Departures  both views go through the network in one pass and share batch statistics (in lightly's examples each view
            has a pass of its own); no large batch, LARS or square-root scaling of the rate.
Tests cover a diagonal left among the negatives; one direction only; a mean taken too early.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from efface.schema import LayerWidth, Positive
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import (
    BaseObjective,
    ProjectorLayer,
    build_projector,
    normalize_rows,
)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent of normalized views a and b, [B, d] each; per example, [B], both directions averaged."""
    return nt_xent_repulsion(a, b, temperature) - (a * b).sum(-1) / temperature


def nt_xent_repulsion(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Compute log Σ e^{u·w/τ} over the other 2B - 1 views w; per example, [B], averaged over its two views u."""
    z = torch.cat([a, b])
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    return logits.logsumexp(-1).view(2, -1).mean(0)


@dataclass(frozen=True, kw_only=True)
class SimClr(BaseObjective):
    """SimCLR with a two-layer projector; it has no state but the weights."""

    contrasts_pairs: ClassVar[bool] = True
    temperature: Positive = 0.5
    """τ; lower values memorize individual images more."""
    dim: LayerWidth = 128
    """Width of the projector's output."""
    hidden: LayerWidth | None = None
    """Width of the projector's hidden layer; by default that of the backbone's features."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector, in order; by default linear, relu, linear."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projector on the backbone."""
        return Model(backbone, build_projector(dim, self.hidden or dim, self.dim, layers=self.layers), self, mean, std)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute NT-Xent of the first two views, [B]."""
        a, b = normalize_rows(model(torch.cat([batch.view(0), batch.view(1)]))).chunk(2)
        return LossOutput(nt_xent(a, b, self.temperature))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Use only the direction anchor -> second view; the other anchors and all second views are constants."""
        with torch.no_grad():
            a, b = normalize_rows(model(torch.cat([batch.view(0), batch.view(1)]))).chunk(2)

        def per_example(x: Tensor) -> Tensor:
            z = normalize_rows(model(x))
            to_anchors = (z @ a.T / self.temperature).fill_diagonal_(-torch.inf)
            to_views = z @ b.T / self.temperature
            return torch.cat([to_anchors, to_views], -1).logsumexp(-1) - to_views.diagonal()

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Average both directions; every view of ``batch`` repels every other one."""
        rows = [len(batch), len(batch), len(others)]
        a, b, c = normalize_rows(model(torch.cat([batch.view(0), batch.view(1), others.view(1)]))).split(rows)
        return ContrastiveTerms(a, (a * b).sum(-1) / self.temperature, nt_xent_repulsion(a, b, self.temperature), c)
