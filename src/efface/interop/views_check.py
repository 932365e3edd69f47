"""Try the augmentations that are assumed for a classifier: one that was trained with them is right through them too.

No file says how training images were augmented. Training on with augmentations that a network has never seen changes
it far more than forgetting does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from efface.interop.assumptions import AssumptionCheck
from efface.training.augment import Views
from efface.training.model import Model

STRANGE, KNOWN_VIEWS = 0.1, 0.05
"""From which loss of accuracy on training images a view is strange to a network, and up to which it is known."""
DRAWN_VIEWS, TRIED_BATCH = 3, 64
CHANGES: tuple[dict[str, object], ...] = ({"shift": 0}, {"flip": False}, {"shift": 0, "flip": False})
"""Weaker augmentations that are tried, the least change first."""


@torch.no_grad()
def check_views(model: Model, x: Tensor, labels: np.ndarray, views: Views) -> AssumptionCheck:
    """Compare a classifier's accuracy on training images with that on their augmented views.

    Args:
        model: The classifier, in evaluation mode.
        x: Training images in [0, 1], [N, C, H, W], on the model's device.
        labels: Their labels, [N].
        views: The augmentations that are assumed.

    """
    clean = _accuracy(model, x, labels, Views.none())
    seen = _accuracy(model, x, labels, views)
    note = f"the usual augmentations of the objective: right on {seen:.3f} of views, on {clean:.3f} of the images"
    if clean - seen <= STRANGE:
        return AssumptionCheck("views", "passed", note)
    found = {number: _accuracy(model, x, labels, replace(views, **change)) for number, change in enumerate(CHANGES)}
    known = [number for number, share in found.items() if clean - share <= KNOWN_VIEWS]
    best = known[0] if known else max(found, key=lambda number: found[number])
    line = " ".join(f"--set recipe.views.{name}={str(value).lower()}" for name, value in CHANGES[best].items())
    note += f"; with {line.replace('--set ', '')}: {found[best]:.3f}"
    return AssumptionCheck("views", "undecided", note, f"If it was trained without them, add {line}.")


def _accuracy(model: Model, x: Tensor, labels: np.ndarray, views: Views) -> float:
    right = 0
    for draw in range(DRAWN_VIEWS):
        generator = torch.Generator(x.device).manual_seed(draw)
        for start in range(0, len(x), TRIED_BATCH):
            answers = model(views(x[start : start + TRIED_BATCH], generator)).argmax(-1).cpu().numpy()
            right += int((answers == labels[start : start + TRIED_BATCH]).sum())
    return right / (DRAWN_VIEWS * len(x))
