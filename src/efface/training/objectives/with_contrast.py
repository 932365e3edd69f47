"""CoUn's contrastive term added to an objective: the features of two views of an image agree.

    ℓ'(θ; x_n) = ℓ(θ; x_n) + λ · [ ℓ(z_n → Z') + ℓ(z'_n → Z) ]
    ℓ(z_n → Z') = -log e^{z_n·z'_n/τ} / Σ_j e^{z_n·z'_j/τ}

ℓ: the wrapped objective; z_n, z'_n: normalized features (before any head) of the first and second view; Z, Z': those
of the batch. First views are compared with second views only, and gradients flow through both.

Source      Khalil, Setayesh and Li, CoUn: Empowering Machine Unlearning via Contrastive Learning, 2025,
            arXiv 2509.16391.
Departures  the term may be restricted to some of the examples (``only``), such as the retained ones in methods that
            mix both in a batch; encoders can be wrapped as well as classifiers.
Tests cover negatives from the same view; one direction; a view without gradient; features after the head.
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
    """Compute ℓ(z_n → Z') + ℓ(z'_n → Z) of normalized rows [B, d], [B]; lower: the two views agree more."""
    logits, target = z @ other.T / tau, torch.arange(len(z), device=z.device)
    return F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")


@dataclass(frozen=True)
class WithContrast:
    """An objective with a contrastive term added to its loss; everything else is the wrapped objective's."""

    needs_labels: ClassVar[bool]
    contrasts_pairs: ClassVar[bool]
    needs_captions: ClassVar[bool]
    objective: Objective
    """The wrapped objective: the one that the checkpoint was trained with."""
    weight: float = 1.0
    """Weight λ of the contrastive term; 0 turns it off."""
    tau: float = 0.1
    """Temperature τ of the term."""
    only: Tensor | None = field(default=None, compare=False)
    """True for the examples of the data that have the term, bool [N]; by default all."""
    on_term: Callable[[Tensor], object] | None = field(default=None, compare=False)
    """Called with the unweighted term of each example that has it, [n] without gradient, whenever it is computed."""

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise EffaceError(f"The temperature of the contrastive term cannot be {self.tau}.", "It must be above 0.")
        object.__setattr__(self, "needs_labels", self.objective.needs_labels)
        object.__setattr__(self, "contrasts_pairs", self.objective.contrasts_pairs)
        object.__setattr__(self, "needs_captions", self.objective.needs_captions)

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build the wrapped objective's model, to be trained with this loss."""
        model = self.objective.build_model(backbone, dim, classes, mean, std)
        model.objective = self
        return model

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute the wrapped loss plus the term, [B]; a view that both use goes through the backbone once."""
        with share_features(model):
            output = self.objective.loss(model, batch)
            return LossOutput(output.per_example + self.term(model, batch), output.carry)

    def term(self, model: Model, batch: Batch) -> Tensor:
        """Compute the weighted term of each example, [B]; 0 for those that do not have it."""
        rows, zeros = self._rows(batch), batch.clean.new_zeros(len(batch))
        if not self.weight or not len(rows):
            return zeros
        first, second = (normalize_rows(model.features(select_rows(batch.view(number), rows))) for number in (0, 1))
        term = cross_view(first, second, self.tau)
        if self.on_term is not None:
            self.on_term(term.detach())
        return zeros.index_add(0, rows, self.weight * term)

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return the wrapped anchor loss plus the term; the features of all other images and views are constants."""
        inner, rows = self.objective.anchor_loss(model, batch), self._rows(batch)
        if not self.weight or not len(rows):
            return inner
        with torch.no_grad():
            first, second = (normalize_rows(model.features(select_rows(batch.view(number), rows))) for number in (0, 1))

        def per_example(x: Tensor) -> Tensor:
            z = normalize_rows(model.features(select_rows(x, rows)))
            attract = (z * second).sum(-1) / self.tau
            forward = (z @ second.T / self.tau).logsumexp(-1)
            others = (second @ first.T / self.tau).fill_diagonal_(-torch.inf)
            backward = torch.cat([others, attract[:, None]], -1).logsumexp(-1)
            return inner(x).index_add(0, rows, self.weight * (forward + backward - 2 * attract))

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Split the wrapped loss; the term, which both attracts and repels, is added to the repulsion."""
        with share_features(model):
            terms = self.objective.contrastive_terms(model, batch, others)
            return replace(terms, repel=terms.repel + self.term(model, batch))

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Defer to the wrapped objective."""
        self.objective.after_step(model, carry)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Defer to the wrapped objective, [B]."""
        return self.objective.distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Defer to the wrapped objective."""
        return self.objective.corrupt_targets(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Defer to the wrapped objective."""
        return self.objective.purge(model, retain)

    def _rows(self, batch: Batch) -> Tensor:
        """List the rows of the batch that have the term."""
        device = batch.clean.device
        if self.only is None:
            return torch.arange(len(batch), device=device)
        return self.only[batch.ids].nonzero().flatten().to(device)


def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Select rows of ``x``; returns ``x`` itself for all of them, so that shared features are found again."""
    return x if len(rows) == len(x) else x[rows]
