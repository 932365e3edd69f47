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

from efface.model import Model, frozen_statistics
from efface.objectives.protocol import Layer, cosine_distance, foreign_view, projector, unit
from efface.types import Batch, Contrast, Outcome


@dataclass(frozen=True, kw_only=True)
class Moco:
    """A projector, a momentum twin and a queue of keys."""

    labelled: ClassVar[bool] = False
    paired: ClassVar[bool] = True
    captioned: ClassVar[bool] = False
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
    layers: tuple[Layer, ...] | None = None
    """Layers of the projector; by default linear, relu, linear."""

    def equip(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A projector, a twin that starts as a copy, and a queue of random directions."""
        model = Model(backbone, projector(dim, self.hidden or dim, self.dim, layers=self.layers), self, mean, std)
        model.add_twin()
        model.queue = unit(torch.randn(self.queue, self.dim))
        return model

    def keys(self, model: Model, x: Tensor) -> Tensor:
        """The twin's normalized projections, [B, d], without gradient."""
        with torch.no_grad():
            return unit(model(x, model.twin))

    def _contrast(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queue.T], -1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device), reduction="none")

    def loss(self, model: Model, batch: Batch) -> Outcome:
        """InfoNCE against the queue, [B]; the carry are the batch's keys."""
        keys = self.keys(model, batch.view(1))
        return Outcome(self._contrast(unit(model(batch.view(0))), keys, queue_of(model)), keys)

    def anchored(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Keys and queue are constants."""
        keys, queue = self.keys(model, batch.view(1)), queue_of(model).clone()
        return lambda x: self._contrast(unit(model(x)), keys, queue)

    def contrast(self, model: Model, batch: Batch, others: Batch) -> Contrast:
        """Anchors against the queue; keys and further partners go through the twin, without gradient."""
        keys, partners = self.keys(model, torch.cat([batch.view(1), others.view(1)])).tensor_split([len(batch)])
        q = unit(model(batch.view(0)))
        attract = (q * keys).sum(-1) / self.temperature
        return Contrast(q, attract, self._contrast(q, keys, queue_of(model)) + attract, partners, keys)

    @torch.no_grad()
    def advance(self, model: Model, carry: Tensor | None) -> None:
        """The twin follows; the keys, if any, enter at the front of the queue and the oldest leave."""
        model.follow(self.momentum)
        if carry is not None:
            model.queue = torch.cat([carry, queue_of(model)])[: self.queue].contiguous()

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B]."""
        return cosine_distance(a, b)

    def scramble(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Another image's view as the positive."""
        return foreign_view(batch, rng)

    @torch.no_grad()
    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """The twin becomes a copy of the online network; the queue is refilled with keys of retained images."""
        model.add_twin()
        fresh: list[Tensor] = []
        with frozen_statistics(model):
            for batch in retain:
                fresh.append(self.keys(model, batch.view(1)))
                if sum(map(len, fresh)) >= self.queue:
                    break
        if not fresh:
            model.queue = unit(torch.randn_like(queue_of(model)))
            return {"twin": "copied from the online network", "queue": "replaced by random directions"}
        keys = torch.cat(fresh)
        model.queue = keys.repeat(-(-self.queue // len(keys)), 1)[: self.queue].contiguous()
        return {"twin": "copied from the online network", "queue": "refilled with keys of retained examples"}


def queue_of(model: Model) -> Tensor:
    """The model's queue; MoCo's models always have one."""
    if model.queue is None:
        raise ValueError("a MoCo model without a queue")
    return model.queue
