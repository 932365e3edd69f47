"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from efface.errors import EffaceError


class OptimizerType(StrEnum):
    """Update rule of an optimizer."""

    SGD = "sgd"
    ADAMW = "adamw"


class Schedule(StrEnum):
    """How the learning rate moves over the steps, after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """An optimizer and its schedule, as numbers."""

    rule: OptimizerType = OptimizerType.SGD
    """Update rule."""
    lr: float = 0.06
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; first-moment decay of AdamW."""
    weight_decay: float = 5e-4
    """Weight decay (decoupled for AdamW); weights with one dimension or none are not decayed."""
    schedule: Schedule = Schedule.COSINE
    """Shape after the warm-up; cosine falls to zero at the last step."""
    warmup: float = 0.0
    """Fraction of the steps in which the rate rises linearly from zero."""
    clip: float | None = None
    """Largest L2 norm of the whole gradient; ``None``: no clipping."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0) or not 0 <= self.warmup < 1:
            raise EffaceError(
                f"A learning rate of {self.lr:g} with a warm-up of {self.warmup:g} cannot train.",
                "The rate must be positive and finite; the warm-up is a fraction of the steps, in [0, 1).",
            )

    def build(self, parameters: nn.Module | Iterable[nn.Parameter], steps: int) -> ScheduledOptimizer:
        """The optimizer over a module's trainable parameters, scheduled for ``steps`` updates."""
        owned = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        owned = [parameter for parameter in owned if parameter.requires_grad]
        groups = [
            {"params": [p for p in owned if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in owned if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.rule is OptimizerType.SGD:
            inner: torch.optim.Optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            inner = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        return ScheduledOptimizer(self, inner, owned, steps)

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak rate used for update number ``step`` (from 0) of ``steps``."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, steps - rising))))


class ScheduledOptimizer:
    """A torch optimizer that knows its own schedule and clipping."""

    def __init__(self, optim: Optim, inner: torch.optim.Optimizer, owned: Sequence[nn.Parameter], steps: int) -> None:
        self.optim, self.inner, self.owned, self.steps, self.taken = optim, inner, owned, steps, 0

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.optim.lr * self.optim.factor(self.taken, self.steps)

    def update(self) -> None:
        """Clip, update at the scheduled rate, forget the gradients."""
        if self.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.owned, self.optim.clip)
        for group in self.inner.param_groups:
            group["lr"] = self.lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.taken += 1

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on exactly from here."""
        return {"inner": self.inner.state_dict(), "taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved :meth:`state`."""
        self.inner.load_state_dict(state["inner"])
        self.taken = state["taken"]
