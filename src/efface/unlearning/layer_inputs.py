"""Inputs of the layers of a model: which belong to single images, and their means over places and tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from efface.training.model import Model, frozen_statistics


def find_image_layers(model: Model, images: Tensor) -> list[nn.Module]:
    """Find the layers whose input has as many rows for each image, however many images there are.

    Others, such as those of position tables, have inputs that belong to no single image.
    """
    rows = dict[nn.Module, list[int]]()
    for count in (2, 3):
        once = dict[nn.Module, int]()
        _watch_inputs(model, images[:1].repeat(count, 1, 1, 1), partial(_keep_first_length, once))
        for layer, found in once.items():
            rows.setdefault(layer, []).append(found)
    return [layer for layer, found in rows.items() if len(found) == 2 and 3 * found[0] == 2 * found[1]]


def _keep_first_length(found: dict[nn.Module, int], layer: nn.Module, x: Tensor) -> None:
    found.setdefault(layer, len(x))


def record_inputs(model: Model, images: Tensor, kinds: Collection[nn.Module] | None = None) -> dict[nn.Module, Tensor]:
    """The mean input of each linear layer and each convolution of one group, over places and tokens, [B, d].

    Args:
        model: The model.
        images: The images, [B, C, H, W].
        kinds: The layers whose inputs belong to single images; by default they are found.

    """
    kinds = find_image_layers(model, images) if kinds is None else kinds
    found = dict[nn.Module, Tensor]()

    def record(layer: nn.Module, x: Tensor) -> None:
        if layer in kinds:
            found.setdefault(layer, x.reshape(len(images), -1, x.shape[-1]).float().mean(1))

    _watch_inputs(model, images, record)
    return found


def _watch_inputs(model: Model, images: Tensor, record: Callable[[nn.Module, Tensor], object]) -> None:
    """Run the model, and call ``record`` with each layer and its input, of which the last dimension is [d]."""

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        record(layer, inputs[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else inputs[0])

    layers = [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    hooks = [one.register_forward_pre_hook(look) for one in layers if getattr(one, "groups", 1) == 1]
    try:
        with frozen_statistics(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
