"""Write unlearned weights back into a file of the layout that they came from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.interop.checkpoint_file import ForeignCheckpoint, find_sibling_checkpoints
from efface.interop.import_weights import COUNTER, HALF_PRECISION, Tensors, _in_rows
from efface.interop.layouts import Role, TensorPlace
from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics


@torch.no_grad()
def export_checkpoint(
    foreign: ForeignCheckpoint, model: Model, retain: Iterable[Batch], generator: torch.Generator, folder: Path
) -> dict[str, str]:
    """Write an unlearned model into ``folder`` in the file's own layout and container.

    What was done with every part, and with every entry that is no weights, comes back: ``foreign.NAME`` to action.
    """
    back = _TensorExporter(foreign, model, generator)
    fresh: dict[TensorPlace, Tensor] = {}
    for name, place in foreign.table.items():
        old = foreign.container.state[name]
        value = back.decide(place, old, retain)
        if value is not None:
            fresh[place] = value.detach().cpu().to(old.dtype)
    notes = {f"foreign.{part}": "; ".join(done) for part, done in back.said().items()}
    coarse = {str(value.dtype).removeprefix("torch.") for value in fresh.values() if value.dtype in HALF_PRECISION}
    if coarse:
        notes["foreign.precision"] = f"rounded to {', '.join(sorted(coarse))}, as the file has it"
    notes |= {f"foreign.{name}": fate for name, fate in foreign.write(folder, fresh, cleaned=True).items()}
    others = find_sibling_checkpoints(foreign.container)
    return notes | ({"foreign.copies": f"not touched: {', '.join(others)}"} if others else {})


class _TensorExporter:
    """One decision for each tensor of a file, and the tally of them."""

    def __init__(self, foreign: ForeignCheckpoint, model: Model, generator: torch.Generator) -> None:
        self.foreign, self.model, self.generator = foreign, model, generator
        online = {
            **{f"backbone.{name}": value for name, value in model.backbone.state_dict().items()},
            **{f"head.{name}": value for name, value in model.head.state_dict().items()},
        }
        if model.text is not None:
            online |= {f"text.{name}": value for name, value in model.text.network.state_dict().items()}
        self.online: Tensors = online
        self.averaged = online if model.momentum_encoder is None else dict(model.momentum_encoder.state_dict())
        self.predictor: Tensors = {} if model.predictor is None else dict(model.predictor.state_dict())
        self.done: dict[str, Counter[str]] = {}
        self.keys: Tensor | None = model.queue

    def said(self) -> dict[str, list[str]]:
        """For each part the actions, with the number of tensors each was done to."""
        return {part: [f"{action} ({n} tensors)" for action, n in done.items()] for part, done in self.done.items()}

    def note(self, place: TensorPlace, action: str) -> None:
        self.done.setdefault(str(place.role), Counter())[action] += 1

    def decide(self, place: TensorPlace, old: Tensor, retain: Iterable[Batch]) -> Tensor | None:
        """The new tensor of a place that holds ``old``; ``None``: it stays as it is."""
        name = place.name
        online = dict.fromkeys((Role.BACKBONE, Role.HEAD, Role.TEXT), self.online)
        trained = (online | {Role.TWIN: self.averaged}).get(place.role, {})
        own = name if place.role is Role.TWIN else f"{place.role}.{name}"
        source = self.predictor.get(name) if place.role is Role.PREDICTOR else trained.get(own)
        if source is not None and source.shape == old.shape:
            copied = place.role is Role.TWIN and self.model.momentum_encoder is None
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
        return reinitialize_tensor(name, old, self.generator, directions=place.role is Role.PROTOTYPES)

    def _queue(self, place: TensorPlace, old: Tensor, retain: Iterable[Batch]) -> Tensor:
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


def reinitialize_tensor(name: str, old: Tensor, generator: torch.Generator, *, directions: bool = False) -> Tensor:
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
