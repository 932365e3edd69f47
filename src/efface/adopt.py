"""Adopt a foreign checkpoint: its weights into a Model, and an unlearned Model's weights back into its layout.

Nothing is loaded by halves: every tensor of the backbone and of the projector has its place in the network, or an
error shows what does not fit. On the way back every tensor of the file is decided about, and each decision is noted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface import config
from efface.architecture import Guess, text_tower
from efface.errors import EffaceError
from efface.foreign import Foreign, copies
from efface.layouts import Place, Role
from efface.model import Model, frozen_statistics
from efface.objectives import objective_class
from efface.objectives.protocol import Layer
from efface.types import Batch

Tensors = dict[str, Tensor]
COUNTER = "num_batches_tracked"
"""Of BatchNorm; files from before it existed lack it."""
COARSE = (torch.float16, torch.bfloat16)
SHOWN = 6
"""Names listed of each kind that does not fit."""


@dataclass(frozen=True)
class Adopted:
    """A model with foreign weights, and what to know about it."""

    model: Model
    notes: tuple[str, ...] = ()


def objective_of(foreign: Foreign, stated: str | None) -> str:
    """The objective that was stated, or that the layout tells; a single linear layer is a classifier's."""
    if stated or foreign.layout.objective:
        return str(stated or foreign.layout.objective)
    head = foreign.part(Role.HEAD)
    return "cross_entropy" if head.keys() <= {"weight", "bias"} and head else "simclr"


def described(foreign: Foreign, seen: Guess, objective: str) -> dict[str, Any]:
    """Settings of the recipe that the file itself shows: backbone, normalization, projector, length of the queue."""
    found: dict[str, Any] = {"objective": {"name": objective}}
    if seen.backbone is not None:
        found["backbone"] = config.dump(seen.backbone)
    if seen.mean is not None and seen.std is not None:
        found |= {"mean": list(seen.mean), "std": list(seen.std)}
    activation = Layer.GELU if foreign.layout.gelu else Layer.RELU
    shape = projector_of(foreign.part(Role.HEAD), activation)
    known = set(config.dump(objective_class(objective)()))
    if "text" in known:
        found["objective"] |= text_tower(foreign)
    if shape is None or "layers" not in known:
        return found
    layers, hidden, out = shape
    told: dict[str, Any] = {"dim": out, "layers": [str(layer.value) for layer in layers]}
    told |= {"hidden": hidden} if hidden else {}
    queue, predictor = foreign.part(Role.QUEUE).get("queue"), projector_of(foreign.part(Role.PREDICTOR), activation)
    told |= {"queue": len(keys_in(queue, out, foreign))} if queue is not None else {}
    told |= {"bottleneck": predictor[1]} if predictor is not None and predictor[1] else {}
    found["objective"] |= {name: value for name, value in told.items() if name in known}
    return found


def projector_of(
    head: Mapping[str, Tensor], activation: Layer = Layer.RELU
) -> tuple[tuple[Layer, ...], int | None, int] | None:
    """Layers, hidden width and output width of a projector, from its names and shapes; ``None`` if it is no such one.

    Between two numbered layers a missing number is an activation: it has no weights.
    """
    steps: dict[int, Tensors] = {}
    for name, value in head.items():
        found = re.fullmatch(r"(\d+)\.(\w+)", name)
        if found is None:
            return None
        steps.setdefault(int(found[1]), {})[found[2]] = value
    layers: list[Layer] = []
    widths: list[int] = []
    for number in range(max(steps, default=-1) + 1):
        inside = steps.get(number)
        if inside is None:
            layers.append(activation)
        elif "running_mean" in inside:
            layers.append(Layer.NORM if "weight" in inside else Layer.BARE)
        elif "weight" in inside and inside["weight"].dim() == 2:
            layers.append(Layer.LINEAR if "bias" in inside else Layer.PLAIN)
            widths.append(len(inside["weight"]))
        else:
            return None
    if not widths or len(set(widths[:-1])) > 1:
        return None
    return tuple(layers), (widths[0] if len(widths) > 1 else None), widths[-1]


def adopt(foreign: Foreign, model: Model, objective: str, *, fresh_head: bool = False) -> Adopted:
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
    if model.twin is not None:
        notes += _adopt_twin(model, foreign)
    if model.queue is not None:
        notes += _adopt_queue(model, foreign)
    return Adopted(model, tuple(notes))


def adopt_backbone(foreign: Foreign, model: Model) -> Model:
    """Put the file's backbone alone into a fresh model; the head stays untrained."""
    _finite(foreign)
    model.backbone.load_state_dict(_fitted(model.backbone, foreign, Role.BACKBONE), strict=False)
    return model


def _scale(model: Model, foreign: Foreign) -> Tensors:
    theirs = foreign.part(Role.SCALE).get("logit_scale")
    if theirs is None or theirs.numel() != 1 or model.scale is None:
        raise EffaceError(f"{foreign.path} has no single logit scale.", "CLIP's loss has one for all pairs.")
    return {"scale": theirs.reshape(()).to(model.scale.dtype)}


def _adopt_twin(model: Model, foreign: Foreign) -> list[str]:
    model.add_twin()
    theirs, own = foreign.part(Role.TWIN), model.get_submodule("twin").state_dict()
    if any(name not in theirs or theirs[name].shape != own[name].shape for name in own if not name.endswith(COUNTER)):
        return ["the file has no whole momentum twin: it starts as a copy of the trained network"]
    there = {name: theirs[name].to(value.dtype) for name, value in own.items() if name in theirs}
    model.get_submodule("twin").load_state_dict(own | there)
    return []


def _adopt_queue(model: Model, foreign: Foreign) -> list[str]:
    theirs, own = foreign.part(Role.QUEUE).get("queue"), model.queue
    keys = None if theirs is None or own is None else keys_in(theirs, own.shape[1], foreign)
    if keys is None or own is None or keys.shape != own.shape:
        return ["the file has no queue that fits: it starts with random directions"]
    model.queue = keys.to(own.dtype).contiguous().clone()
    return []


def keys_in(queue: Tensor, dim: int, foreign: Foreign) -> Tensor:
    """A foreign queue as rows of keys, [K, dim]: most keep [dim, K], solo-learn one for each view [2, dim, K]."""
    first = queue[0] if queue.dim() == 3 else queue
    return first if _in_rows(first, dim, foreign) else first.T


def _in_rows(queue: Tensor, dim: int, foreign: Foreign) -> bool:
    return foreign.layout.name == "efface" or (queue.shape[0] != dim and queue.shape[1] == dim)


def _fitted(module: nn.Module, foreign: Foreign, role: Role, objective: str = "") -> Tensors:
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
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            table.append(f"{kind}: {len(names)}{': ' if names else ''}{'; '.join(names[:SHOWN])}{more}.")
        raise _misfit(foreign, role, objective, "\n".join(table))
    coded = [name for name in both if own[name].is_floating_point() and not theirs[name].is_floating_point()]
    if coded:
        raise EffaceError(
            f"The {role} in {foreign.path} is quantized.",
            f"'{coded[0]}' is {theirs[coded[0]].dtype}.",
            "Bring the checkpoint from before quantization.",
        )
    return {name: theirs[name].to(own[name].dtype) for name in both}


def _misfit(foreign: Foreign, role: Role, objective: str, table: str) -> EffaceError:
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


def _finite(foreign: Foreign) -> None:
    state = foreign.container.state
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EffaceError(
            f"The weights in {foreign.path} are not all finite numbers.",
            f"NaN or infinite in {len(broken)} tensors: {', '.join(broken[:SHOWN])}.",
            "Go back to a checkpoint from before the training diverged.",
        )


# ---- the way back ----


@torch.no_grad()
def hand_back(
    foreign: Foreign, model: Model, retain: Iterable[Batch], generator: torch.Generator, folder: Path
) -> dict[str, str]:
    """Write an unlearned model into ``folder`` in the file's own layout and container.

    What was done with every part, and with every entry that is no weights, comes back: ``foreign.NAME`` to action.
    """
    back = _Back(foreign, model, generator)
    fresh: dict[Place, Tensor] = {}
    for name, place in foreign.table.items():
        old = foreign.container.state[name]
        value = back.decide(place, old, retain)
        if value is not None:
            fresh[place] = value.detach().cpu().to(old.dtype)
    notes = {f"foreign.{part}": "; ".join(done) for part, done in back.said().items()}
    coarse = {str(value.dtype).removeprefix("torch.") for value in fresh.values() if value.dtype in COARSE}
    if coarse:
        notes["foreign.precision"] = f"rounded to {', '.join(sorted(coarse))}, as the file has it"
    notes |= {f"foreign.{name}": fate for name, fate in foreign.write(folder, fresh, cleaned=True).items()}
    others = copies(foreign.container)
    return notes | ({"foreign.copies": f"not touched: {', '.join(others)}"} if others else {})


class _Back:
    """One decision for each tensor of a file, and the tally of them."""

    def __init__(self, foreign: Foreign, model: Model, generator: torch.Generator) -> None:
        self.foreign, self.model, self.generator = foreign, model, generator
        online = {
            **{f"backbone.{name}": value for name, value in model.backbone.state_dict().items()},
            **{f"head.{name}": value for name, value in model.head.state_dict().items()},
        }
        if model.text is not None:
            online |= {f"text.{name}": value for name, value in model.text.network.state_dict().items()}
        self.online: Tensors = online
        self.twin = online if model.twin is None else dict(model.twin.state_dict())
        self.predictor: Tensors = {} if model.predictor is None else dict(model.predictor.state_dict())
        self.done: dict[str, Counter[str]] = {}
        self.keys: Tensor | None = model.queue

    def said(self) -> dict[str, list[str]]:
        """For each part the actions, with the number of tensors each was done to."""
        return {part: [f"{action} ({n} tensors)" for action, n in done.items()] for part, done in self.done.items()}

    def note(self, place: Place, action: str) -> None:
        self.done.setdefault(str(place.role), Counter())[action] += 1

    def decide(self, place: Place, old: Tensor, retain: Iterable[Batch]) -> Tensor | None:
        """The new tensor of a place that holds ``old``; ``None``: it stays as it is."""
        name = place.name
        online = dict.fromkeys((Role.BACKBONE, Role.HEAD, Role.TEXT), self.online)
        trained = (online | {Role.TWIN: self.twin}).get(place.role, {})
        own = name if place.role is Role.TWIN else f"{place.role}.{name}"
        source = self.predictor.get(name) if place.role is Role.PREDICTOR else trained.get(own)
        if source is not None and source.shape == old.shape:
            copied = place.role is Role.TWIN and self.model.twin is None
            self.note(place, "copied from the unlearned network" if copied else "unlearned")
            return source
        if place.role is Role.SCALE and self.model.scale is not None:
            self.note(place, "unlearned")
            return self.model.scale.reshape(old.shape)
        if place.role is Role.QUEUE:
            return self._queue(place, old, retain)
        if place.role is Role.BUFFERS:
            pointer = name.endswith("ptr")
            self.note(place, "set to zero" if pointer else "kept: a constant")
            return torch.zeros_like(old) if pointer else None
        if not old.is_floating_point() or old.dim() == 0 or name.endswith(COUNTER):
            self.note(place, "kept: a counter or a single number")
            return None
        self.note(place, "started afresh")
        return afresh(name, old, self.generator, directions=place.role is Role.PROTOTYPES)

    def _queue(self, place: Place, old: Tensor, retain: Iterable[Batch]) -> Tensor:
        if not old.is_floating_point():
            self.note(place, "emptied")
            return torch.full_like(old, -1)
        if place.name == "queue" and self.keys is None:
            self.keys = self._embed(retain, max(old.shape[-2:]))
        keys = self.keys
        if place.name == "queue" and keys is not None and keys.shape[1] in old.shape[-2:]:
            inner = old[0] if old.dim() == 3 else old
            rows = _in_rows(inner, keys.shape[1], self.foreign)
            count = inner.shape[0] if rows else inner.shape[1]
            tiled = keys.repeat(math.ceil(count / len(keys)), 1)[:count]
            self.note(place, "refilled with keys of retained examples")
            return (tiled if rows else tiled.T).expand_as(old).contiguous()
        self.note(place, "replaced by random directions")
        return F.normalize(torch.randn(old.shape, generator=self.generator), dim=-1 if old.dim() == 2 else -2)

    def _embed(self, retain: Iterable[Batch], count: int) -> Tensor | None:
        """Normalized projections of retained examples, at most ``count``; ``None`` if there are none."""
        found: list[Tensor] = []
        with frozen_statistics(self.model):
            for batch in retain:
                found.append(F.normalize(self.model(batch.view(1)), dim=-1).cpu())
                if sum(map(len, found)) >= count:
                    break
        return torch.cat(found)[:count] if found else None


def afresh(name: str, old: Tensor, generator: torch.Generator, *, directions: bool = False) -> Tensor:
    """What a layer of this name and shape starts with; ``directions``: rows of length one."""
    last = name.rpartition(".")[2]
    if last in ("running_var", "weight_g") or (last == "weight" and old.dim() == 1):
        return torch.ones(old.shape)
    if last not in ("weight", "weight_v", "in_proj_weight") or old.dim() < 2:
        return torch.zeros(old.shape)
    if directions:
        return F.normalize(torch.randn(old.shape, generator=generator), dim=-1)
    bound = 1 / math.sqrt(old[0].numel())
    return (2 * torch.rand(old.shape, generator=generator) - 1) * bound
