"""Measure how much the weights of an unlearned model differ from the original, part by part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efface.training.model import Model


@dataclass(frozen=True)
class WeightChange:
    """Change of one part of a model."""

    part: str
    """backbone, head, predictor, twin (the momentum encoder), queue, or the BatchNorm statistics of one of them."""
    numbers: int
    """Number of values in the part."""
    relative: float
    """L2 norm of the change, divided by the L2 norm of the original part."""
    largest: float
    """Largest absolute change of a single value."""
    note: str = ""
    """How the part was purged, if it was."""


def measure_changes(original: Model, unlearned: Model, purged: dict[str, str] | None = None) -> list[WeightChange]:
    """Return a :class:`WeightChange` for each part that both models have, in the order backbone, head, ..."""
    before, after = _parts(original), _parts(unlearned)
    return [_change(part, before[part], after[part], (purged or {}).get(part, "")) for part in before if part in after]


def relative_change(before: Model, after: Model) -> float:
    """Return the L2 norm of the change of all weights and tracked statistics, relative to their norm before.

    The shapes of both models must agree. Queues are left out, because they hold embeddings of other examples.
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
