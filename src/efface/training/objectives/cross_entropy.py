"""Cross-entropy: a classifier trained with labels.

    ℓ(θ; x, y) = -log softmax(h(f(t x)))_y

h: the head, a linear layer unless ``layers`` are given; t: one random view. The distance between two classifiers with
logits a, b is Hinton's T² · KL(softmax(a/T) ‖ softmax(b/T)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.schema import Positive
from efface.training.batch import Batch, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import BaseObjective, ProjectorLayer, build_projector


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(BaseObjective):
    """A classifier; it has no state but the weights."""

    needs_labels: ClassVar[bool] = True
    smallest_batch: ClassVar[int] = 1
    temperature: Positive = 1.0
    """Temperature T of the distance between two classifiers; the loss does not use it."""
    hidden: int | None = None
    """Width of the head's hidden layers, if it has ``layers``; by default that of the backbone's features."""
    layers: tuple[ProjectorLayer, ...] | None = None
    """Layers of a head that is an MLP; by default it is a single linear layer."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a head of ``classes`` outputs."""
        if classes < 2:
            raise EffaceError(
                "cross_entropy needs labels of at least two classes.",
                f"This data has {classes}.",
                "Use data with labels, or a label-free objective: simclr, moco, byol.",
            )
        if self.layers:
            return Model(
                backbone, build_projector(dim, self.hidden or dim, classes, layers=self.layers), self, mean, std
            )
        return Model(backbone, nn.Linear(dim, classes), self, mean, std)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute the cross-entropy of the first view, [B]."""
        return LossOutput(F.cross_entropy(model(batch.view(0)), batch.labels(), reduction="none"))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return the cross-entropy as a function of the images; it never depends on other examples."""
        return lambda x: F.cross_entropy(model(x), batch.labels(), reduction="none")

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute T² · KL(softmax(a/T) ‖ softmax(b/T)), [B] >= 0."""
        log_a, log_b = F.log_softmax(a / self.temperature, -1), F.log_softmax(b / self.temperature, -1)
        return self.temperature**2 * (log_a.exp() * (log_a - log_b)).sum(-1)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Replace each label by another one, drawn uniformly from the other labels in the batch.

        If all examples of the batch have the same label, they keep it.
        """
        y = batch.labels()
        ordered = y.sort().values
        rank = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).cumsum(0)])  # of its label among all
        pool, count = torch.zeros_like(y).scatter(0, rank, ordered), rank[-1] + 1
        index = rank[torch.searchsorted(ordered, y)]
        drawn = torch.randint(2**32 - 1, (len(y),), generator=rng).to(y.device)
        shift = drawn % (count - 1).clamp(min=1) + 1  # how many labels there are is not read from the device
        return batch.copy_with(y=pool[(index + shift) % count])
