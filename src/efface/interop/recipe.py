"""Infer the recipe that foreign weights fit, from what the file shows and what the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from efface import config
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.interop.architecture import GuessedArchitecture, guess_architecture
from efface.interop.checkpoint_file import ForeignCheckpoint, read_queue_keys
from efface.interop.layouts import Role
from efface.interop.text_towers import read_text_tower
from efface.training.defaults import build_recipe, merge_settings
from efface.training.objectives import objective_class
from efface.training.objectives.shared import ProjectorLayer
from efface.training.recipe import ColorOrder, Recipe


@dataclass(frozen=True)
class InferredRecipe:
    """The recipe for the weights of a file."""

    recipe: Recipe
    objective: str
    """Name of the objective."""
    architecture: GuessedArchitecture
    guessed_objective: bool
    """Whether neither the user nor the file says what it was trained with, so that the objective is a guess."""


def infer_recipe(
    foreign: ForeignCheckpoint,
    data: Data,
    *,
    objective: str | Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> InferredRecipe:
    """Infer the recipe that fits the weights of a file and these images.

    Args:
        foreign: The checkpoint.
        data: The images that the model will be used on.
        objective: What it was trained with, if the user said so: a name, or a mapping with ``name``.
        recipe: Settings of the recipe that the user stated; they take precedence over what the file shows.

    Raises:
        EffaceError: The network cannot be guessed and was not named, or it expects other images than these.

    """
    architecture = guess_architecture(foreign)
    _require_matching_images(foreign, architecture, data)
    stated_recipe = dict(recipe or {})
    stated = objective or stated_recipe.get("objective")
    name = infer_objective(foreign, stated.get("name") if isinstance(stated, Mapping) else stated, len(data.classes))
    require_stated(foreign, architecture, name, stated_recipe)
    inferred = infer_settings(foreign, architecture, name)
    options = stated_recipe.pop("objective", None)
    options: dict[str, Any] = {"name": options} if isinstance(options, str) else dict(options or {})
    if (stated_recipe.get("backbone") or {}).get("name"):
        inferred.pop("backbone", None)  # the user's network, with nothing of the guessed one
    elif architecture.backbone is None:
        raise EffaceError(
            f"Which network the weights in {foreign.path} belong to cannot be told from their names and shapes.",
            f"A file of weights does not say it. Its layout is {foreign.layout.name}: {architecture.name}.",
            "Name it as timm does: --set recipe.backbone.name=timm:NAME, NAME being the word given to "
            "timm.create_model. A network of your own: --model package:function.",
        )
    if (options.get("text") or {}).get("name"):
        inferred["objective"].pop("text", None)  # the user's text tower, with nothing of the guessed one
    built = build_recipe(data, name, merge_settings(inferred, {**stated_recipe, "objective": options}))
    return InferredRecipe(built, name, architecture, not stated and not foreign.layout.objective)


def infer_objective(foreign: ForeignCheckpoint, stated: str | None, classes: int = 0) -> str:
    """Return the stated objective, or the one the layout implies.

    Without either, a head that is a single linear layer is taken for a classifier, and so is an MLP with as many
    outputs as the data has classes; anything else is taken for SimCLR.
    """
    if stated or foreign.layout.objective:
        return str(stated or foreign.layout.objective)
    head = foreign.part(Role.HEAD)
    projector = infer_projector(head)
    if (head and head.keys() <= {"weight", "bias"}) or (projector and classes > 1 and projector[2] == classes):
        return "cross_entropy"
    return "simclr"


def require_stated(
    foreign: ForeignCheckpoint, architecture: GuessedArchitecture, objective: str, recipe: Mapping[str, Any]
) -> None:
    """Raise an error if a setting that no weight shows is not stated, such as the number of attention heads.

    A setting counts as stated too if the name of the network or of the text tower is.
    """
    needed = [path for path in architecture.unshown if not _is_stated(path, recipe)]
    if objective != "clip":
        needed = [path for path in needed if not path.startswith("objective.")]
    if not needed:
        return
    lines = " ".join(f"--set recipe.{path}={'true' if path.endswith('gelu') else 'N'}" for path in needed)
    names = architecture.alternatives
    if names:
        owners = dict.fromkeys(path.rpartition(".options.")[0] for path in needed)
        towers = "".join(f" --set recipe.{owner}.name={names[0]}" for owner in owners)
        known = f"Known networks of these shapes: {', '.join(names)}. "
        lines = f"{towers.strip()} (one of these), or {lines}"
    else:
        known = ""
    words = " and ".join(dict.fromkeys(path.rpartition(".")[2] for path in needed))
    raise EffaceError(
        f"The weights in {foreign.path} do not show {words}.",
        f"{known}A wrong value loads without an error and gives another network.",
        f"State what it was trained with: {lines}; or put the library's configuration beside the file.",
    )


def _is_stated(path: str, recipe: Mapping[str, Any]) -> bool:
    """Whether settings have a value at a dotted path, or name what the path's options belong to."""
    owner = path.rpartition(".options.")[0]
    return _lookup(recipe, path) is not None or _lookup(recipe, f"{owner}.name") is not None


def _lookup(settings: Any, path: str) -> Any:
    for word in path.split("."):
        settings = settings.get(word) if isinstance(settings, Mapping) else None
    return settings


def infer_settings(foreign: ForeignCheckpoint, architecture: GuessedArchitecture, objective: str) -> dict[str, Any]:
    """Collect the recipe settings that the file shows: backbone, normalization, projector, length of the queue."""
    settings: dict[str, Any] = {"objective": {"name": objective}}
    if architecture.backbone is not None:
        settings["backbone"] = config.dump(architecture.backbone)
    if architecture.mean is not None and architecture.std is not None:
        settings |= {"mean": list(architecture.mean), "std": list(architecture.std)}
    if architecture.reversed_colors:
        settings["order"] = str(ColorOrder.BGR)
    activation = ProjectorLayer.GELU if foreign.layout.gelu else ProjectorLayer.RELU
    projector = infer_projector(foreign.part(Role.HEAD), activation)
    known = set(config.dump(objective_class(objective)()))
    if "text" in known:
        settings["objective"] |= read_text_tower(foreign)
    if projector is None or "layers" not in known:
        return settings
    layers, hidden, out = projector
    options: dict[str, Any] = {"dim": out, "layers": [str(layer.value) for layer in layers]}
    if hidden:
        options["hidden"] = hidden
    queue = foreign.part(Role.QUEUE).get("queue")
    if queue is not None:
        options["queue"] = len(read_queue_keys(queue, out, foreign))
    predictor = infer_projector(foreign.part(Role.PREDICTOR), activation)
    if predictor is not None and predictor[1]:
        options["bottleneck"] = predictor[1]
    settings["objective"] |= {name: value for name, value in options.items() if name in known}
    return settings


def infer_projector(
    head: Mapping[str, Tensor], activation: ProjectorLayer = ProjectorLayer.RELU
) -> tuple[tuple[ProjectorLayer, ...], int | None, int] | None:
    """Infer a projector from the names and shapes of its tensors.

    A number that is missing after a numbered layer is an activation, because activations have no weights. Others that
    are missing, before the first layer or after an activation, are dropout.

    Args:
        head: Name to tensor, with names such as ``0.weight``: positions in a ``torch.nn.Sequential``.
        activation: What stands at the missing positions; no shape shows it.

    Returns:
        Its layers, hidden width (``None`` for a single linear layer) and output width; ``None`` if the head is not a
        projector that can be built here.

    """
    positions: dict[int, dict[str, Tensor]] = {}
    for name, value in head.items():
        match = re.fullmatch(r"(\d+)\.(\w+)", name)
        if match is None:
            return None
        positions.setdefault(int(match[1]), {})[match[2]] = value
    layers: list[ProjectorLayer] = []
    widths: list[int] = []
    for number in range(max(positions, default=-1) + 1):
        tensors = positions.get(number)
        if tensors is None:
            layers.append(
                activation if layers and layers[-1] not in (activation, ProjectorLayer.NONE) else ProjectorLayer.NONE
            )
        elif "running_mean" in tensors:
            layers.append(ProjectorLayer.NORM if "weight" in tensors else ProjectorLayer.BARE)
        elif "weight" in tensors and tensors["weight"].dim() == 2:
            layers.append(ProjectorLayer.LINEAR if "bias" in tensors else ProjectorLayer.PLAIN)
            widths.append(len(tensors["weight"]))
        else:
            return None
    if not widths or len(set(widths[:-1])) > 1:
        return None
    return tuple(layers), (widths[0] if len(widths) > 1 else None), widths[-1]


def _require_matching_images(foreign: ForeignCheckpoint, architecture: GuessedArchitecture, data: Data) -> None:
    """Raise an error if the weights show that the network was made for images of another size or channel count."""
    channels, *size = data.shape
    if architecture.channels != channels:
        raise EffaceError(
            f"The network in {foreign.path} looks at {architecture.channels} channels, and these images have "
            f"{channels}.",
            remedy=f"Set data.channels={architecture.channels}, where the data has that option.",
        )
    if architecture.size is not None and architecture.size != tuple(size):
        raise EffaceError(
            f"The network in {foreign.path} looks at {architecture.size[0]}x{architecture.size[1]} images, and these "
            f"are {size[0]}x{size[1]}.",
            "A transformer has one embedding for each place of an image.",
            f"Set data.size={architecture.size[0]}, where the data has that option.",
        )
