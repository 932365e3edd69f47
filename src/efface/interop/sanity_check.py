"""Whether an adopted encoder sees more than the same network with random weights.

With labels: whether an image's nearest neighbors vote for its label. Without, or where that shows nothing: how much
better two views of one image fit each other than views of different images,

    s_i = cos(z_i, z'_i)/τ - log Σ_j e^{cos(z_i, z'_j)/τ},   τ = 0.1

The mean over images must exceed that of the best of the random networks by two standard errors of the difference. A
wrong normalization, stem or architecture loads without an error and shows itself only here, if it is bad enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efface.auditing.representations import knn_vote
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.model import Model
from efface.training.recipe import Recipe

MOST, CHECK_NEIGHBORS, TAU, ERRORS = 512, 10, 0.1, 2.0
VOTES = f"share of images whose {CHECK_NEIGHBORS} nearest neighbors vote for their label"
MARGIN = "margin of an image's own second view over other images'"


@dataclass(frozen=True)
class ProbeResult:
    """What an encoder and random ones of its kind make of the same images, by one measure; higher is better."""

    measure: str
    loaded: float
    random: float
    """Of the best of the random ones."""
    error: float
    """Standard error of the difference."""
    images: int

    @property
    def better(self) -> bool:
        """Whether the encoder is better by more than chance."""
        return self.loaded - self.random > ERRORS * self.error

    def __str__(self) -> str:
        return f"{self.measure}: {self.loaded:.3f}, random weights {self.random:.3f} (± {self.error:.3f})"


def compare_with_random(
    model: Model, others: Sequence[Callable[[], Model]], part: Subset, generator: torch.Generator
) -> list[ProbeResult]:
    """Compare a model's features with those of random ones, on at most 512 random images of a part.

    One measure after the other, until one says that the model is better. ``others``: each makes a random one when it
    is its turn, so that only one of them is in memory.
    """
    chosen = part.ids[torch.randperm(len(part.ids), generator=generator)[:MOST]]
    batches = [part.batch(rows, generator) for rows in chosen.split(64)]
    labels = None if part.y is None else part.y[chosen].cpu().numpy()
    measures: dict[str, Callable[[Model], np.ndarray]] = {}
    if labels is not None and (labels >= 0).all() and len(np.unique(labels)) > 1:
        measures[VOTES] = lambda one: _votes(_features(one, (batch.clean for batch in batches)), labels)
    measures[MARGIN] = lambda one: _margin(*(_features(one, (b.view(view) for b in batches)) for view in (0, 1)))
    found: list[ProbeResult] = []
    for measure, score in measures.items():
        mine, best = score(model), max((score(make()) for make in others), key=np.mean)
        error = float(np.std(mine - best) / np.sqrt(len(mine)))
        found.append(ProbeResult(measure, float(mine.mean()), float(best.mean()), error, len(mine)))
        if found[-1].better:
            break
    return found


def require_better_than_random(found: Sequence[ProbeResult], path: object, recipe: Recipe) -> None:
    """An error with the likely causes unless a measure says that the encoder is better than random ones."""
    if any(one.better for one in found):
        return
    raise EffaceError(
        f"The encoder in {path} sees no more in these images than the same network with random weights.",
        f"On {found[0].images} training images, {'; '.join(map(str, found))}.",
        f"Likely: another normalization (here mean {recipe.mean}, std {recipe.std}: set recipe.mean, recipe.std); "
        f"another stem or architecture (here {recipe.backbone.name}: set recipe.backbone); other images than it was "
        "trained on; too few images to tell. If it is right as it is, --set check=false goes on.",
    )


@torch.no_grad()
def _features(model: Model, images: Iterable[Tensor]) -> Tensor:
    training = {module: module.training for module in model.modules()}
    model.eval()
    z = torch.cat([model.features(x) for x in images])
    for module, mode in training.items():
        module.training = mode
    return F.normalize(z, dim=-1)


def _votes(z: Tensor, labels: np.ndarray) -> np.ndarray:
    rows = z.cpu().numpy()
    voted = knn_vote(rows, labels, rows, (CHECK_NEIGHBORS,), places=np.arange(len(rows)))[0]
    return (voted == labels).astype(np.float64)


def _margin(a: Tensor, b: Tensor) -> np.ndarray:
    logits = a @ b.T / TAU
    return (logits.diagonal() - logits.logsumexp(-1)).double().cpu().numpy()
