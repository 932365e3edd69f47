"""The shape that foreign weights are put into: a recipe from what the file shows and what the user says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efface import api, config
from efface.adopt import adopt, adopt_backbone, described, objective_of
from efface.architecture import Guess, guess
from efface.checkpoint import CHOICES
from efface.data import Data
from efface.errors import EffaceError
from efface.foreign import Foreign
from efface.model import Model
from efface.objectives import OBJECTIVES
from efface.train import Recipe


@dataclass(frozen=True)
class Shape:
    """What a file's weights are put into."""

    recipe: Recipe
    objective: str
    seen: Guess
    guessed: bool
    """Whether nothing says what it was trained with, so that the objective is a guess."""


def shape_of(file: Foreign, data: Data, settings: Mapping[str, Any]) -> Shape:
    """The recipe for a file's weights and these images. ``settings``: recipe, objective.

    Raises where the network cannot be guessed and is not named, and where the images are not those it looks at.
    """
    seen = guess(file)
    _suits(file, seen, data)
    changed = dict(settings.get("recipe") or {})
    stated = settings.get("objective") or changed.get("objective")
    objective = objective_of(file, stated.get("name") if isinstance(stated, Mapping) else stated)
    told = described(file, seen, objective)
    own = changed.pop("objective", None)
    own: dict[str, Any] = {"name": own} if isinstance(own, str) else dict(own or {})
    if (changed.get("backbone") or {}).get("name"):
        told.pop("backbone", None)  # the user's network, with nothing of the guessed one
    elif seen.backbone is None:
        raise EffaceError(
            f"The network in {file.path} is none that can be guessed: {seen.name}.",
            f"Its layout is {file.layout.name}; of its names no backbone is known here.",
            "Set recipe.backbone.name, such as timm:NAME, if it is one of theirs under the same names.",
        )
    if (own.get("text") or {}).get("name"):
        told["objective"].pop("text", None)  # the same of the text tower
    recipe = recipe_of(data, objective, _merged(told, {**changed, "objective": own}))
    return Shape(recipe, objective, seen, not stated and not file.layout.objective)


def foreign_model(file: Foreign, data: Data, settings: Mapping[str, Any], *, backbone_alone: bool) -> Model:
    """A file's weights, to look at these images with. ``settings``: recipe, objective.

    ``backbone_alone``: the head is whatever an untrained one is, and the file needs none.
    """
    if not backbone_alone:
        shape = shape_of(file, data, settings)
        return adopt(file, shape.recipe.start(0), shape.objective).model
    recipe = {key: value for key, value in (settings.get("recipe") or {}).items() if key != "objective"}
    shape = shape_of(file, data, {"recipe": recipe, "objective": "simclr"})
    return adopt_backbone(file, shape.recipe.start(0))


def recipe_of(data: Data, objective: str, changed: Mapping[str, Any]) -> Recipe:
    """The default recipe for the data and objective, with the user's changes."""
    values = {key: value for key, value in changed.items() if key != "objective"}
    named = changed.get("objective", objective)
    named = {"name": objective, **named} if isinstance(named, Mapping) else named
    chosen = config.choose(OBJECTIVES, named, "objective", CHOICES, "recipe.objective.")
    base = config.dump(api.default_recipe(data, chosen), CHOICES)
    return config.build(Recipe, _merged(base, values), CHOICES, "recipe.")


def _suits(file: Foreign, seen: Guess, data: Data) -> None:
    """An error unless the images are what the network was made for, as far as its weights show it."""
    channels, *size = data.shape
    if seen.channels != channels:
        raise EffaceError(
            f"The network in {file.path} looks at {seen.channels} channels, and these images have {channels}.",
            remedy=f"Set data.channels={seen.channels}, where the data has that option.",
        )
    if seen.size is not None and seen.size != tuple(size):
        raise EffaceError(
            f"The network in {file.path} looks at {seen.size[0]}x{seen.size[1]} images, and these are "
            f"{size[0]}x{size[1]}.",
            "A transformer has one embedding for each place of an image.",
            f"Set data.size={seen.size[0]}, where the data has that option.",
        )


def _merged(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changed.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return result
