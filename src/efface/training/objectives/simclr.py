"""SimCLR: two views of an image agree, against every other view in the batch (NT-Xent).

    ℓ(θ; x_i) = ½ Σ_{(u,v) ∈ {(a_i,b_i), (b_i,a_i)}} [ -u·v/τ + log Σ_{w ≠ u} e^{u·w/τ} ]

a_i, b_i: normalized projections of two random views; w runs over the other 2B - 1 projections of the batch.

Source      Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020, arXiv 2002.05709.
Tests kill  a diagonal left among the negatives; one direction only; a mean taken too early.
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
    normalize_rows,
    swap_second_view,
)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent of normalized views a and b, [B, d] each; per example, [B], both directions averaged."""
    return nt_xent_repulsion(a, b, temperature) - (a * b).sum(-1) / temperature


def nt_xent_repulsion(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """log Σ e^{u·w/τ} over the other 2B - 1 views w; per example, [B], averaged over its two views u."""
    z = torch.cat([a, b])
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    return logits.logsumexp(-1).view(2, -1).mean(0)


@dataclass(frozen=True, kw_only=True)
class SimClr:
    """A two-layer projector; the state is the weights alone."""

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = False
    temperature: float = 0.5
    """τ; lower memorizes individual images more."""
    dim: int = 128
    """Width of the projector's output."""
    hidden: int | None = None
    """Width of the projector's hidden layer; by default the backbone's."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of the projector; by default linear, relu, linear."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A projector on the backbone."""
        return Model(backbone, build_projector(dim, self.hidden or dim, self.dim, layers=self.layers), self, mean, std)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """NT-Xent of the first two views, [B]."""
        a, b = normalize_rows(model(torch.cat([batch.view(0), batch.view(1)]))).chunk(2)
        return LossOutput(nt_xent(a, b, self.temperature))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Only the direction anchor -> second view; the other anchors and all second views are constants."""
        with torch.no_grad():
            a, b = normalize_rows(model(torch.cat([batch.view(0), batch.view(1)]))).chunk(2)

        def per_example(x: Tensor) -> Tensor:
            z = normalize_rows(model(x))
            to_anchors = (z @ a.T / self.temperature).fill_diagonal_(-torch.inf)
            to_views = z @ b.T / self.temperature
            return torch.cat([to_anchors, to_views], -1).logsumexp(-1) - to_views.diagonal()

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Both directions averaged; every view of ``batch`` is pushed from every other one."""
        rows = [len(batch), len(batch), len(others)]
        a, b, c = normalize_rows(model(torch.cat([batch.view(0), batch.view(1), others.view(1)]))).split(rows)
        return ContrastiveTerms(a, (a * b).sum(-1) / self.temperature, nt_xent_repulsion(a, b, self.temperature), c)

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """There is neither twin nor queue."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine, [B]."""
        return cosine_distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Another image's view as the positive."""
        return swap_second_view(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """There is neither twin nor queue."""
        return {}
