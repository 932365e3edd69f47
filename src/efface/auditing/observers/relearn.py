"""Relearning: train a copy of a model further, and observe it every few steps.

Training on R teaches nothing about F: if F stands out again, it was hidden rather than removed. Training on F teaches F
to an encoder that never saw it as well, only more slowly, so the difference to the oracle is what counts. This module
only trains and observes the copy; :mod:`efface.auditing.audits.relearn` measures the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path

import torch

from efface.auditing.observations import Observations
from efface.auditing.observers.observe import observe_model
from efface.auditing.observers.settings import ObservationSettings
from efface.config import Settings
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.schema import Count
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.checkpoint import Checkpoint
from efface.training.lazy_images import images_of
from efface.training.loop import Run, train_steps
from efface.training.optim import Optim, Schedule
from efface.training.recipe import require_batch_size

RelearnSnapshots = tuple[tuple[int, Observations], ...]
"""``(steps taken, observations of the copy)``, from step 0."""


class RelearnPart(StrEnum):
    """The part of the split on which the copy is trained."""

    RETAIN = "retain"
    FORGET = "forget"


@dataclass(frozen=True, kw_only=True)
class RelearnSettings(Settings):
    """How a copy is trained further, and how often it is observed."""

    on: RelearnPart = RelearnPart.RETAIN
    """The examples to train on."""
    steps: Count = 100
    """Optimizer steps."""
    every: Count = 10
    """Steps between two observations."""
    batch_size: Count | None = None
    """Examples per step; by default as in the original's training."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, schedule=Schedule.CONSTANT))
    """Optimizer of the further training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.every <= self.steps:
            raise EffaceError(
                f"{self.steps} steps cannot be observed every {self.every}.",
                remedy="Set at least one step, and an interval of at most that many: --steps 100 --every 10.",
            )


def relearn_model(
    checkpoint: Checkpoint,
    data: Data,
    split: Split,
    settings: RelearnSettings = RelearnSettings(),
    observation: ObservationSettings | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    scratch: Path | None = None,
    on_observed: Callable[[int], None] = lambda step: None,
) -> RelearnSnapshots:
    """Train a copy of a model with its own objective, and observe forget and holdout at intervals.

    The checkpoint's model is left bit-identical. The batches and their order depend on ``seed`` only, so all models are
    trained on the same ones.

    Args:
        checkpoint: The model to copy, and its recipe.
        data: The data set.
        split: Its split.
        settings: Part, steps, interval and optimizer.
        observation: How to observe; by default without gradient norms.
        seed: Seed of the batches.
        device: Where to train; the CPU by default.
        scratch: A folder for large arrays; see :func:`~efface.auditing.observers.observe.observe_model`.
        on_observed: Called with the number of steps after each observation.

    Returns:
        ``(steps, observations)``, from step 0.

    Raises:
        EffaceError: If the split has no examples to train on.

    """
    observation = observation or ObservationSettings(gradient=False)
    device = device or torch.device("cpu")
    name = settings.on.value
    positions, views = getattr(split, name), checkpoint.recipe.views
    require_batch_size(checkpoint.recipe.objective, settings.batch_size, "relearn.batch_size")
    if not len(positions):
        raise EffaceError(f"There is nothing to relearn on: the split has no {name} examples.")
    model = copy.deepcopy(checkpoint.model).to(device)
    part = Subset(
        x=images_of(data),
        ids=torch.as_tensor(positions, dtype=torch.int64),
        augment=views,
        y=None if data.y is None else torch.from_numpy(data.y),
        text=data.text,
        name=name,
        device=device,
    )
    run = Run(seed=seed, device=device)
    optimizer = settings.optim.build(model, settings.steps)
    batches = part.cycle(min(settings.batch_size or checkpoint.recipe.batch_size, len(part)), run.rng("relearn"))

    def task(batch: Batch) -> LossTerms:
        outcome = model.objective.loss(model, batch)
        return LossTerms({"task": outcome.per_example.mean()}, outcome.carry)

    def observe(step: int) -> tuple[int, Observations]:
        observed = observe_model(model, data, split, views, observation, parts=("forget", "holdout"), scratch=scratch)
        on_observed(step)
        return step, observed

    snapshots = [observe(0)]
    for step in range(settings.every, settings.steps + 1, settings.every):
        train_steps(model, islice(batches, settings.every), task, optimizer, run, phase="relearn")
        snapshots.append(observe(step))
    return tuple(snapshots)
