"""What the weights of a network must be to be trained: numbers of single precision, some of them free to move."""

from __future__ import annotations

import torch
from torch import nn

from efface.errors import EffaceError


def require_float32(network: nn.Module, name: str) -> None:
    """Refuse a network in double or half precision.

    Args:
        network: The network.
        name: What it is, for the message.

    Raises:
        EffaceError: Some of its weights are of another precision; it names the first one.

    """
    others = [
        (key, value.dtype)
        for key, value in network.named_parameters()
        if value.is_floating_point() and value.dtype != torch.float32
    ]
    if others:
        raise EffaceError(
            f"{name} has weights that are not of single precision: {others[0][0]} is {str(others[0][1])[6:]}"
            f"{f', and {len(others) - 1} more' if len(others) > 1 else ''}.",
            "Networks are trained and unlearned in float32; bfloat16 is what they compute in, if a run asks for it.",
            "Convert it first: network.float(). For bfloat16 set bf16=true.",
        )


def require_trainable(network: nn.Module, name: str) -> None:
    """Refuse a network of which nothing can be trained.

    Args:
        network: The network.
        name: What it is, for the message.

    Raises:
        EffaceError: All its weights are frozen.

    """
    weights = list(network.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        raise EffaceError(
            f"{name} is frozen: none of its {sum(weight.numel() for weight in weights)} weights may change.",
            "What cannot change can neither learn nor forget.",
            "Set network.requires_grad_(True), and freeze again afterwards what is to be frozen in production.",
        )


def count_frozen(network: nn.Module) -> int:
    """Count the weights that may not change."""
    return sum(weight.numel() for weight in network.parameters() if not weight.requires_grad)
