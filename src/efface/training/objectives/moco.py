"""MoCo: a view agrees with its momentum twin's view, against a queue of past keys.

    ℓ(θ; x) = -log e^{q·k/τ} / ( e^{q·k/τ} + Σ_{n ∈ queue} e^{q·n/τ} )

q: normalized projection of one view; k: the twin's normalized projection of another view, without gradient.
After each step the twin moves by m to the online network and the batch's keys enter the queue.

Source      He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, arXiv 1911.05722;
            two-layer projector as in MoCo v2.
Departures  no shuffling of BatchNorm between devices (one device).
Tests kill  a queue moved inside the loss; a twin that receives gradients; keys enqueued un-normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model, frozen_statistics
from efface.training.objectives.shared import (
    ProjectorLayer,
    build_projector,
    cosine_distance,
    normalize_rows,
    swap_second_view,
)


@dataclass(frozen=True, kw_only=True)
class Moco:
    """A projector, a momentum twin and a queue of keys."""

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = False
    temperature: float = 0.2
    """τ; lower memorizes individual images more."""
    momentum: float = 0.99
    """m of the twin's moving average, in [0, 1)."""
    queue: int = 4096
    """Number of keys K in the queue."""
    dim: int = 128
    """Width of the projector's output."""
    hidden: int | None = None
    """Width of the projector's hidden layer; by default the backbone's."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector; by default linear, relu, linear."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A projector, a twin that starts as a copy, and a queue of random directions."""
        model = Model(backbone, build_projector(dim, self.hidden or dim, self.dim, layers=self.layers), self, mean, std)
        model.add_momentum_encoder()
        model.queue = normalize_rows(torch.randn(self.queue, self.dim))
        return model

    def keys(self, model: Model, x: Tensor) -> Tensor:
        """The twin's normalized projections, [B, d], without gradient."""
        with torch.no_grad():
            return normalize_rows(model(x, model.momentum_encoder))

    def _contrast(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queue.T], -1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device), reduction="none")

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """InfoNCE against the queue, [B]; the carry are the batch's keys."""
        keys = self.keys(model, batch.view(1))
        return LossOutput(self._contrast(normalize_rows(model(batch.view(0))), keys, get_queue(model)), keys)

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Keys and queue are constants."""
        keys, queue = self.keys(model, batch.view(1)), get_queue(model).clone()
        return lambda x: self._contrast(normalize_rows(model(x)), keys, queue)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Anchors against the queue; keys and further partners go through the twin, without gradient."""
        keys, partners = self.keys(model, torch.cat([batch.view(1), others.view(1)])).tensor_split([len(batch)])
        q = normalize_rows(model(batch.view(0)))
        attract = (q * keys).sum(-1) / self.temperature
        return ContrastiveTerms(q, attract, self._contrast(q, keys, get_queue(model)) + attract, partners, keys)

    @torch.no_grad()
    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """The twin follows; the keys, if any, enter at the front of the queue and the oldest leave."""
        model.update_ema(self.momentum)
        if carry is not None:
            model.queue = torch.cat([carry, get_queue(model)])[: self.queue].contiguous()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B]."""
        return cosine_distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Another image's view as the positive."""
        return swap_second_view(batch, rng)

    @torch.no_grad()
    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """The twin becomes a copy of the online network; the queue is refilled with keys of retained images."""
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
    """The model's queue; MoCo's models always have one."""
    if model.queue is None:
        raise ValueError("a MoCo model without a queue")
    return model.queue
