"""Export unlearned weights in the layout of the file that they came from.

Every tensor of the file is replaced, reset or kept, and each decision is noted, so that nothing that remembers the
forgotten images is handed back by oversight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.errors import EffaceError
from efface.interop.averages import AveragedWeights
from efface.interop.checkpoint_file import ForeignCheckpoint, stores_keys_in_rows
from efface.interop.layouts import Role, TensorPlace
from efface.interop.layouts.transformers import TEXT_PREFIXES
from efface.interop.names import BATCH_COUNTER
from efface.interop.siblings import find_sibling_checkpoints
from efface.interop.split_norm import spread_splits
from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics

HALF_PRECISION = (torch.float16, torch.bfloat16)
AFRESH, COPIED = "started afresh", "copied from the unlearned network"
RANDOM_WORDS = ("weight", "weight_v", "in_proj_weight")
"""Last words of the tensors of a layer that start from random values."""
TRAINING_HEADS = ("head", "prototypes", "predictor")
"""Parts of a momentum encoder that only training uses."""
MAX_MODULES = 12
"""At most so many names of modules are listed in a note."""


@torch.no_grad()
def export_checkpoint(
    foreign: ForeignCheckpoint,
    model: Model,
    retain: Iterable[Batch],
    generator: torch.Generator,
    folder: Path,
    *,
    averaged: AveragedWeights | str = AveragedWeights.COPY,
) -> dict[str, str]:
    """Write an unlearned model in the layout and container of a foreign checkpoint.

    Args:
        foreign: The checkpoint that the model was made from; its file is not changed.
        model: The unlearned model.
        retain: Batches of retained examples. A queue is refilled with their keys.
        generator: Draws the values of the tensors that are reset.
        folder: An existing folder; the file keeps its name.
        averaged: What happens to the file's averaged copies of the network.

    Returns:
        What was done with every part, and with every entry that is not weights: ``foreign.NAME`` to action.

    """
    exporter = _TensorExporter(foreign, model, generator)
    left_out = find_left_out(foreign, model, AveragedWeights(averaged))
    changed: dict[TensorPlace, Tensor] = {}
    for name, place in foreign.table.items():
        if place in left_out:
            exporter.note(place, left_out[place], named=True)
        elif place not in foreign.layout.copies:
            _change(
                changed,
                place,
                foreign.container.state[name],
                exporter.decide(place, foreign.container.state[name], retain),
            )
    for name, place in foreign.table.items():
        if place in foreign.layout.copies and place not in left_out:
            exporter.note(place, COPIED)
            _change(changed, place, foreign.container.state[name], changed.get(foreign.layout.copies[place]))
    notes = {f"foreign.{part}": "; ".join(actions) for part, actions in exporter.summary().items()}
    halved = {str(value.dtype).removeprefix("torch.") for value in changed.values() if value.dtype in HALF_PRECISION}
    if halved:
        notes["foreign.precision"] = f"rounded to {', '.join(sorted(halved))}, as the file has it"
    dropped = foreign.write(folder, changed, cleaned=True, without=left_out)
    notes |= {f"foreign.{name}": action for name, action in dropped.items()}
    siblings = find_sibling_checkpoints(foreign.container)
    return notes | ({"foreign.copies": f"not touched: {', '.join(siblings)}"} if siblings else {})


def _change(changed: dict[TensorPlace, Tensor], place: TensorPlace, old: Tensor, value: Tensor | None) -> None:
    if value is not None:
        changed[place] = value.detach().cpu().to(old.dtype)


def plan_export(foreign: ForeignCheckpoint, model: Model, averaged: AveragedWeights | str) -> tuple[str, ...]:
    """Say before any work is done which parts of a file will not come back from the unlearned model.

    Args:
        foreign: The checkpoint.
        model: The model that was made from it.
        averaged: What is to happen to its averaged copies.

    Returns:
        A sentence for each such part.

    Raises:
        EffaceError: A part that is deployed would come back with random weights.

    """
    choice = AveragedWeights(averaged)
    text = [place.name for place in foreign.table.values() if _is_text(place)]
    if text and model.text is None:
        raise EffaceError(
            f"{foreign.path} has a text tower, and this objective trains none.",
            f"It could not be unlearned, and random weights would take its place: {_modules(text)}.",
            "Use --objective clip with captions, or bring the image tower alone.",
        )
    notes: list[str] = []
    left_out = find_left_out(foreign, model, choice)
    if foreign.layout.copies or (foreign.part(Role.MOMENTUM_ENCODER) and model.momentum_encoder is None):
        fate = {
            AveragedWeights.COPY: "becomes a copy of the unlearned network",
            AveragedWeights.START: "is what is unlearned; the trained weights become a copy of the result",
            AveragedWeights.DROP: "is left out of what is handed back",
        }[choice]
        others = [str(one) for one in AveragedWeights if one is not choice]
        notes.append(f"its averaged copy of the network {fate} (else: --set averaged={' or averaged='.join(others)})")
    exporter = _TensorExporter(foreign, model, torch.Generator().manual_seed(0))
    for name, place in foreign.table.items():
        if place not in left_out and place not in foreign.layout.copies and place.role is not Role.QUEUE:
            exporter.decide(place, foreign.container.state[name], ())
    if exporter.named.get(AFRESH):
        notes.append(f"trained parts that start afresh when it is handed back: {_modules(exporter.named[AFRESH])}")
    entries = [name for name, fate in foreign.container.entries().items() if fate.startswith("dropped: it is not made")]
    if entries:
        notes.append(
            f"entries that are left out when it is handed back, because they may hold anything: {', '.join(entries)}"
        )
    unknown = [place.name for place in left_out if place.role is not Role.MOMENTUM_ENCODER]
    if unknown:
        notes.append(
            f"parts that are left out when it is handed back, because nothing here has them: {_modules(unknown)}"
        )
    return tuple(notes)


def find_left_out(foreign: ForeignCheckpoint, model: Model, averaged: AveragedWeights) -> dict[TensorPlace, str]:
    """Return the places of the tensors that are not written back, with the reason.

    These are averaged copies where the user says so, and what would otherwise have random values under a name that may
    be deployed: averaged backbones without a counterpart, and modules and sections that the layout does not know.
    """
    state = model.state_dict()
    places = {place: foreign.container.state[name] for name, place in foreign.table.items()}
    found: dict[TensorPlace, str] = {}
    groups = {
        _group(place) for place, value in places.items() if place in foreign.unknown and _is_random(place.name, value)
    }
    for place in places:
        if place.role is Role.MOMENTUM_ENCODER and averaged is AveragedWeights.DROP:
            found[place] = "left out, as asked (averaged=drop)"
        elif place in foreign.unknown and _group(place) in groups:
            found[place] = "left out: no part of the unlearned model, and it may remember"
        elif place.role is Role.MOMENTUM_ENCODER and place not in foreign.layout.copies:
            part, _, own = place.name.partition(".")
            missing = part not in TRAINING_HEADS and f"{part}.{own}" not in state
            if missing and places[place].is_floating_point():
                found[place] = "left out: the unlearned network has no such tensor"
    return found


def _group(place: TensorPlace) -> str:
    """Return the section of a name, or the module at the top."""
    section, slash, rest = place.name.partition("/")
    return section + slash if slash else section.partition(".")[0] + rest


def _is_random(name: str, value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() > 1 and name.rpartition(".")[2].rpartition("/")[2] in RANDOM_WORDS


def _is_text(place: TensorPlace) -> bool:
    return place.role in (Role.TEXT, Role.SCALE) or (place.role is Role.EXTRAS and place.name.startswith(TEXT_PREFIXES))


def _modules(names: Iterable[str]) -> str:
    """List the modules at the top of some names."""
    found = list(dict.fromkeys(name.partition(".")[0] for name in names))
    more = f" and {len(found) - MAX_MODULES} more" if len(found) > MAX_MODULES else ""
    return ", ".join(found[:MAX_MODULES]) + more


class _TensorExporter:
    """Decides for each tensor of a file what to write, and counts the decisions."""

    def __init__(self, foreign: ForeignCheckpoint, model: Model, generator: torch.Generator) -> None:
        self.foreign, self.model, self.generator = foreign, model, generator
        online = {
            **{f"backbone.{name}": value for name, value in model.backbone.state_dict().items()},
            **{f"head.{name}": value for name, value in model.head.state_dict().items()},
        }
        if model.text is not None:
            online |= {f"text.{name}": value for name, value in model.text.network.state_dict().items()}
        self.online: dict[str, Tensor] = online
        self.averaged = online if model.momentum_encoder is None else dict(model.momentum_encoder.state_dict())
        self.predictor: dict[str, Tensor] = {} if model.predictor is None else dict(model.predictor.state_dict())
        self.actions: dict[str, Counter[str]] = {}
        self.named: dict[str, list[str]] = {}
        self.keys: Tensor | None = model.queue

    def summary(self) -> dict[str, list[str]]:
        """List the actions for each part, with the number of tensors each was applied to."""
        return {
            part: [f"{action} ({n} tensors{self._names(part, action)})" for action, n in counts.items()]
            for part, counts in self.actions.items()
        }

    def _names(self, part: str, action: str) -> str:
        names = self.named.get(f"{part}:{action}")
        return f": {_modules(names)}" if names else ""

    def note(self, place: TensorPlace, action: str, *, named: bool = False) -> None:
        """Count an action; ``named`` also lists the modules that it was applied to."""
        self.actions.setdefault(str(place.role), Counter())[action] += 1
        if named:
            for key in (action, f"{place.role}:{action}"):
                self.named.setdefault(key, []).append(place.name or str(place.role))

    def decide(self, place: TensorPlace, old: Tensor, retain: Iterable[Batch]) -> Tensor | None:
        """Return the tensor that replaces ``old``; ``None`` keeps it."""
        if place.role is Role.BOOKKEEPING:
            self.note(place, "kept: a counter of a tool")
            return None
        unlearned = self._unlearned(place)
        if unlearned is not None:
            unlearned = spread_splits(place.name, unlearned, old.shape)
        if unlearned is not None and unlearned.shape == old.shape:
            copied = place.role is Role.MOMENTUM_ENCODER and self.model.momentum_encoder is None
            self.note(place, COPIED if copied else "unlearned")
            return unlearned
        if place.role is Role.SCALE and self.model.scale is not None:
            self.note(place, "unlearned")
            return self.model.scale.reshape(old.shape)
        if place.role is Role.QUEUE:
            return self._queue(place, old, retain)
        if place.role is Role.BUFFERS:
            pointer = place.name.endswith("ptr")
            self.note(place, "set to zero" if pointer else "kept: a constant")
            return torch.zeros_like(old) if pointer else None
        if not old.is_floating_point() or old.dim() == 0 or place.name.endswith(BATCH_COUNTER):
            self.note(place, "kept: a counter or a single number")
            return None
        if place.role in (Role.BACKBONE, Role.HEAD) or _is_text(place):
            raise EffaceError(
                f"'{place.name}' of the {place.role} in {self.foreign.path} cannot be written back.",
                f"The unlearned model has none of shape {tuple(old.shape)}; random values would take its place.",
                "Bring the file that the model was made from.",
            )
        self.note(place, AFRESH, named=True)
        return reinitialize_tensor(place.name, old, self.generator, directions=place.role is Role.PROTOTYPES)

    def _unlearned(self, place: TensorPlace) -> Tensor | None:
        """Return the unlearned model's tensor for a place, if it has one."""
        if place.role is Role.PREDICTOR:
            return self.predictor.get(place.name)
        if place.role is Role.MOMENTUM_ENCODER:
            return self.averaged.get(place.name)
        if place.role in (Role.BACKBONE, Role.HEAD, Role.TEXT):
            return self.online.get(f"{place.role}.{place.name}")
        return None

    def _queue(self, place: TensorPlace, old: Tensor, retain: Iterable[Batch]) -> Tensor:
        """Return the new values of a queue: keys of retained examples where possible, else random directions."""
        if not old.is_floating_point():
            self.note(place, "emptied")
            return torch.full_like(old, -1)
        if place.name == "queue" and self.keys is None:
            self.keys = self._embed(retain, max(old.shape[-2:]))
        keys = self.keys
        if place.name == "queue" and keys is not None and keys.shape[1] in old.shape[-2:]:
            inner = old[0] if old.dim() == 3 else old
            rows = stores_keys_in_rows(inner, keys.shape[1], self.foreign)
            count = inner.shape[0] if rows else inner.shape[1]
            tiled = keys.repeat(math.ceil(count / len(keys)), 1)[:count]
            self.note(place, "refilled with keys of retained examples")
            return (tiled if rows else tiled.T).expand_as(old).contiguous()
        self.note(place, "replaced by random directions")
        return F.normalize(torch.randn(old.shape, generator=self.generator), dim=-1 if old.dim() == 2 else -2)

    def _embed(self, retain: Iterable[Batch], count: int) -> Tensor | None:
        """Compute at most ``count`` normalized projections of retained examples; ``None`` if there are none."""
        projections: list[Tensor] = []
        with frozen_statistics(self.model):
            for batch in retain:
                projections.append(F.normalize(self.model(batch.view(1)), dim=-1).cpu())
                if sum(map(len, projections)) >= count:
                    break
        return torch.cat(projections)[:count] if projections else None


def reinitialize_tensor(name: str, old: Tensor, generator: torch.Generator, *, directions: bool = False) -> Tensor:
    """Return the initial value of a layer's tensor, by its name and shape.

    Args:
        name: Name of the tensor; its last word tells what it is, such as ``weight`` or ``running_var``.
        old: The tensor to replace; only its shape is used.
        generator: Draws weights.
        directions: Whether the rows of a weight are drawn as unit vectors, as for prototypes.

    """
    last = name.rpartition(".")[2]
    if last in ("running_var", "weight_g") or (last == "weight" and old.dim() == 1):
        return torch.ones(old.shape)
    if last not in ("weight", "weight_v", "in_proj_weight") or old.dim() < 2:
        return torch.zeros(old.shape)
    if directions:
        return F.normalize(torch.randn(old.shape, generator=generator), dim=-1)
    bound = 1 / math.sqrt(old[0].numel())
    return (2 * torch.rand(old.shape, generator=generator) - 1) * bound
