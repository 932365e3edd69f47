"""Default recipes: what fits the data and the objective where the user stated nothing."""

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
    """A recipe that fits the data: its channels, size and classes; augmentation by kind of objective.

    Classifiers see shifted and flipped images, encoders crops, flips and color jitter, image-text models crops alone:
    a caption may speak of colors and sides. ``changed``: recipe fields.
    """
    chosen = objective_class(objective)() if isinstance(objective, str) else objective
    channels, height, width = data.shape
    if chosen.needs_labels and data.y is None:
        raise EffaceError(
            f"The objective '{get_objective_name(chosen)}' needs labels, and {data.name} has none.",
            remedy="Use a label-free objective: simclr, moco, byol.",
        )
    still = replace(Views.none(), jitter_prob=Views().jitter_prob)
    views, optim = Views(), Optim(lr=0.06, warmup=0.05)
    if chosen.needs_labels:
        views, optim = replace(still, flip=True, shift=max(1, height // 8)), Optim(lr=0.1, warmup=0.05)
    if chosen.needs_captions:
        require_captions(data, range(len(data)), f"The objective '{get_objective_name(chosen)}'")
        views, optim = replace(still, crop=(0.8, 1.0)), Optim(rule=OptimizerType.ADAMW, lr=1e-3, warmup=0.05)
    given = {
        "objective": chosen,
        "channels": channels,
        "size": (height, width),
        "classes": len(data.classes),
        "views": views,
        "optim": optim,
    }
    return Recipe(**(given | changed))


def get_objective_name(objective: Objective) -> str:
    """As on the command line."""
    return str(config.dump(objective, CHOICES)["name"])


def build_recipe(data: Data, objective: str, changed: Mapping[str, Any]) -> Recipe:
    """The default recipe for the data and objective, with the user's changes."""
    values = {key: value for key, value in changed.items() if key != "objective"}
    named = changed.get("objective", objective)
    named = {"name": objective, **named} if isinstance(named, Mapping) else named
    chosen = config.parse_choice(OBJECTIVES, named, "objective", CHOICES, "recipe.objective.")
    base = config.dump(default_recipe(data, chosen), CHOICES)
    return config.build(Recipe, _merged(base, values), CHOICES, "recipe.")


def _merged(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changed.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result
