"""What an unlearned model changed, part by part, against the original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efface.training.model import Model


@dataclass(frozen=True)
class WeightChange:
    """How far one part moved."""

    part: str
    """backbone, head, predictor, twin, queue, or the BatchNorm statistics of one of them."""
    numbers: int
    """How many numbers the part holds."""
    relative: float
    """L2 norm of the change, divided by the L2 norm of the original part."""
    largest: float
    """Largest absolute change of a single number."""
    note: str = ""
    """What was done with it, where it was purged."""


def measure_changes(original: Model, unlearned: Model, purged: dict[str, str] | None = None) -> list[WeightChange]:
    """A :class:`WeightChange` for every part that either model has, in the order backbone, head, ..."""
    before, after = _parts(original), _parts(unlearned)
    return [_change(part, before[part], after[part], (purged or {}).get(part, "")) for part in before if part in after]


def relative_change(before: Model, after: Model) -> float:
    """L2 norm of the change of all that is trained or tracked, divided by its L2 norm before; shapes must agree.

    Queues are left out: their content is other examples' embeddings, and not what the model is.
    """
    old, new = (
        torch.cat([value for part, value in _parts(model).items() if part != "queue"]) for model in (before, after)
    )
    size = float(old.norm())
    return float((new.to(old.device) - old).norm()) / size if size else 0.0


def _parts(model: Model) -> dict[str, Tensor]:
    groups: dict[str, list[Tensor]] = {}
    for name, value in model.state_dict().items():
        part = name.split(".")[0]
        if part in ("mean", "std") or name.endswith("num_batches_tracked"):
            continue
        if name.endswith(("running_mean", "running_var")):
            part += " BatchNorm statistics"
        groups.setdefault(part, []).append(value.detach().double().flatten())
    return {part: torch.cat(values) for part, values in groups.items()}


def _change(part: str, before: Tensor, after: Tensor, note: str) -> WeightChange:
    moved = after.to(before.device) - before
    size = float(before.norm())
    return WeightChange(
        part, before.numel(), float(moved.norm()) / size if size else 0.0, float(moved.abs().max()), note
    )
