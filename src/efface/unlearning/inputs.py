"""Build the inputs of a method: exactly the splits it declares in ``needs``, with the checkpoint's own views."""

from __future__ import annotations

import numpy as np
import torch

from efface.data.dataset import Data, require_captions, require_labels
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import get_objective_name
from efface.training.networks.attention import find_attention_reader
from efface.training.objectives import OBJECTIVES
from efface.training.recipe import require_batch_size
from efface.unlearning.methods import METHODS, Method
from efface.unlearning.protocol import MethodInputs, Needs
from efface.unlearning.targets import MarginTargets

METHOD_SPLITS = ("forget", "retain", "valid")
"""The splits that a method can declare. The audit's own (holdout, spare, test) are never among them."""


def build_inputs(
    method: Method,
    start: Checkpoint,
    data: Data,
    split: Split,
    device: torch.device,
    targets: MarginTargets | None = None,
) -> MethodInputs:
    """Build the inputs of a method: exactly the splits it declares in ``needs``.

    Args:
        method: The method that is going to run.
        start: The checkpoint that it starts from; its views augment the images.
        data: All examples.
        split: Which examples are to be forgotten, retained, or were never trained on.
        device: Where batches are put.
        targets: Targets from a reference bank, for methods that need them.

    Returns:
        The declared subsets, and the recipe of the original if efface trained it.

    Raises:
        EffaceError: If the checkpoint is of the wrong kind, or if a declared split is empty, without labels or
            without captions that are needed.

    """
    name = get_method_name(method)
    require_fit(name, method.needs, start)
    objective = start.recipe.objective
    require_batch_size(objective, getattr(method, "batch_size", None), f"{name}.batch_size")
    reader = f"{name} on a '{get_objective_name(objective)}' checkpoint"
    subsets: dict[str, Subset] = {}
    for split_name in METHOD_SPLITS:
        need = Needs[split_name.upper()]
        if need not in method.needs:
            continue
        positions = getattr(split, split_name)
        if not len(positions):
            others = [key for key, cls in METHODS.items() if need not in cls.needs]
            raise EffaceError(
                f"{name} needs the {split_name} examples, but this request has none ({split_name}: 0 of {len(data)}).",
                f"Methods that work without: {', '.join(others) or 'none'}.",
            )
        if objective.needs_labels or Needs.LABELS in method.needs:
            require_labels(data, positions, reader)
        if objective.needs_captions:
            require_captions(data, positions, reader)
        subsets[split_name] = Subset.of(data, positions, start.recipe.views, split_name, device)
    if Needs.CLASSES in method.needs:
        _require_whole_classes(name, data, split)
    inputs = MethodInputs(method.needs, subsets, start.recipe if start.trained else None, targets)
    if Needs.TARGETS in method.needs:
        _ = inputs.targets  # an error before anything is computed
    return inputs


def get_method_name(method: Method) -> str:
    """The name of a method in ``METHODS``, which records use; an error if it is not registered there."""
    for name, cls in METHODS.items():
        if cls is type(method):
            return name
    class_name = type(method).__name__
    raise EffaceError(
        f"{class_name} has no name: it is not among the methods.",
        "Records identify a method by its name.",
        f"Set efface.methods.METHODS['a_name'] = {class_name}, or declare an entry point in a package "
        "(CONTRIBUTING.md).",
    )


def require_fit(name: str, needs: Needs, start: Checkpoint) -> None:
    """Raise an error unless the checkpoint is of the kind that a method works on.

    Args:
        name: Name of the method, for the message.
        needs: What the method declares.
        start: The checkpoint that it would start from.

    Raises:
        EffaceError: If the method needs a classifier, an encoder trained on pairs or a transformer, and ``start`` is
            none; it names the methods that work on any checkpoint.

    """
    objective = start.recipe.objective
    _require_shards(name, needs, start)
    paired = ", ".join(key for key, cls in OBJECTIVES.items() if cls.contrasts_pairs)
    misfits = {
        "classifiers": Needs.LABELS in needs and not objective.needs_labels,
        f"encoders that were trained by comparing pairs ({paired})": Needs.PAIRS in needs
        and not objective.contrasts_pairs,
    }
    for kind in (kind for kind, misfit in misfits.items() if misfit):
        special = Needs.LABELS | Needs.PAIRS | Needs.ATTENTION | Needs.SHARDS
        general = [key for key, cls in METHODS.items() if not special & cls.needs]
        raise EffaceError(
            f"{name} works on {kind}, and this checkpoint was trained with '{get_objective_name(objective)}'.",
            f"Methods that work on any checkpoint: {', '.join(general)}.",
        )
    if Needs.ATTENTION in needs:
        find_attention_reader(start.model.backbone, name)


def _require_whole_classes(name: str, data: Data, split: Split) -> None:
    """Raise unless the request is for whole classes."""
    assert data.y is not None  # it needs labels, too
    shared = np.intersect1d(data.y[split.forget], data.y[split.retain])
    if len(shared):
        named = ", ".join(str(data.classes[one]) if data.classes else str(one) for one in shared[:3])
        left = int(np.isin(data.y[split.retain], shared).sum())
        raise EffaceError(
            f"{name} forgets whole classes, and {left} retained examples are of a class that this request names "
            f"({named}{', ...' if len(shared) > 3 else ''}).",
            "It removes what a class does not share with the others, which single examples of a class do not have.",
            "Forget the class (--forget CLASS), or use another method for single examples, such as margin_matching.",
        )


def _require_shards(name: str, needs: Needs, start: Checkpoint) -> None:
    """Raise unless a method for shards meets a model of shards, and such a model an exact method."""
    sharded = start.recipe.shards is not None
    if Needs.SHARDS in needs and not sharded:
        raise EffaceError(
            f"{name} works on checkpoints that were trained in shards, and this one was not.",
            "Its single network saw all training examples in every epoch.",
            "Use retrain, which is exact as well, or another method; `efface pretrain --shards 4` trains in shards.",
        )
    if sharded and not METHODS[name].exact:
        exact = [key for key, cls in METHODS.items() if cls.exact]
        raise EffaceError(
            f"{name} does not work on a checkpoint that was trained in shards.",
            "It would train every shard on the examples of all others, and none could be deleted exactly any more.",
            f"Use an exact method: {', '.join(exact)}.",
        )
