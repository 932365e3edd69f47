"""Check that an imported encoder is better than the same network with random weights.

With labels, the measure is whether an image's nearest neighbors vote for its label. Without labels, or where these
votes show no difference, it is how much more similar two views of one image are than views of different images:

    s_i = cos(z_i, z'_i)/τ - log Σ_j e^{cos(z_i, z'_j)/τ},   τ = 0.1

The mean over images must exceed that of the best random network by two standard errors of the difference. A wrong
normalization, stem or architecture loads without an error; only this check can notice it, and only if it is bad enough.
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

MAX_IMAGES, CHECK_NEIGHBORS, TAU, STANDARD_ERRORS = 512, 10, 0.1, 2.0
VOTES = f"share of images whose {CHECK_NEIGHBORS} nearest neighbors vote for their label"
MARGIN = "margin of an image's own second view over other images'"


@dataclass(frozen=True)
class ProbeResult:
    """One measure of an encoder and of random encoders on the same images; higher is better."""

    measure: str
    loaded: float
    random: float
    """The value of the best random encoder."""
    error: float
    """Standard error of the difference between the two."""
    images: int

    @property
    def better(self) -> bool:
        """Whether the encoder is better than random by more than chance."""
        return self.loaded - self.random > STANDARD_ERRORS * self.error

    def __str__(self) -> str:
        return f"{self.measure}: {self.loaded:.3f}, random weights {self.random:.3f} (± {self.error:.3f})"


def compare_with_random(
    model: Model, others: Sequence[Callable[[], Model]], part: Subset, generator: torch.Generator
) -> list[ProbeResult]:
    """Compare a model's features with those of random networks, on at most 512 random images.

    Measures are tried one after the other, until one shows that the model is better.

    Args:
        model: The imported model.
        others: Each builds a random network of the same kind when it is needed, so that only one is in memory.
        part: The images.
        generator: Draws the images and their views.

    Returns:
        The measures that were tried; only the last one can be in favor of the model.

    """
    chosen = part.ids[torch.randperm(len(part.ids), generator=generator)[:MAX_IMAGES]]
    batches = [part.batch(rows, generator) for rows in chosen.split(64)]
    labels = None if part.y is None else part.y[chosen].cpu().numpy()
    measures: dict[str, Callable[[Model], np.ndarray]] = {}
    if labels is not None and (labels >= 0).all() and len(np.unique(labels)) > 1:
        measures[VOTES] = lambda one: _neighbor_votes(
            _normalized_features(one, (batch.clean for batch in batches)), labels
        )
    measures[MARGIN] = lambda one: _margin(
        *(_normalized_features(one, (b.view(view) for b in batches)) for view in (0, 1))
    )
    found: list[ProbeResult] = []
    for measure, score in measures.items():
        loaded, best = score(model), max((score(make()) for make in others), key=np.mean)
        error = float(np.std(loaded - best) / np.sqrt(len(loaded)))
        found.append(ProbeResult(measure, float(loaded.mean()), float(best.mean()), error, len(loaded)))
        if found[-1].better:
            break
    return found


def require_better_than_random(found: Sequence[ProbeResult], path: object, recipe: Recipe) -> None:
    """Raise an error with the likely causes unless some measure shows that the encoder is better than random."""
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
def _normalized_features(model: Model, images: Iterable[Tensor]) -> Tensor:
    training = {module: module.training for module in model.modules()}
    model.eval()
    z = torch.cat([model.features(x) for x in images])
    for module, mode in training.items():
        module.training = mode
    return F.normalize(z, dim=-1)


def _neighbor_votes(z: Tensor, labels: np.ndarray) -> np.ndarray:
    rows = z.cpu().numpy()
    voted = knn_vote(rows, labels, rows, (CHECK_NEIGHBORS,), own=np.arange(len(rows)))[0]
    return (voted == labels).astype(np.float64)


def _margin(a: Tensor, b: Tensor) -> np.ndarray:
    logits = a @ b.T / TAU
    return (logits.diagonal() - logits.logsumexp(-1)).double().cpu().numpy()
