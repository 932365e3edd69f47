"""Import the weights of a foreign checkpoint into a model.

A checkpoint is imported as a whole or not at all: every tensor of the backbone and of the projector must have its
place in the network, or an error shows which ones do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from efface.errors import EffaceError
from efface.interop.checkpoint_file import ForeignCheckpoint, read_queue_keys
from efface.interop.layouts import Role
from efface.interop.names import votes
from efface.interop.split_norm import fold_splits
from efface.training.model import Model

MAX_LISTED_NAMES = 6
"""At most so many names are listed of each kind that does not fit."""


@dataclass(frozen=True)
class ImportedModel:
    """A model with foreign weights."""

    model: Model
    notes: tuple[str, ...] = ()
    """Parts of the model that the file does not have, and what they start with instead."""


def import_model(
    foreign: ForeignCheckpoint, model: Model, objective: str, *, fresh_head: bool = False
) -> ImportedModel:
    """Load a file's weights into a newly built model.

    Backbone, head, predictor and text tower must be complete. The momentum encoder and the queue are taken over where
    they fit; where they do not, they start as in a new training run.

    Args:
        foreign: The checkpoint.
        model: A model of the same architecture; it is changed in place.
        objective: Name of the objective, for error messages.
        fresh_head: Whether a file without a head is accepted; the model then keeps its own, untrained head.

    Raises:
        EffaceError: Tensors are missing, unexpected, of another shape, quantized or not finite.

    """
    notes: list[str] = []
    parts = {"backbone": _matched(model.backbone, foreign, Role.BACKBONE)}
    headless = not foreign.part(Role.HEAD)
    if headless and not fresh_head:
        raise EffaceError(
            f"{foreign.path} has a backbone but no head.",
            f"The objective '{objective}' needs the {_describe_head(objective)} that it was trained with.",
            "Bring the checkpoint of the training run, before its head was taken off; or put an untrained one on: "
            "--set fresh_head=true.",
        )
    if headless:
        notes.append(f"the file has no head: the {_describe_head(objective)} starts untrained")
    else:
        parts["head"] = _matched(model.head, foreign, Role.HEAD, objective)
    if model.predictor is not None and not headless:
        parts["predictor"] = _matched(model.predictor, foreign, Role.PREDICTOR, objective)
    if model.text is not None:
        parts["text.network"] = _matched(model.text.network, foreign, Role.TEXT, objective)
        parts[""] = _read_scale(model, foreign)
    state = {
        f"{part}.{name}".removeprefix("."): value for part, inside in parts.items() for name, value in inside.items()
    }
    _require_finite(foreign)
    model.load_state_dict(state, strict=False)
    if model.momentum_encoder is not None:
        notes += _import_momentum_encoder(model, foreign)
    if model.queue is not None:
        notes += _import_queue(model, foreign)
    return ImportedModel(model, tuple(notes))


def import_backbone(foreign: ForeignCheckpoint, model: Model) -> ImportedModel:
    """Load only a file's backbone into a newly built model; the head stays untrained."""
    _require_finite(foreign)
    model.backbone.load_state_dict(_matched(model.backbone, foreign, Role.BACKBONE), strict=False)
    return ImportedModel(model)


def _read_scale(model: Model, foreign: ForeignCheckpoint) -> dict[str, Tensor]:
    scale = foreign.part(Role.SCALE).get("logit_scale")
    if scale is None or scale.numel() != 1 or model.scale is None:
        raise EffaceError(f"{foreign.path} has no single logit scale.", "CLIP's loss has one for all pairs.")
    return {"scale": scale.reshape(()).to(model.scale.dtype)}


def _import_momentum_encoder(model: Model, foreign: ForeignCheckpoint) -> list[str]:
    model.add_momentum_encoder()
    momentum_encoder = model.get_submodule("momentum_encoder")
    target = momentum_encoder.state_dict()
    stored = _fold(foreign.part(Role.MOMENTUM_ENCODER), target)
    required = [name for name, value in target.items() if votes(name, value)]
    if any(name not in stored or stored[name].shape != target[name].shape for name in required):
        return ["the file has no complete momentum encoder: it starts as a copy of the trained network"]
    loaded = {name: stored[name].to(value.dtype) for name, value in target.items() if name in stored}
    momentum_encoder.load_state_dict(target | loaded)
    return []


def _import_queue(model: Model, foreign: ForeignCheckpoint) -> list[str]:
    stored, target = foreign.part(Role.QUEUE).get("queue"), model.queue
    keys = None if stored is None or target is None else read_queue_keys(stored, target.shape[1], foreign)
    if keys is None or target is None or keys.shape != target.shape:
        return ["the file has no queue that fits: it starts with random directions"]
    model.queue = keys.to(target.dtype).contiguous().clone()
    return []


def _matched(module: nn.Module, foreign: ForeignCheckpoint, role: Role, objective: str = "") -> dict[str, Tensor]:
    """Return the file's tensors of one role, cast to the module's dtypes; an error with a table if any does not fit."""
    target = module.state_dict()
    stored = _fold(foreign.part(role), target)
    missing = [name for name, value in target.items() if name not in stored and votes(name, value)]
    unexpected = [name for name in stored if name not in target]
    both = [name for name in stored if name in target]
    shapes = [
        f"{name}: {tuple(stored[name].shape)} in the file, {tuple(target[name].shape)} here"
        for name in both
        if stored[name].shape != target[name].shape
    ]
    if missing or unexpected or shapes:
        table = [f"{len(both) - len(shapes)} of {len(stored)} tensors match."]
        for kind, names in (("Missing", missing), ("Unexpected", unexpected), ("Of another shape", shapes)):
            more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
            table.append(f"{kind}: {len(names)}{': ' if names else ''}{'; '.join(names[:MAX_LISTED_NAMES])}{more}.")
        raise _mismatch_error(foreign, role, objective, "\n".join(table))
    quantized = [name for name in both if target[name].is_floating_point() and not stored[name].is_floating_point()]
    if quantized:
        raise EffaceError(
            f"The {role} in {foreign.path} is quantized.",
            f"'{quantized[0]}' is {stored[quantized[0]].dtype}.",
            "Bring the checkpoint from before quantization.",
        )
    return {name: stored[name].to(target[name].dtype) for name in both}


def _fold(stored: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: fold_splits(name, value, target[name].shape) if name in target else value
        for name, value in stored.items()
    }


def _mismatch_error(foreign: ForeignCheckpoint, role: Role, objective: str, table: str) -> EffaceError:
    if role is Role.BACKBONE:
        return EffaceError(
            f"The backbone in {foreign.path} is another architecture than the one it was put into.",
            table,
            "Set recipe.backbone.name, its width and options as they were in training; `efface inspect` shows a guess.",
        )
    remedy = (
        f"A {_describe_head(objective)} is expected. Name the objective that it was trained with (--objective), or "
        "bring a checkpoint with such a head."
    )
    if role is Role.HEAD and foreign.part(role).keys() <= {"weight", "bias"} and objective != "cross_entropy":
        remedy = (
            "A single linear layer is a classifier's: add --objective cross_entropy, or name what it was trained with."
        )
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in foreign.part(role).items()) or "nothing"
    return EffaceError(
        f"The {role} in {foreign.path} is not one that the objective '{objective}' can have here.",
        f"It has: {shapes}. {table}",
        remedy,
    )


def _describe_head(objective: str) -> str:
    if objective == "cross_entropy":
        return "linear layer or MLP over the classes of the data"
    if objective == "clip":
        return "projection without bias, and CLIP's text tower,"
    return "projector of linear layers, BatchNorm and activations"


def _require_finite(foreign: ForeignCheckpoint) -> None:
    state = foreign.container.state
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EffaceError(
            f"The weights in {foreign.path} are not all finite numbers.",
            f"NaN or infinite in {len(broken)} tensors: {', '.join(broken[:MAX_LISTED_NAMES])}.",
            "Go back to a checkpoint from before the training diverged.",
        )
