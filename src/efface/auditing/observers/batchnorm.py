"""Estimate BatchNorm statistics anew: whether a model forgot, or only its running statistics were changed.

Running statistics are no weights: whoever has some images of the same kind estimates them again in seconds. A leak that
comes back then was never removed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from efface.training.model import Model
from efface.training.running_statistics import layers_with_statistics


def has_running_statistics(model: Model) -> bool:
    """Whether backbone or head normalize with running statistics."""
    return bool(_layers(model))


@torch.no_grad()
def estimate_statistics_anew(model: Model, batches: Iterable[Tensor]) -> Model:
    """Return a copy of the model whose BatchNorm statistics are the averages over the batches.

    Args:
        model: The model; it is left as it is.
        batches: Views of retained images in [0, 1], [b, C, H, W] with b >= 2.

    """
    renewed = copy.deepcopy(model).eval()
    layers = _layers(renewed)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the average over all batches, instead of a moving one
        layer.train()
    for images in batches:
        renewed(images)
    return renewed.eval()


def _layers(model: Model) -> list[_BatchNorm]:
    parts: list[nn.Module] = [model.backbone, model.head]
    return [layer for part in parts for layer in layers_with_statistics(part) if isinstance(layer, _BatchNorm)]
