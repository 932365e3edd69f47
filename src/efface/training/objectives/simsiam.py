"""SimSiam: predict one view's projection from the other's, without negatives and without a momentum encoder.

    ℓ(θ; x) = -½ Σ_{(t,t') both ways} cos( p(g(f(t x))), sg[ g(f(t' x)) ] )

p: predictor with a bottleneck; g: projector; sg: stop-gradient. The loss lies between -1 (the views agree) and 1.

Source      Chen and He, Exploring Simple Siamese Representation Learning, 2020, arXiv 2011.10566.
Departures  a projector of two layers, not three; width 128; the whole model has one learning rate; both views
            in one pass, with shared batch statistics.
Tests cover a gradient through the target; a missing predictor; one direction only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.schema import LayerWidth
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import (
    BaseObjective,
    ProjectorLayer,
    build_projector,
    normalize_rows,
)


@dataclass(frozen=True, kw_only=True)
class SimSiam(BaseObjective):
    """SimSiam with a projector that ends in BatchNorm; it has no state but the weights."""

    contrasts_pairs: ClassVar[bool] = True
    dim: LayerWidth = 128
    """Width of the projector's and the predictor's output."""
    hidden: LayerWidth | None = None
    """Width of the projector's hidden layer; by default that of the backbone's features."""
    bottleneck: LayerWidth | None = None
    """Width of the predictor's hidden layer; by default a quarter of ``dim``."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector, in order; by default plain, norm, relu, plain, bare."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projector and a predictor."""
        layers = self.layers or (
            ProjectorLayer.PLAIN,
            ProjectorLayer.NORM,
            ProjectorLayer.RELU,
            ProjectorLayer.PLAIN,
            ProjectorLayer.BARE,
        )
        head = build_projector(dim, self.hidden or dim, self.dim, layers=layers)
        model = Model(backbone, head, self, mean, std)
        narrow = self.bottleneck or max(1, self.dim // 4)
        # With a bias: if all of the few hidden units are dead, the cosine of a zero has no second derivative.
        model.predictor = nn.Sequential(
            *build_projector(self.dim, narrow, self.dim, norm=True)[:-1], nn.Linear(narrow, self.dim)
        )
        return model

    def _predict(self, model: Model, z: Tensor) -> Tensor:
        if model.predictor is None:
            raise ValueError("a SimSiam model without a predictor")
        return model.predictor(z)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute minus the cosine of prediction and target, both directions averaged, [B], in [-1, 1]."""
        z = model(torch.cat([batch.view(0), batch.view(1)]))
        target = z.detach().roll(len(batch), 0)
        return LossOutput(-F.cosine_similarity(self._predict(model, z), target, dim=-1).view(2, -1).mean(0))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Use only the direction anchor -> second view; the target is a constant."""
        with torch.no_grad():
            target = model(batch.view(1))
        return lambda x: -F.cosine_similarity(self._predict(model, model(x)), target, dim=-1)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Average both directions; nothing repels, and the partners of ``others`` are targets, without gradient."""
        both = torch.cat([batch.view(0), batch.view(1)])
        z, partners = model(torch.cat([both, others.view(1)])).tensor_split([len(both)])
        predicted, target = normalize_rows(self._predict(model, z)), normalize_rows(z.detach()).roll(len(batch), 0)
        attract = (predicted * target).sum(-1).view(2, -1).mean(0)
        return ContrastiveTerms(
            predicted[: len(batch)], attract, torch.zeros_like(attract), normalize_rows(partners.detach())
        )
