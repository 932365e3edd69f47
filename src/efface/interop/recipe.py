"""The shape that foreign weights are put into: a recipe from what the file shows and what the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from efface import config
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.interop.architecture import GuessedArchitecture, guess_architecture, read_text_tower
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.import_weights import Tensors, import_backbone, import_model, read_queue_keys
from efface.interop.layouts import Role
from efface.training.defaults import _merged, build_recipe
from efface.training.model import Model
from efface.training.objectives import objective_class
from efface.training.objectives.shared import ProjectorLayer
from efface.training.recipe import Recipe


def infer_objective(foreign: ForeignCheckpoint, stated: str | None) -> str:
    """The objective that was stated, or that the layout tells; a single linear layer is a classifier's."""
    if stated or foreign.layout.objective:
        return str(stated or foreign.layout.objective)
    head = foreign.part(Role.HEAD)
    return "cross_entropy" if head.keys() <= {"weight", "bias"} and head else "simclr"


def infer_settings(foreign: ForeignCheckpoint, seen: GuessedArchitecture, objective: str) -> dict[str, Any]:
    """Settings of the recipe that the file itself shows: backbone, normalization, projector, length of the queue."""
    found: dict[str, Any] = {"objective": {"name": objective}}
    if seen.backbone is not None:
        found["backbone"] = config.dump(seen.backbone)
    if seen.mean is not None and seen.std is not None:
        found |= {"mean": list(seen.mean), "std": list(seen.std)}
    activation = ProjectorLayer.GELU if foreign.layout.gelu else ProjectorLayer.RELU
    shape = infer_projector(foreign.part(Role.HEAD), activation)
    known = set(config.dump(objective_class(objective)()))
    if "text" in known:
        found["objective"] |= read_text_tower(foreign)
    if shape is None or "layers" not in known:
        return found
    layers, hidden, out = shape
    told: dict[str, Any] = {"dim": out, "layers": [str(layer.value) for layer in layers]}
    told |= {"hidden": hidden} if hidden else {}
    queue, predictor = foreign.part(Role.QUEUE).get("queue"), infer_projector(foreign.part(Role.PREDICTOR), activation)
    told |= {"queue": len(read_queue_keys(queue, out, foreign))} if queue is not None else {}
    told |= {"bottleneck": predictor[1]} if predictor is not None and predictor[1] else {}
    found["objective"] |= {name: value for name, value in told.items() if name in known}
    return found


def infer_projector(
    head: Mapping[str, Tensor], activation: ProjectorLayer = ProjectorLayer.RELU
) -> tuple[tuple[ProjectorLayer, ...], int | None, int] | None:
    """Layers, hidden width and output width of a projector, from its names and shapes; ``None`` if it is no such one.

    Between two numbered layers a missing number is an activation: it has no weights.
    """
    steps: dict[int, Tensors] = {}
    for name, value in head.items():
        found = re.fullmatch(r"(\d+)\.(\w+)", name)
        if found is None:
            return None
        steps.setdefault(int(found[1]), {})[found[2]] = value
    layers: list[ProjectorLayer] = []
    widths: list[int] = []
    for number in range(max(steps, default=-1) + 1):
        inside = steps.get(number)
        if inside is None:
            layers.append(activation)
        elif "running_mean" in inside:
            layers.append(ProjectorLayer.NORM if "weight" in inside else ProjectorLayer.BARE)
        elif "weight" in inside and inside["weight"].dim() == 2:
            layers.append(ProjectorLayer.LINEAR if "bias" in inside else ProjectorLayer.PLAIN)
            widths.append(len(inside["weight"]))
        else:
            return None
    if not widths or len(set(widths[:-1])) > 1:
        return None
    return tuple(layers), (widths[0] if len(widths) > 1 else None), widths[-1]


@dataclass(frozen=True)
class InferredRecipe:
    """What a file's weights are put into."""

    recipe: Recipe
    objective: str
    seen: GuessedArchitecture
    guessed: bool
    """Whether nothing says what it was trained with, so that the objective is a guess."""


def infer_recipe(file: ForeignCheckpoint, data: Data, settings: Mapping[str, Any]) -> InferredRecipe:
    """The recipe for a file's weights and these images. ``settings``: recipe, objective.

    Raises where the network cannot be guessed and is not named, and where the images are not those it looks at.
    """
    seen = guess_architecture(file)
    _suits(file, seen, data)
    changed = dict(settings.get("recipe") or {})
    stated = settings.get("objective") or changed.get("objective")
    objective = infer_objective(file, stated.get("name") if isinstance(stated, Mapping) else stated)
    told = infer_settings(file, seen, objective)
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
    recipe = build_recipe(data, objective, _merged(told, {**changed, "objective": own}))
    return InferredRecipe(recipe, objective, seen, not stated and not file.layout.objective)


def load_foreign_model(
    file: ForeignCheckpoint, data: Data, settings: Mapping[str, Any], *, backbone_alone: bool
) -> Model:
    """A file's weights, to look at these images with. ``settings``: recipe, objective.

    ``backbone_alone``: the head is whatever an untrained one is, and the file needs none.
    """
    if not backbone_alone:
        shape = infer_recipe(file, data, settings)
        return import_model(file, shape.recipe.start(0), shape.objective).model
    recipe = {key: value for key, value in (settings.get("recipe") or {}).items() if key != "objective"}
    shape = infer_recipe(file, data, {"recipe": recipe, "objective": "simclr"})
    return import_backbone(file, shape.recipe.start(0))


def _suits(file: ForeignCheckpoint, seen: GuessedArchitecture, data: Data) -> None:
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
