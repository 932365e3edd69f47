"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from efface.config import Settings
from efface.schema import Decay, NotNegative, Positive


class OptimizerType(StrEnum):
    """Update rule of an optimizer."""

    SGD = "sgd"
    ADAMW = "adamw"


class Schedule(StrEnum):
    """Shape of the learning rate over the steps, after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"


@dataclass(frozen=True, kw_only=True)
class Optim(Settings):
    """Settings of an optimizer and its learning-rate schedule.

    Example:
        >>> optimizer = Optim(lr=0.1, warmup=0.05).build(model, steps=1000)

    """

    rule: OptimizerType = OptimizerType.SGD
    """Update rule."""
    lr: Positive = 0.06
    """Peak learning rate."""
    momentum: Decay = 0.9
    """Momentum of SGD; first-moment decay of AdamW."""
    weight_decay: NotNegative = 5e-4
    """Weight decay (decoupled for AdamW); not applied to biases, norms and other weights with one dimension or none."""
    schedule: Schedule = Schedule.COSINE
    """Schedule after the warm-up; ``cosine`` falls to zero at the last step."""
    warmup: Decay = 0.0
    """Fraction of the steps in which the learning rate rises linearly from zero."""
    clip: Positive | None = None
    """Largest L2 norm of the gradient over all weights; ``None``: no clipping."""

    def build(self, parameters: nn.Module | Iterable[nn.Parameter], steps: int) -> ScheduledOptimizer:
        """Build the optimizer.

        Args:
            parameters: A module or its parameters; those without gradient are left out.
            steps: Number of updates that the schedule is for.

        """
        trained = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        trained = [parameter for parameter in trained if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.rule is OptimizerType.SGD:
            inner: torch.optim.Optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            fused = True if trained and all(weight.is_cuda for weight in trained) else None
            inner = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999), fused=fused)
        return ScheduledOptimizer(self, inner, trained, steps)

    def factor(self, step: int, steps: int) -> float:
        """Compute the learning rate of update number ``step`` (from 0) of ``steps``, as a fraction of the peak."""
        rise = self.warmup * steps
        if step < rise:
            return (step + 1) / (rise + 1)
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))


class ScheduledOptimizer:
    """A torch optimizer with its schedule and gradient clipping."""

    def __init__(
        self, optim: Optim, inner: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: int
    ) -> None:
        self.optim, self.inner, self.parameters, self.steps, self.taken = optim, inner, parameters, steps, 0

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.optim.lr * self.optim.factor(self.taken, self.steps)

    def update(self) -> None:
        """Clip the gradient, update the weights at the scheduled learning rate, and reset the gradient."""
        if self.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
        for group in self.inner.param_groups:
            group["lr"] = self.lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.taken += 1

    def state(self) -> dict[str, Any]:
        """Return what :meth:`restore` needs to continue exactly from here."""
        return {"inner": self.inner.state_dict(), "taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved :meth:`state`."""
        self.inner.load_state_dict(state["inner"])
        self.taken = state["taken"]
