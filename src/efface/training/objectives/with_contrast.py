"""An objective with CoUn's contrastive term beside it: features of two views agree, against the batch's other images.

    ℓ'(θ; x_n) = ℓ(θ; x_n) + λ · [ ℓ(z_n → Z') + ℓ(z'_n → Z) ]
    ℓ(z_n → Z') = -log e^{z_n·z'_n/τ} / Σ_j e^{z_n·z'_j/τ}

ℓ: the objective it is put around; z_n, z'_n: normalized features (before any head) of the first and second view;
Z, Z': those of the batch. Only views of the other kind are compared, and gradients flow through both.

Source      Khalil, Setayesh and Li, CoUn: Empowering Machine Unlearning via Contrastive Learning, 2025,
            arXiv 2509.16391.
Departures  the term may be taken over some of the examples only (``only``), so that it stays a term of the retained
            ones in methods that mix both; it goes around encoders as well as classifiers.
Tests kill  negatives of the own view; one direction; a view without gradient; features after the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model, Objective, share_features
from efface.training.objectives.shared import normalize_rows


def cross_view(z: Tensor, other: Tensor, tau: float) -> Tensor:
    """ℓ(z_n → Z') + ℓ(z'_n → Z) of normalized rows [B, d], [B]; lower where the two views of an image agree."""
    logits, own = z @ other.T / tau, torch.arange(len(z), device=z.device)
    return F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")


@dataclass(frozen=True)
class WithContrast:
    """An objective around an objective; everything but the loss is the inner one's."""

    needs_labels: ClassVar[bool]
    contrasts_pairs: ClassVar[bool]
    needs_captions: ClassVar[bool]
    objective: Objective
    """What the checkpoint was trained with."""
    weight: float = 1.0
    """Weight λ of the contrastive term; 0 leaves the objective as it is."""
    tau: float = 0.1
    """Temperature τ of the term."""
    only: Tensor | None = field(default=None, compare=False)
    """True for the examples of the data that the term is taken over, bool [N]; by default all."""

    told: Callable[[Tensor], object] | None = field(default=None, compare=False)
    """Called with the unweighted term of the examples that it was taken over, [n] without gradient, each time."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise EffaceError(f"The temperature of the contrastive term cannot be {self.tau}.", "It must be above 0.")
        object.__setattr__(self, "needs_labels", self.objective.needs_labels)
        object.__setattr__(self, "contrasts_pairs", self.objective.contrasts_pairs)
        object.__setattr__(self, "needs_captions", self.objective.needs_captions)

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """The inner objective's model, trained with this loss."""
        model = self.objective.build_model(backbone, dim, classes, mean, std)
        model.objective = self
        return model

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """The inner loss and the term, [B]; a view that both look at goes through the backbone once."""
        with share_features(model):
            outcome = self.objective.loss(model, batch)
            return LossOutput(outcome.per_example + self.term(model, batch), outcome.carry)

    def term(self, model: Model, batch: Batch) -> Tensor:
        """The weighted term of each example, [B]; 0 for those that it is not taken over."""
        rows, empty = self._rows(batch), batch.clean.new_zeros(len(batch))
        if not self.weight or not len(rows):
            return empty
        first, second = (normalize_rows(model.features(select_rows(batch.view(number), rows))) for number in (0, 1))
        term = cross_view(first, second, self.tau)
        if self.told is not None:
            self.told(term.detach())
        return empty.index_add(0, rows, self.weight * term)

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The inner anchored loss and the term, as functions of the first view; all other features are constants."""
        inner, rows = self.objective.anchor_loss(model, batch), self._rows(batch)
        if not self.weight or not len(rows):
            return inner
        with torch.no_grad():
            first, second = (normalize_rows(model.features(select_rows(batch.view(number), rows))) for number in (0, 1))

        def per_example(x: Tensor) -> Tensor:
            z = normalize_rows(model.features(select_rows(x, rows)))
            attract = (z * second).sum(-1) / self.tau
            there = (z @ second.T / self.tau).logsumexp(-1)
            others = (second @ first.T / self.tau).fill_diagonal_(-torch.inf)
            back = torch.cat([others, attract[:, None]], -1).logsumexp(-1)
            return inner(x).index_add(0, rows, self.weight * (there + back - 2 * attract))

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """The inner objective's parts; the term, which attracts and repels at once, counts as repelling."""
        with share_features(model):
            parts = self.objective.contrastive_terms(model, batch, others)
            return replace(parts, repel=parts.repel + self.term(model, batch))

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """As the inner objective does."""
        self.objective.after_step(model, carry)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """As the inner objective has it, [B]."""
        return self.objective.distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """As the inner objective does."""
        return self.objective.corrupt_targets(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """As the inner objective does."""
        return self.objective.purge(model, retain)

    def _rows(self, batch: Batch) -> Tensor:
        """Rows of the batch that the term is taken over."""
        device = batch.clean.device
        if self.only is None:
            return torch.arange(len(batch), device=device)
        return self.only[batch.ids].nonzero().flatten().to(device)


def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of ``x``; ``x`` itself if they are all."""
    return x if len(rows) == len(x) else x[rows]
