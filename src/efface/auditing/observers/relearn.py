"""Relearning: train a copy of a model on, and look every few steps whether what was forgotten comes back.

On R only, nothing about F is taught: if F stands out again, it was hidden and not removed. On F only, an encoder
that never saw F learns it as well, only slower: it is the difference to the oracle that tells. What is measured of
the looks is in :mod:`efface.auditing.audits.relearn`; here is only the training, on a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

import torch

from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings, observe_model
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run, train_steps
from efface.training.optim import Optim, Schedule

RelearnSnapshots = tuple[tuple[int, Observations], ...]
"""``(steps taken, what the copy shows then)``, from step 0."""


class RelearnPart(StrEnum):
    """What the copy is trained on."""

    RETAIN = "retain"
    FORGET = "forget"


@dataclass(frozen=True, kw_only=True)
class RelearnSettings:
    """How long a copy is trained on what, and how often it is looked at."""

    on: RelearnPart = RelearnPart.RETAIN
    """The examples it is trained on."""
    steps: int = 100
    """Optimizer steps."""
    every: int = 10
    """Steps between two looks."""
    batch_size: int | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.steps:
            raise EffaceError(
                f"{self.steps} steps cannot be looked at every {self.every}.",
                remedy="Ask for at least one step, and a look at least once: --steps 100 --every 10.",
            )


def relearn_model(
    checkpoint: Checkpoint,
    data: Data,
    split: Split,
    asked: RelearnSettings = RelearnSettings(),
    watch: ObservationSettings | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    saw: Callable[[int], None] = lambda step: None,
) -> RelearnSnapshots:
    """Train a copy by the objective it was trained with, and look at forget and holdout before and between.

    The checkpoint's own model is left bit-identical. Every model is shown the same batches in the same order: they
    depend on ``seed`` alone. ``saw`` is told the number of steps after each look.
    """
    watch = watch or ObservationSettings(gradient=False)
    where = device or torch.device("cpu")
    positions, views = getattr(split, asked.on.value), checkpoint.recipe.views
    if not len(positions):
        raise EffaceError(f"There is nothing to relearn on: the split has no {asked.on.value} examples.")
    model = copy.deepcopy(checkpoint.model).to(where)
    part = Subset(
        x=torch.from_numpy(data.x),
        ids=torch.as_tensor(positions, dtype=torch.int64),
        augment=views,
        y=None if data.y is None else torch.from_numpy(data.y),
        text=data.text,
        name=asked.on.value,
        device=where,
    )
    run = Run(seed=seed, device=where)
    optimizer = asked.optim.build(model, asked.steps)
    batches = part.cycle(min(asked.batch_size or checkpoint.recipe.batch_size, len(part)), run.rng("relearn"))

    def task(batch: Batch) -> LossTerms:
        outcome = model.objective.loss(model, batch)
        return LossTerms({"task": outcome.per_example.mean()}, outcome.carry)

    def look(step: int) -> tuple[int, Observations]:
        seen = observe_model(model, data, split, views, watch, parts=("forget", "holdout"))
        saw(step)
        return step, seen

    looks = [look(0)]
    for step in range(asked.every, asked.steps + 1, asked.every):
        train_steps(model, islice(batches, asked.every), task, optimizer, run, phase="relearn")
        looks.append(look(step))
    return tuple(looks)
