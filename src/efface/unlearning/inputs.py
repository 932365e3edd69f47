"""What a method is handed: only the parts it declares, as batches of the checkpoint's own views, and never more."""

from __future__ import annotations

import torch

from efface.data.dataset import Data, require_captions, require_labels
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import get_objective_name
from efface.training.networks.attention import find_attention_reader
from efface.training.objectives import OBJECTIVES
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.protocol import MethodInputs, Needs

MAY_SEE = ("forget", "retain", "valid")
"""The parts that a method can ever be given: never the audit's holdout, spare or test."""


def build_inputs(method: Method, start: Checkpoint, data: Data, split: Split, device: torch.device) -> MethodInputs:
    """Only the parts that the method declares, each with something in it."""
    name = get_method_name(method)
    require_fit(name, method.needs, start)
    parts: dict[str, Subset] = {}
    for part in MAY_SEE:
        if Needs[part.upper()] not in method.needs:
            continue
        positions = getattr(split, part)
        if not len(positions):
            free = [key for key, cls in METHODS.items() if Needs[part.upper()] not in cls.needs]
            raise EffaceError(
                f"{name} needs the {part} examples, but this request has none ({part}: 0 of {len(data)}).",
                f"Methods that work without: {', '.join(free) or 'none'}.",
            )
        if start.recipe.objective.needs_labels or Needs.LABELS in method.needs:
            require_labels(data, positions, f"{name} on a '{get_objective_name(start.recipe.objective)}' checkpoint")
        if start.recipe.objective.needs_captions:
            require_captions(data, positions, f"{name} on a '{get_objective_name(start.recipe.objective)}' checkpoint")
        parts[part] = Subset.of(data, positions, start.recipe.views, part, device)
    return MethodInputs(method.needs, parts, start.recipe if start.trained else None)


def get_method_name(method: Method) -> str:
    """What it is called in ``METHODS``, and so in records; an error for one that is not there."""
    for name, cls in METHODS.items():
        if cls is type(method):
            return name
    mine = type(method).__name__
    raise EffaceError(
        f"{mine} has no name: it is not among the methods.",
        "A record says what was done by the method's name.",
        f"Set efface.methods.METHODS['a_name'] = {mine}, or declare an entry point in a package (CONTRIBUTING.md).",
    )


def require_fit(name: str, needs: Needs, start: Checkpoint) -> None:
    """An error unless the checkpoint is of the kind that the method works on."""
    objective = start.recipe.objective
    paired = ", ".join(key for key, cls in OBJECTIVES.items() if cls.contrasts_pairs)
    wrong = {
        "classifiers": Needs.LABELS in needs and not objective.needs_labels,
        f"encoders that were trained by comparing pairs ({paired})": Needs.PAIRS in needs
        and not objective.contrasts_pairs,
    }
    for kind in (kind for kind, unfit in wrong.items() if unfit):
        fit = [key for key, cls in METHODS.items() if not (Needs.LABELS | Needs.PAIRS | Needs.ATTENTION) & cls.needs]
        raise EffaceError(
            f"{name} works on {kind}, and this checkpoint was trained with '{get_objective_name(objective)}'.",
            f"Methods that work on any checkpoint: {', '.join(fit)}.",
        )
    if Needs.ATTENTION in needs:
        find_attention_reader(start.model.backbone, name)
