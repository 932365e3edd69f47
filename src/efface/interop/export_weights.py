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

from efface.interop.checkpoint_file import (
    BATCH_COUNTER,
    ForeignCheckpoint,
    find_sibling_checkpoints,
    stores_keys_in_rows,
)
from efface.interop.layouts import Role, TensorPlace
from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics

HALF_PRECISION = (torch.float16, torch.bfloat16)


@torch.no_grad()
def export_checkpoint(
    foreign: ForeignCheckpoint, model: Model, retain: Iterable[Batch], generator: torch.Generator, folder: Path
) -> dict[str, str]:
    """Write an unlearned model in the layout and container of a foreign checkpoint.

    Args:
        foreign: The checkpoint that the model was made from; its file is not changed.
        model: The unlearned model.
        retain: Batches of retained examples. A queue is refilled with their keys.
        generator: Draws the values of the tensors that are reset.
        folder: An existing folder; the file keeps its name.

    Returns:
        What was done with every part, and with every entry that is not weights: ``foreign.NAME`` to action.

    """
    exporter = _TensorExporter(foreign, model, generator)
    changed: dict[TensorPlace, Tensor] = {}
    for name, place in foreign.table.items():
        old = foreign.container.state[name]
        value = exporter.decide(place, old, retain)
        if value is not None:
            changed[place] = value.detach().cpu().to(old.dtype)
    notes = {f"foreign.{part}": "; ".join(actions) for part, actions in exporter.summary().items()}
    halved = {str(value.dtype).removeprefix("torch.") for value in changed.values() if value.dtype in HALF_PRECISION}
    if halved:
        notes["foreign.precision"] = f"rounded to {', '.join(sorted(halved))}, as the file has it"
    notes |= {f"foreign.{name}": action for name, action in foreign.write(folder, changed, cleaned=True).items()}
    siblings = find_sibling_checkpoints(foreign.container)
    return notes | ({"foreign.copies": f"not touched: {', '.join(siblings)}"} if siblings else {})


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
        self.keys: Tensor | None = model.queue

    def summary(self) -> dict[str, list[str]]:
        """List the actions for each part, with the number of tensors each was applied to."""
        return {
            part: [f"{action} ({n} tensors)" for action, n in counts.items()] for part, counts in self.actions.items()
        }

    def note(self, place: TensorPlace, action: str) -> None:
        self.actions.setdefault(str(place.role), Counter())[action] += 1

    def decide(self, place: TensorPlace, old: Tensor, retain: Iterable[Batch]) -> Tensor | None:
        """Return the tensor that replaces ``old``; ``None`` keeps it."""
        unlearned = self._unlearned(place)
        if unlearned is not None and unlearned.shape == old.shape:
            copied = place.role is Role.MOMENTUM_ENCODER and self.model.momentum_encoder is None
            self.note(place, "copied from the unlearned network" if copied else "unlearned")
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
        self.note(place, "started afresh")
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
