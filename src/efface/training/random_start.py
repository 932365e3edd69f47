"""Whether a network that the user's own code builds starts from new random weights, as retraining assumes."""

from __future__ import annotations

import torch
from torch import nn

from efface.errors import EffaceError
from efface.training.networks.own_module import LIBRARY
from efface.training.networks.weight_kinds import count_frozen, require_trainable
from efface.training.recipe import Recipe

TRIED_SEEDS = (0, 1)
"""Two seeds whose networks are compared."""


def require_random_start(recipe: Recipe) -> None:
    """Refuse a network of the user's own that does not start from new random weights.

    Retraining forgets because it starts from them. A function that loads trained weights, draws with a seed of its own
    or freezes what it returns hands the original's weights on instead.

    Args:
        recipe: The recipe of the training; networks that are built here start from random weights by themselves.

    Raises:
        EffaceError: A weight matrix is the same for two seeds, or the whole network is frozen.

    """
    if not uses_own_module(recipe):
        return
    first, second = (_build(recipe, seed) for seed in TRIED_SEEDS)
    require_trainable(first, recipe.backbone.name)
    same = find_same_weights(first, second)
    if same:
        frozen = count_frozen(first)
        raise EffaceError(
            f"{recipe.backbone.name} does not start from new random weights: {same[0]} is the same for every seed"
            f"{f', and so are {len(same) - 1} more' if len(same) > 1 else ''}.",
            "It loads trained weights, or draws them with a seed of its own. A model that is retrained from them has "
            f"not forgotten what they were trained on.{f' {frozen} of its weights are frozen.' if frozen else ''}",
            "Let the function return an untrained network, drawn from torch's global generator; weights are loaded "
            "from their own file. Register a fixed table as a buffer.",
        )


def describe_start(recipe: Recipe) -> list[str]:
    """Say what a network of the user's own starts with, where that is not all new and free to move."""
    if not uses_own_module(recipe):
        return []
    first, second = (_build(recipe, seed) for seed in TRIED_SEEDS)
    same, frozen, said = find_same_weights(first, second), count_frozen(first), list[str]()
    if frozen:
        total = sum(weight.numel() for weight in first.parameters())
        said.append(f"{frozen} of {total} weights of {recipe.backbone.name} are frozen: they stay as they are built.")
    if same:
        said.append(
            f"{recipe.backbone.name} starts from the same weights for every seed ({same[0]}): retraining, references "
            "and reference banks will be refused, since they need new random weights."
        )
    return said


def find_same_weights(first: nn.Module, second: nn.Module) -> list[str]:
    """Names of the weight matrices, of two dimensions or more and not constant, that two networks share."""
    others = dict(second.named_parameters())
    return [
        name.removeprefix("net.")  # as it is called in the user's own code
        for name, value in first.named_parameters()
        if value.is_floating_point()
        and value.dim() >= 2
        and bool((value != value.flatten()[0]).any())
        and name in others
        and torch.equal(value, others[name])
    ]


def uses_own_module(recipe: Recipe) -> bool:
    """Whether the network is built by a function of the user's own."""
    return recipe.backbone.name.partition(":")[0] == LIBRARY


def _build(recipe: Recipe, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.backbone.build(recipe.channels, recipe.size)
