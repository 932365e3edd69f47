"""Load a checkpoint of another library into a model: read the file, infer its recipe, import its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.data.dataset import Data
from efface.interop.architecture import GuessedArchitecture
from efface.interop.averages import AveragedWeights
from efface.interop.checkpoint_file import ForeignCheckpoint, read_foreign
from efface.interop.import_weights import import_backbone, import_model
from efface.interop.recipe import infer_recipe
from efface.training.model import Model
from efface.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class LoadedCheckpoint:
    """A foreign checkpoint as a model.

    It keeps the file's own tensors in memory. Take ``model`` and drop the rest if you do not need them.
    """

    file: ForeignCheckpoint
    model: Model
    recipe: Recipe
    """What the model was built from. Its training settings are defaults: a file does not say how it was trained."""
    objective: str
    """Name of the objective."""
    architecture: GuessedArchitecture
    """What the shapes in the file show of the network."""
    guessed_objective: bool
    """Whether neither the user nor the file says what it was trained with."""
    notes: tuple[str, ...]
    """What the user should know: everything that was assumed, and the parts that the file does not have."""


def load_checkpoint(
    path: Path | ForeignCheckpoint,
    data: Data,
    *,
    objective: str | Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    fresh_head: bool = False,
    backbone_only: bool = False,
    trust_pickle: bool = False,
    averaged: AveragedWeights | str = AveragedWeights.COPY,
) -> LoadedCheckpoint:
    """Load the weights of another library's checkpoint into a model for these images.

    Args:
        path: A file of weights, a model folder as Hugging Face and timm write them, or either of them as it was read.
        data: The images that the model will be used on; their shape and number of classes must fit.
        objective: What it was trained with, where the file does not tell: a name, or a mapping with ``name``.
        recipe: Settings of the recipe that differ from what the file shows, such as ``{"backbone": {"stride": 1}}``.
        seed: Seed of the parts that the file does not have.
        fresh_head: Whether a file without a head is accepted; it then gets an untrained one.
        backbone_only: Whether to load only the backbone. The head stays untrained, and the file needs none.
        trust_pickle: Whether to unpickle classes that are not known to be harmless. That can run code in the file.
        averaged: ``start`` loads the averaged copy that the file has of its network in place of the trained weights.

    Raises:
        EffaceError: The file cannot be read safely, its network cannot be inferred, or its weights do not fit.

    Example:
        >>> loaded = load_checkpoint(Path("moco_v2_800ep.pth.tar"), data)
        >>> features = loaded.model.features(images)

    """
    file = path if isinstance(path, ForeignCheckpoint) else read_foreign(path, trust_pickle=trust_pickle)
    if AveragedWeights(averaged) is AveragedWeights.START:
        file = file.from_averaged()
    stated = dict(recipe or {})
    file = file.with_head(((stated.get("backbone") or {}).get("options") or {}).get("head"))
    if backbone_only:
        objective = "simclr"  # any objective will do, but a user's options for another one would not fit
        stated.pop("objective", None)
    inferred = infer_recipe(file, data, objective=objective, recipe=stated)
    model = inferred.recipe.start(seed)
    if backbone_only:
        imported = import_backbone(file, model)
    else:
        imported = import_model(file, model, inferred.objective, fresh_head=fresh_head)
    notes = [*file.layout.notes, *_open_assumptions(inferred.architecture, stated), *imported.notes]
    layers = getattr(inferred.recipe.objective, "layers", None) if inferred.objective == "cross_entropy" else None
    if layers and "layers" not in (stated.get("objective") or {}):
        shown = ", ".join(str(layer.value) for layer in layers)
        notes.append(f"head assumed: {shown} (no weight shows activations; else: --set recipe.objective.layers=[...])")
    if inferred.guessed_objective:
        guess = f"taken to be {inferred.objective} (else: --objective)"
        notes.insert(0, f"nothing says what it was trained with; {guess}")
    return LoadedCheckpoint(
        file,
        imported.model,
        inferred.recipe,
        inferred.objective,
        inferred.architecture,
        inferred.guessed_objective,
        tuple(notes),
    )


def _open_assumptions(architecture: GuessedArchitecture, recipe: Mapping[str, Any]) -> list[str]:
    """List what was assumed about the network, without what the user has stated."""
    normalization_stated, backbone_stated = {"mean", "std"} & recipe.keys(), recipe.get("backbone")
    return [
        note
        for note in architecture.notes
        if not (normalization_stated if note.startswith("normalization") else backbone_stated)
    ]
