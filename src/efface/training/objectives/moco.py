"""MoCo: a view agrees with the momentum encoder's view of the image, in contrast to a queue of past keys.

    ℓ(θ; x) = -log e^{q·k/τ} / ( e^{q·k/τ} + Σ_{n ∈ queue} e^{q·n/τ} )

q: normalized projection of one view; k: the momentum encoder's normalized projection of another view, without
gradient. After each step the momentum encoder is updated with momentum m and the batch's keys enter the queue.

Source      He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, arXiv 1911.05722;
            two-layer projector as in MoCo v2.
Departures  no shuffling of BatchNorm between devices: with several processes, all normalize by the whole batch.
Tests cover a queue moved inside the loss; a momentum encoder that receives gradients; keys that are not normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.schema import Count, LayerWidth, Positive, Share
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model, frozen_statistics
from efface.training.objectives.shared import (
    BaseObjective,
    ProjectorLayer,
    build_projector,
    normalize_rows,
)


@dataclass(frozen=True, kw_only=True)
class Moco(BaseObjective):
    """MoCo with a two-layer projector, a momentum encoder and a queue of keys."""

    contrasts_pairs: ClassVar[bool] = True
    smallest_batch: ClassVar[int] = 1
    temperature: Positive = 0.2
    """τ; lower values memorize individual images more."""
    momentum: Share = 0.99
    """m of the momentum encoder's moving average, in [0, 1)."""
    queue: Count = 4096
    """Number of keys in the queue."""
    dim: LayerWidth = 128
    """Width of the projector's output."""
    hidden: LayerWidth | None = None
    """Width of the projector's hidden layer; by default that of the backbone's features."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector, in order; by default linear, relu, linear."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projector, a momentum encoder (a copy at first) and a queue of random directions."""
        model = Model(backbone, build_projector(dim, self.hidden or dim, self.dim, layers=self.layers), self, mean, std)
        model.add_momentum_encoder()
        model.queue = normalize_rows(torch.randn(self.queue, self.dim))
        return model

    def keys(self, model: Model, x: Tensor) -> Tensor:
        """Compute the momentum encoder's normalized projections, [B, d], without gradient."""
        with torch.no_grad():
            return normalize_rows(model(x, model.momentum_encoder))

    def _contrast(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queue.T], -1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device), reduction="none")

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute InfoNCE against the queue, [B]; the batch's keys are the carry."""
        keys = self.keys(model, batch.view(1))
        return LossOutput(self._contrast(normalize_rows(model(batch.view(0))), keys, get_queue(model)), keys)

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Vary the anchors; keys and queue are constants."""
        keys, queue = self.keys(model, batch.view(1)), get_queue(model).clone()
        return lambda x: self._contrast(normalize_rows(model(x)), keys, queue)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Contrast anchors with the queue; keys and partners come from the momentum encoder, without gradient."""
        keys, partners = self.keys(model, torch.cat([batch.view(1), others.view(1)])).tensor_split([len(batch)])
        q = normalize_rows(model(batch.view(0)))
        attract = (q * keys).sum(-1) / self.temperature
        return ContrastiveTerms(q, attract, self._contrast(q, keys, get_queue(model)) + attract, partners, keys)

    @torch.no_grad()
    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Update the momentum encoder; put the keys, if any, at the front of the queue and drop the oldest."""
        model.update_ema(self.momentum)
        if carry is not None:
            model.queue = torch.cat([carry, get_queue(model)])[: self.queue].contiguous()

    @torch.no_grad()
    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Reset the momentum encoder to the online network; refill the queue with keys of retained images."""
        model.add_momentum_encoder()
        fresh: list[Tensor] = []
        with frozen_statistics(model):
            for batch in retain:
                fresh.append(self.keys(model, batch.view(1)))
                if sum(map(len, fresh)) >= self.queue:
                    break
        if not fresh:
            model.queue = normalize_rows(torch.randn_like(get_queue(model)))
            return {"twin": "copied from the online network", "queue": "replaced by random directions"}
        keys = torch.cat(fresh)
        model.queue = keys.repeat(-(-self.queue // len(keys)), 1)[: self.queue].contiguous()
        return {"twin": "copied from the online network", "queue": "refilled with keys of retained examples"}


def get_queue(model: Model) -> Tensor:
    """Return the model's queue; every MoCo model has one."""
    if model.queue is None:
        raise ValueError("a MoCo model without a queue")
    return model.queue
