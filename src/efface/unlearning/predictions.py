"""What a classifier predicts for a subset, measured in evaluation mode on un-augmented images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.training.batch import Subset
from efface.training.model import Model, frozen_statistics

IMAGES_AT_ONCE = 256
"""Images that go through the network together."""


@torch.no_grad()
def measure_accuracy(model: Model, subset: Subset) -> tuple[float, int]:
    """Top-1 accuracy of a subset, and the number of classes."""
    correct, classes = 0, 0
    with frozen_statistics(model):
        for batch in subset.ordered_batches(IMAGES_AT_ONCE):
            logits = model(batch.clean)
            correct, classes = correct + int((logits.argmax(1) == batch.labels()).sum()), logits.shape[1]
    return correct / len(subset), classes


@torch.no_grad()
def measure_prediction(model: Model, subset: Subset) -> tuple[Tensor, float]:
    """The mean probability of each class, [C], and the mean cross-entropy, of a subset."""
    probability, loss = torch.zeros((), device=subset.device), 0.0
    with frozen_statistics(model):
        for batch in subset.ordered_batches(IMAGES_AT_ONCE):
            logits = model(batch.clean)
            probability = probability + logits.softmax(-1).sum(0)
            loss += float(F.cross_entropy(logits, batch.labels(), reduction="sum"))
    return probability / len(subset), loss / len(subset)
