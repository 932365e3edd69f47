"""Differentiable margins: how much more similar an example is to itself than to other examples.

    s(x) = cos(z, z') - τ/2 · Σ_{u ∈ {z, z'}} log mean_{b ∈ B} e^{cos(u, b)/τ}        in a space of embeddings
    s(x) = z_y - log Σ_{c ≠ y} e^{z_c}                                                 of a classifier's logits

z, z': embeddings of two views; B (the bank): both views of the last examples of the batch, without those of x itself.
A higher margin is more member-like. The margins of an audit are the same up to a constant and a factor, with more views
and a bank of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics
from efface.training.objectives.shared import normalize_rows

BACKBONE, OUTPUT = "backbone", "output"


def compute_margins(model: Model, batch: Batch, bank: int, tau: float) -> dict[str, Tensor]:
    """Margin of each example in the backbone's features and in the output (embeddings of the projector, or logits).

    BatchNorm uses its running statistics, so that examples do not affect each other.

    Args:
        model: The model whose margins are measured.
        batch: The examples; the last ``bank`` of them are the bank.
        bank: Number of examples in the bank, at least 2.
        tau: Temperature τ in spaces of embeddings.

    Returns:
        Margins [B] by space, ``backbone`` and ``output``; higher is more member-like.

    """
    with frozen_statistics(model):
        features = model.features(torch.cat([batch.view(0), batch.view(1)]))
        outputs = model.project(features)
    first_features, second_features = features.tensor_split(2)
    first, second = outputs.tensor_split(2)
    if model.objective.needs_labels:
        output = label_margin(first, batch.labels())
    else:
        output = contrastive_margin(first, second, bank, tau)
    return {BACKBONE: contrastive_margin(first_features, second_features, bank, tau), OUTPUT: output}


def compute_margins_beside(
    model: Model, batch: Batch, unseen: Batch, tau: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Margins of a batch and of unseen examples, with the unseen ones as a bank that has no gradient.

    Args:
        model: The model whose margins are measured.
        batch: The examples whose margins are wanted with their gradient.
        unseen: The bank, at least 2 examples.
        tau: Temperature τ in spaces of embeddings.

    Returns:
        Margins [B] of ``batch`` and [V] of ``unseen``, by space; those of ``unseen`` have no gradient.

    """
    found: list[list[Tensor]] = []
    with frozen_statistics(model):
        for one, with_gradient in ((batch, torch.is_grad_enabled()), (unseen, False)):
            with torch.set_grad_enabled(with_gradient):
                features = model.features(torch.cat([one.view(0), one.view(1)]))
                outputs = model.project(features)
            found.append([half for space in (features, outputs) for half in space.tensor_split(2)])
    size = len(batch)
    first_f, second_f, first_o, second_o = (torch.cat(pair) for pair in zip(*found, strict=True))
    margins = {BACKBONE: contrastive_margin(first_f, second_f, len(unseen), tau)}
    if model.objective.needs_labels:
        margins[OUTPUT] = label_margin(first_o, torch.cat([batch.labels(), unseen.labels()]))
    else:
        margins[OUTPUT] = contrastive_margin(first_o, second_o, len(unseen), tau)
    return (
        {space: values[:size] for space, values in margins.items()},
        {space: values[size:].detach() for space, values in margins.items()},
    )


def contrastive_margin(first: Tensor, second: Tensor, bank: int, tau: float) -> Tensor:
    """Margin of each example, [B], from the embeddings of two views, [B, d] each; the last ``bank`` rows are B."""
    a, b, count = normalize_rows(first), normalize_rows(second), len(first)
    rows = torch.arange(count, device=a.device)
    is_self = rows[:, None] == rows[count - bank :].repeat(2)[None]
    bank_rows = torch.cat([a[count - bank :], b[count - bank :]])
    log_sums = [(u @ bank_rows.T / tau).masked_fill(is_self, -torch.inf).logsumexp(1) for u in (a, b)]
    return (a * b).sum(1) - tau * ((log_sums[0] + log_sums[1]) / 2 - (~is_self).sum(1).log())


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log odds of each example's label, [B], from logits [B, classes]."""
    is_label = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[is_label] - logits.masked_fill(is_label, -torch.inf).logsumexp(1)


class GapPenalty(StrEnum):
    """What the gap between forgotten and unseen examples costs."""

    SQUARE = "square"
    """Its square: too low is drawn up as too high is pushed down."""
    HINGE = "hinge"
    """The gap where it is above 0: only pushes down."""


@dataclass
class RunningMean:
    """Exponential running mean of the values of each step, with bias correction."""

    memory: float
    total: Tensor | float = 0.0
    mass: float = 0.0

    def update(self, now: Tensor, penalty: GapPenalty) -> Tensor:
        """Add ``now``, and return the penalty of the running mean: its value, with the gradient through ``now``."""
        value = now.detach()
        self.total = self.memory * self.total + (1 - self.memory) * value
        self.mass = self.memory * self.mass + (1 - self.memory)
        mean = self.total / self.mass
        if penalty is GapPenalty.HINGE:
            return mean.relu() + (mean > 0) * (now - value)
        return mean.square() + 2 * mean * (now - value)
