"""Margins that can be differentiated: how much more an example agrees with itself than with strangers.

    s(x) = cos(z, z') - τ/2 · Σ_{u ∈ {z, z'}} log mean_{b ∈ B} e^{cos(u, b)/τ}        in a space of embeddings
    s(x) = z_y - log Σ_{c ≠ y} e^{z_c}                                                 of a classifier's logits

z, z': embeddings of two views; B: both views of the bank's examples, without x's own. Higher is more member-like. An
audit's margins are these, up to a constant and a factor, with more views and a bank of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics
from efface.training.objectives.shared import normalize_rows

BACKBONE, OUTPUT = "backbone", "output"


def compute_margins(model: Model, batch: Batch, bank: int, tau: float) -> dict[str, Tensor]:
    """Margin of each example, [B], in the features and in what the head makes of them: embeddings or logits.

    The last ``bank`` examples of the batch are the bank; at least two. BatchNorm uses its running statistics.
    """
    with frozen_statistics(model):
        features = model.features(torch.cat([batch.view(0), batch.view(1)]))
        outputs = model.project(features)
    inner = features.tensor_split(2)
    first, second = outputs.tensor_split(2)
    labelled = model.objective.needs_labels
    outer = label_margin(first, batch.labels()) if labelled else contrastive_margin(first, second, bank, tau)
    return {BACKBONE: contrastive_margin(inner[0], inner[1], bank, tau), OUTPUT: outer}


def contrastive_margin(first: Tensor, second: Tensor, bank: int, tau: float) -> Tensor:
    """s of two views' embeddings, [B, d] each; per example, [B]. The last ``bank`` rows are the bank."""
    a, b, count = normalize_rows(first), normalize_rows(second), len(first)
    rows = torch.arange(count, device=a.device)
    own = rows[:, None] == rows[count - bank :].repeat(2)[None]
    strangers = torch.cat([a[count - bank :], b[count - bank :]])
    crowd = [(u @ strangers.T / tau).masked_fill(own, -torch.inf).logsumexp(1) for u in (a, b)]
    return (a * b).sum(1) - tau * ((crowd[0] + crowd[1]) / 2 - (~own).sum(1).log())


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log odds of each example's label, [B], from logits [B, classes]."""
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)
