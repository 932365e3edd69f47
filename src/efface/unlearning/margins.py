"""Differentiable margins: how much more similar an example is to itself than to other examples.

    s(x) = cos(z, z') - τ/2 · Σ_{u ∈ {z, z'}} log mean_{b ∈ B} e^{cos(u, b)/τ}        in a space of embeddings
    s(x) = cos(z, t) - τ log mean_{b ∈ B} e^{cos(z, t_b)/τ}, mean over z, z'           of an image and its caption
    s(x) = z_y - log Σ_{c ≠ y} e^{z_c}                                                 of a classifier's logits

z, z': embeddings of two views, t that of the caption; B (the bank): both views, or the captions, of the last examples
of the batch, without those of x itself. A higher margin is more member-like. The margins of an audit are the same up to
a constant and a factor, with more views and a bank of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics
from efface.training.objectives.shared import normalize_rows

BACKBONE, OUTPUT = "backbone", "output"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features and outputs of two views of some examples, and their labels if there are any."""

    features: tuple[Tensor, Tensor]
    """Of each view, [B, dim]."""
    outputs: tuple[Tensor, Tensor]
    """Of each view, [B, d]."""
    labels: Tensor | None = None
    captions: Tensor | None = None
    """Of the captions of image-text pairs, [B, d]."""

    @classmethod
    def of(cls, model: Model, batch: Batch) -> Embeddings:
        """Embed a batch with the running statistics of BatchNorm, so that examples do not affect each other."""
        with frozen_statistics(model):
            features = model.features(torch.cat([batch.view(0), batch.view(1)]))
            outputs = model.project(features)
        labels = batch.labels() if model.objective.needs_labels else None
        captions = model.encode_text(batch.captions()) if model.objective.needs_captions else None
        return cls(_halves(features), _halves(outputs), labels, captions)

    @classmethod
    def of_one_view(cls, model: Model, batch: Batch) -> Embeddings:
        """The same of one view of each example; that of the other is empty."""
        with frozen_statistics(model):
            features = model.features(batch.view(0))
            outputs = model.project(features)
        captions = model.encode_text(batch.captions()) if model.objective.needs_captions else None
        return cls((features, features[:0]), (outputs, outputs[:0]), None, captions)

    def __add__(self, other: Embeddings) -> Embeddings:
        """Join the embeddings of two batches, those of ``self`` first."""
        labels, captions = (
            None if a is None or b is None else torch.cat([a, b])
            for a, b in ((self.labels, other.labels), (self.captions, other.captions))
        )
        return Embeddings(_join(self.features, other.features), _join(self.outputs, other.outputs), labels, captions)

    @torch.no_grad()
    def with_head_of(self, model: Model) -> Embeddings:
        """The same features through the head of a model; captions stay."""
        with frozen_statistics(model):
            first, second = (model.project(features) for features in self.features)
        return replace(self, outputs=(first, second))

    def margins(
        self, bank: int, tau: float, others: Embeddings | None = None, spaces: Collection[str] = (BACKBONE, OUTPUT)
    ) -> dict[str, Tensor]:
        """Margins [B] by space, ``backbone`` and ``output``; the last ``bank`` examples are the bank.

        A classifier's margin in the output is that of its label, that of an image-text model that of the pair.

        Args:
            bank: Number of examples in the bank, at least 2.
            tau: Temperature τ in spaces of embeddings.
            others: Further examples of the bank, none of which is among these.
            spaces: Spaces whose margins are computed.

        """
        features, outputs = (None, None) if others is None else (torch.cat(others.features), torch.cat(others.outputs))
        found = dict[str, Tensor]()
        if BACKBONE in spaces:
            found[BACKBONE] = contrastive_margin(*self.features, bank, tau, features)
        if OUTPUT not in spaces:
            return found
        if self.labels is not None:
            output = label_margin(self.outputs[0], self.labels)
        elif self.captions is not None:
            output = pair_margin(self.outputs, self.captions, bank, tau, None if others is None else others.captions)
        else:
            output = contrastive_margin(*self.outputs, bank, tau, outputs)
        return found | {OUTPUT: output}

    def alignments(self) -> dict[str, Tensor]:
        """Cosine of the two views of each example, [B], by space; the output only where views are compared there.

        Higher is more member-like: views that were trained to agree do so more than others.
        """
        found = {BACKBONE: self.features}
        if self.labels is None and self.captions is None:
            found[OUTPUT] = self.outputs
        return {space: (normalize_rows(a) * normalize_rows(b)).sum(1) for space, (a, b) in found.items()}


def compute_margins(model: Model, batch: Batch, bank: int, tau: float) -> dict[str, Tensor]:
    """Margin of each example in the backbone's features and in the output (projector, image-caption pair, or logits).

    BatchNorm uses its running statistics, so that examples do not affect each other.

    Args:
        model: The model whose margins are measured.
        batch: The examples; the last ``bank`` of them are the bank.
        bank: Number of examples in the bank, at least 2.
        tau: Temperature τ in spaces of embeddings.

    Returns:
        Margins [B] by space, ``backbone`` and ``output``; higher is more member-like.

    """
    return Embeddings.of(model, batch).margins(bank, tau)


def contrastive_margin(first: Tensor, second: Tensor, bank: int, tau: float, others: Tensor | None = None) -> Tensor:
    """Margin of each example, [B], from the embeddings of two views, [B, d] each.

    The last ``bank`` rows are B, and ``others`` [M, d], embeddings of further examples.
    """
    a, b = normalize_rows(first), normalize_rows(second)
    (one, two), number = _compare((a, b), (a[-bank:], b[-bank:]), tau, others)
    return (a * b).sum(1) - tau * ((one + two) / 2 - number.log())


def pair_margin(
    images: tuple[Tensor, Tensor], captions: Tensor, bank: int, tau: float, others: Tensor | None = None
) -> Tensor:
    """Margin of each image's caption over others, [B], from two views' embeddings and the captions', [B, d] each.

    The other captions are those of the last ``bank`` rows, and ``others`` [M, d].
    """
    views, t = [normalize_rows(image) for image in images], normalize_rows(captions)
    log_sums, number = _compare(views, (t[-bank:],), tau, others)
    margins = [(u * t).sum(1) - tau * (log_sum - number.log()) for u, log_sum in zip(views, log_sums, strict=True)]
    return (margins[0] + margins[1]) / 2


def _compare(
    views: Sequence[Tensor], banks: Sequence[Tensor], tau: float, others: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Of each view [B, d]: the log of the sum of e^{cos / τ} over a bank without the example itself, [B]; its size.

    The rows of every one of ``banks`` are the last of the examples. ``others`` [M, d] belong to none of them.
    """
    count, bank = len(views[0]), len(banks[0])
    rows = torch.arange(count, device=views[0].device)
    is_self = rows[:, None] == rows[count - bank :].repeat(len(banks))[None]
    joined = torch.cat(list(banks))
    if others is not None:
        joined = torch.cat([joined, normalize_rows(others)])
        is_self = torch.cat([is_self, is_self.new_zeros(count, len(others))], 1)
    sums = [(u @ joined.T / tau).masked_fill(is_self, -torch.inf).logsumexp(1) for u in views]
    return sums, (~is_self).sum(1)


def label_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log odds of each example's label, [B], from logits [B, classes]."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(1)


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    first, second = both.tensor_split(2)
    return first, second


def _join(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


class GapPenalty(StrEnum):
    """What the gap between forgotten and unseen examples costs."""

    SQUARE = "square"
    """Its square: too low is drawn up as too high is pushed down."""
    HINGE = "hinge"
    """The gap where it is above 0: only pushes down."""


@dataclass
class RunningMean:
    """Exponential running mean of the values of each step, with bias correction, and a multiplier of it.

    A square is at rest where its pull equals what pulls against it, and so leaves a part of the value. The multiplier
    grows by a share of what is left in each step until nothing is: the method of multipliers (Hestenes 1969).
    """

    memory: float
    rate: float = 0.0
    """Share of the mean that each step adds to the multiplier; 0: the square alone."""
    total: Tensor | float = 0.0
    mass: float = 0.0
    multiplier: Tensor | float = 0.0

    def update(self, now: Tensor, penalty: GapPenalty) -> Tensor:
        """Add ``now``, and return the penalty of the running mean: its value, with the gradient through ``now``."""
        value = now.detach()
        self.total = self.memory * self.total + (1 - self.memory) * value
        self.mass = self.memory * self.mass + (1 - self.memory)
        mean = self.total / self.mass
        if penalty is GapPenalty.HINGE:
            return mean.relu() + (mean > 0) * (now - value)
        self.multiplier = self.multiplier + self.rate * mean
        pull = mean + self.multiplier
        return pull**2 - self.multiplier**2 + 2 * pull * (now - value)


def margin_gap(f: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """A scalar with the value of mean F - mean V and the gradient of mean F - mean R; 0 if F and V are alike."""
    constant = v.detach().mean() - r.detach().mean()
    return f.mean() - r.mean() - constant
