"""What a method is handed: only the parts it declares, as batches of the checkpoint's own views, and never more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from efface import config
from efface.attention import reader
from efface.checkpoint import CHOICES, Checkpoint
from efface.data import Data
from efface.errors import EffaceError
from efface.methods import METHODS, Method
from efface.objectives import OBJECTIVES, Objective
from efface.splits import Split
from efface.types import Given, Needs, Part
from efface.views import Views

MAY_SEE = ("forget", "retain", "valid")
"""The parts that a method can ever be given: never the audit's holdout, spare or test."""


def part_of(data: Data, positions: Any, views: Views, name: str, device: torch.device) -> Part:
    """The examples at ``positions``, ready to be served in batches."""
    return Part(
        x=torch.from_numpy(data.x),
        ids=torch.as_tensor(positions, dtype=torch.int64),
        augment=views,
        y=None if data.y is None else torch.from_numpy(data.y),
        text=data.text,
        name=name,
        device=device,
    )


def give(method: Method, start: Checkpoint, data: Data, split: Split, device: torch.device) -> Given:
    """Only the parts that the method declares, each with something in it."""
    name = name_of_method(method)
    require_fit(name, method.needs, start)
    parts: dict[str, Part] = {}
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
        if start.recipe.objective.labelled or Needs.LABELS in method.needs:
            require_labels(data, positions, f"{name} on a '{name_of(start.recipe.objective)}' checkpoint")
        if start.recipe.objective.captioned:
            require_captions(data, positions, f"{name} on a '{name_of(start.recipe.objective)}' checkpoint")
        parts[part] = part_of(data, positions, start.recipe.views, part, device)
    return Given(method.needs, parts, start.recipe if start.trained else None)


def name_of_method(method: Method) -> str:
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
    paired = ", ".join(key for key, cls in OBJECTIVES.items() if cls.paired)
    wrong = {
        "classifiers": Needs.LABELS in needs and not objective.labelled,
        f"encoders that were trained by comparing pairs ({paired})": Needs.PAIRS in needs and not objective.paired,
    }
    for kind in (kind for kind, unfit in wrong.items() if unfit):
        fit = [key for key, cls in METHODS.items() if not (Needs.LABELS | Needs.PAIRS | Needs.ATTENTION) & cls.needs]
        raise EffaceError(
            f"{name} works on {kind}, and this checkpoint was trained with '{name_of(objective)}'.",
            f"Methods that work on any checkpoint: {', '.join(fit)}.",
        )
    if Needs.ATTENTION in needs:
        reader(start.model.backbone, name)


def require_labels(data: Data, positions: Any, who: str) -> None:
    """An error unless every example at ``positions`` has a label."""
    if data.y is None or (data.y[positions] < 0).any():
        raise EffaceError(
            f"{who} needs labels, and {'the data has none' if data.y is None else 'some examples have none'}.",
            remedy="Give labels, or use a label-free objective: simclr, moco, byol.",
        )


def require_captions(data: Data, positions: Iterable[int], who: str) -> None:
    """An error unless every example at ``positions`` has a caption."""
    if data.text is None:
        raise EffaceError(
            f"{who} needs captions, and the data has none.",
            f"{data.name} has no column 'caption'; a manifest's captions are read from there and nowhere else.",
            "Give the column of the captions that name, or use a label-free objective: simclr, moco, byol.",
        )
    absent = [row for row in positions if not data.text[row].strip()]
    if absent:
        raise EffaceError(
            f"{who} needs captions, and {len(absent)} have none.",
            f"Such as '{data.keys[absent[0]]}'.",
            "Write a caption for each, or leave them out of the manifest.",
        )


def name_of(objective: Objective) -> str:
    """As on the command line."""
    return str(config.dump(objective, CHOICES)["name"])
