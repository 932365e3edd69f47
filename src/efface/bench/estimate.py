"""Estimate the cost of a grid from measurements on a small sample.

The training of an original is timed with a few optimizer steps. A method is run completely on a small share of the
examples, for a single epoch if it has epochs, and its time is scaled up by both factors; observing and judging are
estimated in the same way. This also works for methods without steps (closed forms) and with several phases. Times are
CPU times of the process, so other load on the machine does not count. Not included: early stopping, and the slowdown
of parallel processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface import api, config
from efface.auditing.observers.observe import select_positions
from efface.auditing.observers.settings import ObservationSettings
from efface.bench.grid import LOCAL_JOBS, Grid
from efface.bench.plan import METHOD_CHOICES, FamilyPlan, load_divided, plan_bench
from efface.data.dataset import Data
from efface.data.split import SPLIT_PARTS, Split, select_forget_set
from efface.errors import EffaceError
from efface.runs.run import Progress
from efface.training.checkpoint import Checkpoint
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe
from efface.unlearning import methods

BATCHES, STEPS, START_SECONDS = 3, 6, 3.0
"""Batches of retained examples in the sample of a method; timed training steps; seconds to start up."""


@dataclass(frozen=True)
class CostLine:
    """The number of models of one kind, and the cost of each."""

    family: str
    forget: str
    what: str
    models: int
    seconds: float
    """Time of one model with one thread."""
    megabytes: float
    """Disk space of one model."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a grid."""

    name: str
    jobs: int
    cost_lines: tuple[CostLine, ...]
    unfit: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Time of the whole grid with ``jobs`` processes."""
        return START_SECONDS + sum(line.models * line.seconds for line in self.cost_lines) / self.jobs

    @property
    def megabytes(self) -> float:
        """Disk space of the whole grid."""
        return sum(line.models * line.megabytes for line in self.cost_lines)

    def as_dict(self) -> dict[str, Any]:
        """The estimate as a JSON-serializable dict."""
        return {
            "name": self.name,
            "models": sum(line.models for line in self.cost_lines),
            "seconds": self.seconds,
            "megabytes": self.megabytes,
            "lines": [asdict(line) for line in self.cost_lines],
            "not_applicable": list(self.unfit),
        }

    def lines(self) -> list[str]:
        """The estimate as text: a table, methods that do not apply, and the totals."""
        head = ("family", "forget set", "model", "how many", "each", "disk")
        table = [head] + [
            (one.family, one.forget, one.what, str(one.models), format_clock(one.seconds), f"{one.megabytes:.1f} MB")
            for one in self.cost_lines
        ]
        widths = [max(len(row[column]) for row in table) for column in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        models = sum(line.models for line in self.cost_lines)
        total = f"{models} models: about {format_clock(self.seconds)} with {self.jobs} processes on as many free cores"
        return [*text, *(f"not applicable: {one}" for one in self.unfit), f"{total}, {self.megabytes:.0f} MB."]


def format_clock(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(grid: Grid, home: Path, progress: Progress | None = None) -> Estimate:
    """Estimate the cost of a grid by measuring every kind of model on a small sample. Nothing is written.

    Args:
        grid: The grid.
        home: Folder of the bench; not used.
        progress: Reports what is being measured.

    """
    progress, before = progress or Progress(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        planned = plan_bench(grid)
        lines = [line for one in planned.families.values() for line in _family(one, grid, progress)]
    finally:
        torch.set_num_threads(before)
    unfit = tuple(
        f"{one.family}, {one.label or one.forget}: {one.reason}"
        for family in planned.families.values()
        for one in family.unfit
    )
    return Estimate(grid.name, grid.jobs or LOCAL_JOBS, tuple(lines), unfit)


def _family(one: FamilyPlan, grid: Grid, progress: Progress) -> list[CostLine]:
    """The cost lines of one family."""
    seed = grid.seeds.reporting[0]
    data, base = load_divided(one, seed)
    recipe: Recipe = config.build(Recipe, one.recipe, CHOICES, "recipe.")
    start = Checkpoint(recipe.start(0), recipe)
    selection, reporting = len(grid.seeds.selection), len(grid.seeds.reporting)
    size = sum(value.numel() * value.element_size() for value in start.model.state_dict().values()) / 1e6
    progress.say(f"Measuring {one.name}")
    training = _training(start, data, base, grid)
    steps = -(-len(base.train) // recipe.batch_size)
    lines = [CostLine(one.name, "", "original", selection + reporting, training * steps * recipe.epochs, size)]
    kept = size if grid.keep_weights else 0.0
    for name, selector in one.forget.items():
        split = select_forget_set(base, data, selector, seed)
        observing, disk, judging = _observing(start, data, split, grid)
        fewer = -(-len(split.retain) // recipe.batch_size)
        oracles = selection * grid.oracles.selection + reporting * grid.oracles.reporting
        lines.append(
            CostLine(one.name, name, "observations of originals", selection + reporting, observing + judging, disk)
        )
        retraining = training * fewer * recipe.epochs + observing + judging
        lines.append(CostLine(one.name, name, "oracle", oracles, retraining, disk + kept))
        for entry in one.entries:
            progress.status(f"Measuring {one.name}, {name}, {entry.label}")
            compared = len(entry.settings) * selection if len(entry.settings) > 1 else 0
            models = compared + reporting * min(2, len(entry.settings))
            took = float(np.mean([_method(setting, start, data, split, grid) for setting in entry.settings]))
            lines.append(CostLine(one.name, name, entry.label, models, took + observing + judging, disk + kept))
    return lines


def _training(start: Checkpoint, data: Data, split: Split, grid: Grid) -> float:
    """Seconds of one optimizer step with the recipe."""
    recipe, times = start.recipe, list[float]()
    few = split.train[: STEPS * recipe.batch_size]
    short = replace(recipe, epochs=max(1, -(-STEPS // max(1, -(-len(few) // recipe.batch_size)))))
    part = replace(split, forget=few[:0], retain=few)
    where: dict[str, Any] = {"device": grid.device, "bf16": grid.bf16}
    api.pretrain(data, part, recipe=short, log=lambda record: times.append(time.process_time()), **where)
    intervals = np.diff(times)
    return float(np.median(intervals)) if len(intervals) else 1.0


def _method(setting: Mapping[str, Any], start: Checkpoint, data: Data, split: Split, grid: Grid) -> float:
    """Seconds of a method with this setting on the whole split, extrapolated from a sample and one epoch."""
    size = start.recipe.batch_size
    share = min(1.0, BATCHES * size / max(1, len(split.retain)))
    few = replace(split, **{part: _some(getattr(split, part), share) for part in ("forget", "retain", "valid")})
    short, epochs = _one_epoch(dict(setting), max(1, start.recipe.epochs // 20))
    method = config.parse_choice(methods.METHODS, json.loads(json.dumps(short)), "method", METHOD_CHOICES)
    began = time.process_time()
    try:
        api.unlearn(start, data, few, method, device=grid.device, bf16=grid.bf16)
    except EffaceError:  # an untrained model may diverge; the steps until then are the only measurement
        return epochs * (time.process_time() - began) / share
    return epochs * (time.process_time() - began) / share


def _some(positions: np.ndarray, share: float) -> np.ndarray:
    """A share of the positions, evenly spaced, at least sixteen."""
    count = min(len(positions), max(16, round(share * len(positions))))
    return positions[np.linspace(0, len(positions) - 1, count).astype(int)] if len(positions) else positions


def _one_epoch(setting: dict[str, Any], by_default: int) -> tuple[dict[str, Any], int]:
    """The setting with one epoch, and its number of epochs. A method that wraps another uses the inner one's epochs."""
    if isinstance(setting.get("base"), Mapping):
        inner, epochs = _one_epoch(dict(setting["base"]), by_default)
        return {**setting, "base": inner}, epochs
    for name in ("epochs", "retain_epochs"):
        if name in setting:
            return {**setting, name: 1}, int(setting[name] or by_default)
    return setting, 1


def _observing(start: Checkpoint, data: Data, split: Split, grid: Grid) -> tuple[float, float, float]:
    """Seconds to observe a model, megabytes of its observations, seconds to judge it."""
    watch: ObservationSettings = grid.watch
    rows = select_positions(split, watch, data)
    total = sum(len(positions) for positions in rows.values())
    few = replace(split, **{part: _some(getattr(split, part), 0.1) for part in SPLIT_PARTS})
    api.observe(start, data, few, watch, device=grid.device)  # warm-up, not timed
    began = time.process_time()
    seen = api.observe(start, data, few, watch, device=grid.device)
    took = time.process_time() - began
    sampled = sum(seen.count(part) for part in rows)
    size = sum(array.nbytes for array in seen.arrays.values()) / 1e6
    scale = total / max(1, sampled)
    oracles = [seen] * grid.oracles.reporting
    api.judge_observations(seen, seen, oracles, criteria=grid.criteria)
    began = time.process_time()
    api.judge_observations(seen, seen, oracles, criteria=grid.criteria)
    return took * scale, size * scale, time.process_time() - began
