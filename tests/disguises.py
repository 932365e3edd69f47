"""Disguises of a model: other weights, the same function but for the order, the scale or a rotation of its units."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from efface.training.model import Model
from efface.training.networks.backbones import ResNet


@torch.no_grad()
def permute_units(model: Model, seed: int = 0, noise: float = 0.0, scaled: bool = True) -> Model:
    """Return a copy whose hidden units are in another order; the outputs are the same.

    ``scaled``: also multiply each unit, and divide by as much where it is read.
    ``noise``: added to every weight of two or more dimensions, in standard deviations.
    """
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    body = made.backbone
    assert isinstance(body, ResNet)
    stages: list[Any] = [getattr(body, name) for name in body.layers]
    streams: list[tuple[list[Any], list[Any]]] = []
    for number, stage in enumerate(stages):
        streams += [([(block.conv1, block.bn1)], [block.conv2]) for block in stage]
        ends = [(block.conv2, block.bn2) for block in stage]
        ends += [tuple(block.downsample) for block in stage if block.downsample is not None]
        if stage[0].downsample is None:
            ends.append((body.conv1, body.bn1) if number == 0 else (stages[number - 1][-1].conv2,) * 2)
        following = [block.conv1 for block in list(stage)[(0 if stage[0].downsample is None else 1) :]]
        if number + 1 < len(stages):
            following += [stages[number + 1][0].conv1, stages[number + 1][0].downsample[0]]
        else:
            following.append(first_linear(made.head))
        streams.append((ends, following))
    if stages[0][0].downsample is not None:
        streams.append(([(body.conv1, body.bn1)], [stages[0][0].conv1, stages[0][0].downsample[0]]))
    for producers, consumers in streams:
        _reorder(producers, consumers, generator, scaled)
    if noise:
        for value in made.parameters():
            if value.ndim > 1:
                value += noise * value.std() * torch.randn(value.shape, generator=generator)
    return made


@torch.no_grad()
def rotate_projector(model: Model, seed: int = 0, scale: float = 3.0) -> Model:
    """Return a copy whose projector's output is rotated and scaled: no cosine changes."""
    made = copy.deepcopy(model)
    last = [module for module in made.head.modules() if isinstance(module, nn.Linear)][-1]
    drawn = torch.randn(len(last.weight), len(last.weight), generator=torch.Generator().manual_seed(seed))
    rotation = scale * torch.linalg.qr(drawn.double())[0].float()
    last.weight.copy_(rotation @ last.weight)
    if last.bias is not None:
        last.bias.copy_(rotation @ last.bias)
    return made


def first_linear(head: nn.Module) -> nn.Linear:
    """The first linear layer of a head."""
    return next(module for module in head.modules() if isinstance(module, nn.Linear))


def _reorder(producers: Sequence[Any], consumers: Sequence[Any], generator: torch.Generator, scaled: bool) -> None:
    """Put the units between layers into another order, and scale each of them up here and down there."""
    width = len(producers[0][1].weight)
    order, scale = torch.randperm(width, generator=generator), 0.5 + 2 * torch.rand(width, generator=generator)
    scale = scale if scaled else torch.ones(width)
    for conv, norm in producers:
        conv.weight.copy_(conv.weight[order])
        for name in ("weight", "bias"):
            getattr(norm, name).copy_(scale * getattr(norm, name)[order])
        for name in ("running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(norm, name)[order])
    for layer in consumers:
        shaped = scale.view(1, -1, *[1] * (layer.weight.ndim - 2))
        layer.weight.copy_(layer.weight[:, order] / shaped)
