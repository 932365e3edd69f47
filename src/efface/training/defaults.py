"""Default recipes: settings that fit the data and the objective, unless the user sets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efface import config
from efface.data.dataset import Data, require_captions
from efface.errors import EffaceError
from efface.training.augment import Views
from efface.training.objectives import CHOICES, OBJECTIVES, Objective, objective_class
from efface.training.optim import Optim, OptimizerType
from efface.training.recipe import Recipe


def default_recipe(data: Data, objective: str | Objective, **changed: Any) -> Recipe:
    """Build a recipe that fits the data and the objective.

    Classifiers are trained on shifted and flipped images, encoders on crops with flips and color jitter, image-text
    models on crops alone, because a caption may mention colors or sides.

    Args:
        data: Gives channels, image size and classes.
        objective: An objective, or its name for the default one.
        changed: Recipe fields to set otherwise.

    Raises:
        EffaceError: If the objective is unknown, or needs labels or captions that the data does not have.

    Example:
        >>> recipe = default_recipe(data, "simclr", epochs=200)

    """
    chosen = objective_class(objective)() if isinstance(objective, str) else objective
    channels, height, width = data.shape
    if chosen.needs_labels and data.y is None:
        raise EffaceError(
            f"The objective '{get_objective_name(chosen)}' needs labels, and {data.name} has none.",
            remedy="Use a label-free objective: simclr, moco, byol.",
        )
    plain = replace(Views.none(), jitter_prob=Views().jitter_prob)
    views, optim = Views(), Optim(lr=0.06, warmup=0.05)
    if chosen.needs_labels:
        views, optim = replace(plain, flip=True, shift=max(1, height // 8)), Optim(lr=0.1, warmup=0.05)
    if chosen.needs_captions:
        require_captions(data, range(len(data)), f"The objective '{get_objective_name(chosen)}'")
        views, optim = replace(plain, crop=(0.8, 1.0)), Optim(rule=OptimizerType.ADAMW, lr=1e-3, warmup=0.05)
    defaults = {
        "objective": chosen,
        "channels": channels,
        "size": (height, width),
        "classes": len(data.classes),
        "views": views,
        "optim": optim,
    }
    return Recipe(**(defaults | changed))


def get_objective_name(objective: Objective) -> str:
    """Return the name of an objective on the command line."""
    return str(config.dump(objective, CHOICES)["name"])


def build_recipe(data: Data, objective: str, changed: Mapping[str, Any]) -> Recipe:
    """Build the default recipe for the data and an objective, with the user's settings on top.

    Args:
        data: Gives channels, image size and classes.
        objective: Name of the objective, unless ``changed`` names one.
        changed: Settings as in a YAML file, nested; they may leave out anything.

    Raises:
        EffaceError: If a setting is unknown or impossible.

    """
    values = {key: value for key, value in changed.items() if key != "objective"}
    setting = changed.get("objective", objective)
    setting = {"name": objective, **setting} if isinstance(setting, Mapping) else setting
    chosen = config.parse_choice(OBJECTIVES, setting, "objective", CHOICES, "recipe.objective.")
    base = config.dump(default_recipe(data, chosen), CHOICES)
    recipe: Recipe = config.build(Recipe, merge_settings(base, values), CHOICES, "recipe.")
    if (recipe.channels, *recipe.size) != data.shape:
        raise EffaceError(
            f"The recipe is for images of {recipe.channels}x{recipe.size[0]}x{recipe.size[1]}, and those of "
            f"{data.name} are {'x'.join(map(str, data.shape))}.",
            remedy="Leave out recipe.channels and recipe.size: they follow from the data.",
        )
    if recipe.classes < len(data.classes):
        raise EffaceError(
            f"The recipe has {recipe.classes} classes, and {data.name} has {len(data.classes)}.",
            remedy="Leave out recipe.classes: it follows from the data.",
        )
    return recipe


def merge_settings(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings; where both have a value that is not a mapping, ``changed`` wins."""
    result = dict(base)
    for key, value in changed.items():
        inner = result.get(key)
        result[key] = (
            merge_settings(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
        )
    return result
