"""Adopt a foreign checkpoint: its weights into a Model, and an unlearned Model's weights back into its layout.

Nothing is loaded by halves: every tensor of the backbone and of the projector has its place in the network, or an
error shows what does not fit. On the way back every tensor of the file is decided about, and each decision is noted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.layouts import Role
from efface.training.model import Model

Tensors = dict[str, Tensor]


COUNTER = "num_batches_tracked"
"""Of BatchNorm; files from before it existed lack it."""


HALF_PRECISION = (torch.float16, torch.bfloat16)


MAX_LISTED_NAMES = 6
"""Names listed of each kind that does not fit."""


@dataclass(frozen=True)
class ImportedModel:
    """A model with foreign weights, and what to know about it."""

    model: Model
    notes: tuple[str, ...] = ()


def import_model(
    foreign: ForeignCheckpoint, model: Model, objective: str, *, fresh_head: bool = False
) -> ImportedModel:
    """Put the file's weights into a fresh model: all of backbone and head, and what it has of the other parts.

    ``fresh_head``: where the file has no head, leave the model's own, untrained one.
    """
    notes: list[str] = []
    fresh = {"backbone": _fitted(model.backbone, foreign, Role.BACKBONE)}
    bare = not foreign.part(Role.HEAD)
    if bare and not fresh_head:
        raise EffaceError(
            f"{foreign.path} has a backbone but no head.",
            f"The objective '{objective}' needs the {_head(objective)} that it was trained with.",
            "Bring the checkpoint of the training run, before its head was taken off; or put an untrained one on: "
            "--set fresh_head=true.",
        )
    if bare:
        notes.append(f"the file has no head: the {_head(objective)} starts untrained")
    else:
        fresh["head"] = _fitted(model.head, foreign, Role.HEAD, objective)
    if model.predictor is not None and not bare:
        fresh["predictor"] = _fitted(model.predictor, foreign, Role.PREDICTOR, objective)
    if model.text is not None:
        fresh["text.network"] = _fitted(model.text.network, foreign, Role.TEXT, objective)
        fresh[""] = _scale(model, foreign)
    state = {
        f"{part}.{name}".removeprefix("."): value for part, inside in fresh.items() for name, value in inside.items()
    }
    _finite(foreign)
    model.load_state_dict(state, strict=False)
    if model.momentum_encoder is not None:
        notes += _import_momentum_encoder(model, foreign)
    if model.queue is not None:
        notes += _import_queue(model, foreign)
    return ImportedModel(model, tuple(notes))


def import_backbone(foreign: ForeignCheckpoint, model: Model) -> Model:
    """Put the file's backbone alone into a fresh model; the head stays untrained."""
    _finite(foreign)
    model.backbone.load_state_dict(_fitted(model.backbone, foreign, Role.BACKBONE), strict=False)
    return model


def _scale(model: Model, foreign: ForeignCheckpoint) -> Tensors:
    theirs = foreign.part(Role.SCALE).get("logit_scale")
    if theirs is None or theirs.numel() != 1 or model.scale is None:
        raise EffaceError(f"{foreign.path} has no single logit scale.", "CLIP's loss has one for all pairs.")
    return {"scale": theirs.reshape(()).to(model.scale.dtype)}


def _import_momentum_encoder(model: Model, foreign: ForeignCheckpoint) -> list[str]:
    model.add_momentum_encoder()
    theirs, own = foreign.part(Role.TWIN), model.get_submodule("momentum_encoder").state_dict()
    if any(name not in theirs or theirs[name].shape != own[name].shape for name in own if not name.endswith(COUNTER)):
        return ["the file has no whole momentum twin: it starts as a copy of the trained network"]
    there = {name: theirs[name].to(value.dtype) for name, value in own.items() if name in theirs}
    model.get_submodule("momentum_encoder").load_state_dict(own | there)
    return []


def _import_queue(model: Model, foreign: ForeignCheckpoint) -> list[str]:
    theirs, own = foreign.part(Role.QUEUE).get("queue"), model.queue
    keys = None if theirs is None or own is None else read_queue_keys(theirs, own.shape[1], foreign)
    if keys is None or own is None or keys.shape != own.shape:
        return ["the file has no queue that fits: it starts with random directions"]
    model.queue = keys.to(own.dtype).contiguous().clone()
    return []


def read_queue_keys(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> Tensor:
    """A foreign queue as rows of keys, [K, dim]: most keep [dim, K], solo-learn one for each view [2, dim, K]."""
    first = queue[0] if queue.dim() == 3 else queue
    return first if _in_rows(first, dim, foreign) else first.T


def _in_rows(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> bool:
    return foreign.layout.name == "efface" or (queue.shape[0] != dim and queue.shape[1] == dim)


def _fitted(module: nn.Module, foreign: ForeignCheckpoint, role: Role, objective: str = "") -> Tensors:
    """The file's tensors for a module, in the module's types; an error with a table unless each one fits."""
    own, theirs = module.state_dict(), foreign.part(role)
    missing = [name for name in own if name not in theirs and not name.endswith(COUNTER)]
    unexpected = [name for name in theirs if name not in own]
    both = [name for name in theirs if name in own]
    shapes = [
        f"{name}: {tuple(theirs[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in both
        if theirs[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        table = [f"{len(both) - len(shapes)} of {len(theirs)} tensors match."]
        for kind, names in (("Missing", missing), ("Unexpected", unexpected), ("Of another shape", shapes)):
            more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
            table.append(f"{kind}: {len(names)}{': ' if names else ''}{'; '.join(names[:MAX_LISTED_NAMES])}{more}.")
        raise _misfit(foreign, role, objective, "\n".join(table))
    coded = [name for name in both if own[name].is_floating_point() and not theirs[name].is_floating_point()]
    if coded:
        raise EffaceError(
            f"The {role} in {foreign.path} is quantized.",
            f"'{coded[0]}' is {theirs[coded[0]].dtype}.",
            "Bring the checkpoint from before quantization.",
        )
    return {name: theirs[name].to(own[name].dtype) for name in both}


def _misfit(foreign: ForeignCheckpoint, role: Role, objective: str, table: str) -> EffaceError:
    if role is Role.BACKBONE:
        return EffaceError(
            f"The backbone in {foreign.path} is another architecture than the one it was put into.",
            table,
            "Set recipe.backbone.name, its width and options as they were in training; `efface inspect` shows a guess.",
        )
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in foreign.part(role).items()) or "nothing"
    return EffaceError(
        f"The {role} in {foreign.path} is not one that the objective '{objective}' can have here.",
        f"It has: {shapes}. {table}",
        f"A {_head(objective)} is expected. Name the objective that it was trained with (--objective), or bring a "
        "checkpoint with such a head.",
    )


def _head(objective: str) -> str:
    if objective == "cross_entropy":
        return "single linear layer over the classes of the data"
    if objective == "clip":
        return "projection without bias, and open_clip's text tower,"
    return "projector of linear layers, BatchNorm and activations"


def _finite(foreign: ForeignCheckpoint) -> None:
    state = foreign.container.state
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EffaceError(
            f"The weights in {foreign.path} are not all finite numbers.",
            f"NaN or infinite in {len(broken)} tensors: {', '.join(broken[:MAX_LISTED_NAMES])}.",
            "Go back to a checkpoint from before the training diverged.",
        )
