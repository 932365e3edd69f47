"""How well a network fits its training images: the measures by which assumptions about it are tried.

    right     the answer of a classifier's head is the label, under the best one-to-one order of the classes
    votes     the nearest neighbors of the features vote for the label
    margin    s_i = cos(z_i, z'_i)/τ - log Σ_j e^{cos(z_i, z'_j)/τ} of two views of each image
    drift     mean over channels of KL(N(m, v) || N(μ, σ²)): m, v of what reaches the first BatchNorm now, and μ, σ² of
              what reached it in training, which it has stored

The last one needs no labels, and notices a wrong normalization even where the answers do not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from efface.auditing.representations import knn_vote
from efface.interop.sanity_check import CHECK_NEIGHBORS, TAU
from efface.training.batch import Batch
from efface.training.model import Model

SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Fit:
    """How well a network fits some training images; arrays have one value for each image."""

    right: np.ndarray | None
    """Whether the head of a classifier answers right, under the best order of the classes; None without labels."""
    votes: np.ndarray | None
    """Whether neighbors vote for the label; None without labels."""
    margin: np.ndarray
    """Margin of an image's own second view over those of other images."""
    drift: float | None
    """Distance of the first BatchNorm's input from what it has stored; None without such a layer."""
    straight: np.ndarray | None = field(default=None)
    """Whether the head of a classifier answers right in the order of the data's classes."""
    outputs: float | None = None
    """Share of labels that the largest output of any head stands for, under the best order; also for a projector."""

    @property
    def accuracy(self) -> float | None:
        """Share of right answers."""
        return None if self.right is None else float(self.right.mean())

    @property
    def neighbors(self) -> float | None:
        """Share of right votes."""
        return None if self.votes is None else float(self.votes.mean())

    @property
    def head_answers(self) -> bool:
        """Whether the classifier's head answers at least as many right as the features' neighbors do."""
        return self.accuracy is not None and self.neighbors is not None and self.accuracy >= self.neighbors

    def describe(self) -> str:
        """The measured values in words."""
        words = [] if self.accuracy is None else [f"head {self.accuracy:.3f}"]
        words += [] if self.neighbors is None else [f"kNN {self.neighbors:.3f}"]
        words += [f"margin {float(self.margin.mean()):.3f}"]
        words += [] if self.drift is None else [f"drift {self.drift:.3g}"]
        return ", ".join(words)


@torch.no_grad()
def measure_fit(model: Model, batches: Sequence[Batch], labels: np.ndarray | None) -> Fit:
    """Measure how well a model fits images.

    Args:
        model: The model; it is left as it was.
        batches: The images; their first two views are used, and they must be drawn alike for models to be compared.
        labels: The label of each image; None if they have none.

    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    clean, answers, first, second = (list[Tensor]() for _ in range(4))
    with _watch_statistics(model.backbone) as seen:
        for batch in batches:
            clean.append(model.features(batch.clean))
    for features, batch in zip(clean, batches, strict=True):
        answers.append(model.project(features))
        first.append(model.features(batch.view(0)))
        second.append(model.features(batch.view(1)))
    for module, mode in training.items():
        module.training = mode
    z = F.normalize(torch.cat(clean), dim=-1).cpu().numpy()
    logits = torch.cat(answers).cpu().numpy()
    right, votes, straight, outputs = None, None, None, None
    if labels is not None and len(np.unique(labels)) > 1:
        voted = knn_vote(z, labels, z, (CHECK_NEIGHBORS,), own=np.arange(len(z)))[0]
        votes = voted == labels
        said = logits.argmax(-1)
        fitted = fit_order(said, labels)[said] == labels
        outputs = float(fitted.mean())
        if model.objective.needs_labels:
            straight, right = said == labels, fitted
    a, b = (F.normalize(torch.cat(views), dim=-1) for views in (first, second))
    similar = a @ b.T / TAU
    margin = (similar.diagonal() - similar.logsumexp(-1)).double().cpu().numpy()
    return Fit(right, votes, margin, _drift(seen), straight, outputs)


def fit_order(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each position of a head stands for, if the classes are matched to the answers as well as possible.

    Returns:
        Class by position; positions beyond the number of classes stand for -1.

    """
    size = int(max(answers.max(), labels.max())) + 1
    confusion = np.zeros((size, size), np.int64)
    np.add.at(confusion, (answers, labels), 1)
    positions, classes = linear_sum_assignment(confusion, maximize=True)
    order = np.full(size, -1)
    order[positions] = classes
    return order


@dataclass
class _Statistics:
    """Sums over what reached the first BatchNorm."""

    layer: nn.BatchNorm2d | None = None
    count: int = 0
    total: Tensor | None = None
    squares: Tensor | None = None


@contextmanager
def _watch_statistics(backbone: nn.Module) -> Iterator[_Statistics]:
    """Collect mean and square of the input of the first BatchNorm that runs."""
    seen = _Statistics()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
            return
        seen.layer = seen.layer or module
        if module is not seen.layer:
            return
        x = inputs[0].double().transpose(0, 1).flatten(1)
        seen.count += x.shape[1]
        seen.total = x.sum(1) + (0 if seen.total is None else seen.total)
        seen.squares = x.square().sum(1) + (0 if seen.squares is None else seen.squares)

    hooks = [m.register_forward_pre_hook(look) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _drift(seen: _Statistics) -> float | None:
    layer = seen.layer
    if layer is None or seen.total is None or seen.squares is None or layer.running_mean is None:
        return None
    assert layer.running_var is not None
    mean = seen.total / seen.count
    variance = (seen.squares / seen.count - mean.square()).clamp_min(SMALLEST_VARIANCE)
    stored = layer.running_var.double().clamp_min(SMALLEST_VARIANCE)
    ratio = variance / stored
    distance = (mean - layer.running_mean.double()).square() / stored
    return float(((ratio + distance - 1 - ratio.log()) / 2).median())
