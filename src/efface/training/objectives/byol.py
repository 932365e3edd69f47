"""BYOL: predict the momentum encoder's projection of another view of the image, without negatives.

    ℓ(θ; x) = ½ Σ_{(t,t') both ways} [ 2 - 2 cos( p(g(f(t x))), sg[ ema(t' x) ] ) ]

p: predictor; g: projector; ema: momentum encoder; sg: stop-gradient.

Source      Grill et al., Bootstrap Your Own Latent, 2020, arXiv 2006.07733.
Departures  the two directions are averaged, not added (half the paper's loss); constant momentum; both views in
            one pass, with shared batch statistics.
Tests cover a momentum encoder that receives gradients; a missing predictor; one direction only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.schema import LayerWidth, Share
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import (
    BaseObjective,
    ProjectorLayer,
    build_projector,
    normalize_rows,
)


@dataclass(frozen=True, kw_only=True)
class Byol(BaseObjective):
    """BYOL with a two-layer projector, a predictor and a momentum encoder."""

    contrasts_pairs: ClassVar[bool] = True
    momentum: Share = 0.99
    """m of the momentum encoder's moving average, in [0, 1)."""
    dim: LayerWidth = 128
    """Width of the projector's and the predictor's output."""
    hidden: LayerWidth | None = None
    """Width of both hidden layers; by default that of the backbone's features."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector and of the predictor, in order; by default plain, norm, relu, plain."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projector, a predictor and a momentum encoder that starts as a copy."""
        hidden = self.hidden or dim
        model = Model(backbone, build_projector(dim, hidden, self.dim, norm=True, layers=self.layers), self, mean, std)
        model.predictor = build_projector(self.dim, hidden, self.dim, norm=True, layers=self.layers)
        model.add_momentum_encoder()
        return model

    def _predict(self, model: Model, x: Tensor) -> Tensor:
        if model.predictor is None:
            raise ValueError("a BYOL model without a predictor")
        return model.predictor(model(x))

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute 2 - 2 cos of prediction and target, both directions averaged, [B], in [0, 4]."""
        both = torch.cat([batch.view(0), batch.view(1)])
        with torch.no_grad():
            target = model(both, model.momentum_encoder)
        swapped = target.roll(len(batch), 0)
        distance = 2 - 2 * F.cosine_similarity(self._predict(model, both), swapped, dim=-1)
        return LossOutput(distance.view(2, -1).mean(0))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Use only the direction anchor -> second view; the target is a constant."""
        with torch.no_grad():
            target = model(batch.view(1), model.momentum_encoder)
        return lambda x: 2 - 2 * F.cosine_similarity(self._predict(model, x), target, dim=-1)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Average both directions; nothing repels, and partners come from the momentum encoder, without gradient."""
        both = torch.cat([batch.view(0), batch.view(1)])
        with torch.no_grad():
            target, partners = normalize_rows(
                model(torch.cat([both, others.view(1)]), model.momentum_encoder)
            ).tensor_split([len(both)])
        predicted = normalize_rows(self._predict(model, both))
        attract = 2 * (predicted * target.roll(len(batch), 0)).sum(-1).view(2, -1).mean(0)
        return ContrastiveTerms(predicted[: len(batch)], attract, torch.full_like(attract, 2.0), partners)

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Update the momentum encoder."""
        model.update_ema(self.momentum)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Reset the momentum encoder to the online network."""
        model.add_momentum_encoder()
        return {"twin": "copied from the online network"}
