"""Estimate: what a grid would cost, measured on a small share of it.

An original is timed by a few of its own optimizer steps. A method is run whole on a small share of the examples,
for one epoch where it has epochs, and what that took is scaled up by both; looking and judging likewise. So methods
without steps (closed forms) and methods with several phases are estimated in the same way. Times are of the processor:
what else the machine does is not in them. Not measured: stop rules that end earlier, and what processes at a time cost
each other.
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
from efface.auditing.observers.observe import ObservationSettings, select_positions
from efface.bench.grid import Grid
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
"""Batches of retained examples that a method is tried on; steps that training is timed by; seconds to start up."""


@dataclass(frozen=True)
class CostLine:
    """Some models of one kind: how many, and what each takes."""

    family: str
    forget: str
    what: str
    models: int
    seconds: float
    """Of one, with one thread."""
    megabytes: float
    """Of one, kept."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a grid."""

    name: str
    jobs: int
    cost_lines: tuple[CostLine, ...]
    unfit: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Of all of it, with so many processes."""
        return START_SECONDS + sum(line.models * line.seconds for line in self.cost_lines) / self.jobs

    @property
    def megabytes(self) -> float:
        """Of all of it on disk."""
        return sum(line.models * line.megabytes for line in self.cost_lines)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "models": sum(line.models for line in self.cost_lines),
            "seconds": self.seconds,
            "megabytes": self.megabytes,
            "lines": [asdict(line) for line in self.cost_lines],
            "not_applicable": list(self.unfit),
        }

    def lines(self) -> list[str]:
        """A table, what does not apply, and the sums."""
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
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(grid: Grid, home: Path, progress: Progress | None = None) -> Estimate:
    """Measure a little of every kind of model in the grid; nothing is written."""
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
    return Estimate(grid.name, grid.jobs, tuple(lines), unfit)


def _family(one: FamilyPlan, grid: Grid, progress: Progress) -> list[CostLine]:
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
        look, disk, judging = _looking(start, data, split, grid)
        fewer = -(-len(split.retain) // recipe.batch_size)
        oracles = selection * grid.oracles.selection + reporting * grid.oracles.reporting
        lines.append(CostLine(one.name, name, "what originals show", selection + reporting, look + judging, disk))
        retraining = training * fewer * recipe.epochs + look + judging
        lines.append(CostLine(one.name, name, "oracle", oracles, retraining, disk + kept))
        for entry in one.entries:
            progress.status(f"Measuring {one.name}, {name}, {entry.label}")
            compared = len(entry.settings) * selection if len(entry.settings) > 1 else 0
            models = compared + reporting * min(2, len(entry.settings))
            took = float(np.mean([_method(setting, start, data, split, grid) for setting in entry.settings]))
            lines.append(CostLine(one.name, name, entry.label, models, took + look + judging, disk + kept))
    return lines


def _training(start: Checkpoint, data: Data, split: Split, grid: Grid) -> float:
    """Seconds of one optimizer step of the recipe."""
    recipe, times = start.recipe, list[float]()
    few = split.train[: STEPS * recipe.batch_size]
    short = replace(recipe, epochs=max(1, -(-STEPS // max(1, -(-len(few) // recipe.batch_size)))))
    part = replace(split, forget=few[:0], retain=few)
    where: dict[str, Any] = {"device": grid.device, "bf16": grid.bf16}
    api.pretrain(data, part, recipe=short, log=lambda record: times.append(time.process_time()), **where)
    apart = np.diff(times)
    return float(np.median(apart)) if len(apart) else 1.0


def _method(setting: Mapping[str, Any], start: Checkpoint, data: Data, split: Split, grid: Grid) -> float:
    """Seconds of a method with this setting on the whole split, from a share of the examples and one epoch."""
    size = start.recipe.batch_size
    share = min(1.0, BATCHES * size / max(1, len(split.retain)))
    few = replace(split, **{part: _some(getattr(split, part), share) for part in ("forget", "retain", "valid")})
    short, epochs = _one_epoch(dict(setting), max(1, start.recipe.epochs // 20))
    method = config.parse_choice(methods.METHODS, json.loads(json.dumps(short)), "method", METHOD_CHOICES)
    began = time.process_time()
    try:
        api.unlearn(start, data, few, method, device=grid.device, bf16=grid.bf16)
    except EffaceError:  # an untrained model may well diverge: then the steps that were done are all that is known
        return epochs * (time.process_time() - began) / share
    return epochs * (time.process_time() - began) / share


def _some(positions: np.ndarray, share: float) -> np.ndarray:
    """A share of the positions, evenly from all of them, at least sixteen."""
    count = min(len(positions), max(16, round(share * len(positions))))
    return positions[np.linspace(0, len(positions) - 1, count).astype(int)] if len(positions) else positions


def _one_epoch(setting: dict[str, Any], by_default: int) -> tuple[dict[str, Any], int]:
    """The setting with one epoch, and how many it has; of a method around another, the inner one's."""
    if isinstance(setting.get("base"), Mapping):
        inner, epochs = _one_epoch(dict(setting["base"]), by_default)
        return {**setting, "base": inner}, epochs
    for name in ("epochs", "retain_epochs"):
        if name in setting:
            return {**setting, name: 1}, int(setting[name] or by_default)
    return setting, 1


def _looking(start: Checkpoint, data: Data, split: Split, grid: Grid) -> tuple[float, float, float]:
    """Seconds of looking at a model, megabytes of what it shows, seconds of judging it."""
    watch: ObservationSettings = grid.watch
    rows = select_positions(split, watch, data)
    whole = sum(len(positions) for positions in rows.values())
    few = replace(split, **{part: _some(getattr(split, part), 0.1) for part in SPLIT_PARTS})
    api.observe(start, data, few, watch, device=grid.device)  # what is loaded on first use is not counted
    began = time.process_time()
    seen = api.observe(start, data, few, watch, device=grid.device)
    took = time.process_time() - began
    counted = sum(seen.count(part) for part in rows)
    size = sum(array.nbytes for array in seen.arrays.values()) / 1e6
    scale = whole / max(1, counted)
    oracles = [seen] * grid.oracles.reporting
    api.judge_observations(seen, seen, oracles, criteria=grid.criteria)
    began = time.process_time()
    api.judge_observations(seen, seen, oracles, criteria=grid.criteria)
    return took * scale, size * scale, time.process_time() - began
