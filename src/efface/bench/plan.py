"""Plan the tasks of a grid.

The request of a task contains everything that decides its result; a digest of the request names the folder of the
task. A world (:class:`Scenario`) is one combination of family, forget set and seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from efface import config
from efface._version import __version__
from efface.bench.grid import Grid, ModelFamily, list_settings
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.errors import EffaceError
from efface.reporting.record import json_digest
from efface.runs.run import Sizes, load_data
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import build_recipe
from efface.training.objectives import CHOICES
from efface.unlearning.inputs import require_fit
from efface.unlearning.methods import METHODS, Method

METHOD_CHOICES: config.Choices = {Method: METHODS}
DATA_SELECTORS = ("@class:", "@group:")
"""Selectors that some data sets do not have. Any other selector that cannot be resolved is an error."""


class TaskKind(StrEnum):
    """What a task produces. The value is the name of its parent folder."""

    ORIGINAL = "originals"
    """A trained model."""
    OBSERVATION = "looks"
    """Observations of an original, for one forget set."""
    ORACLE = "oracles"
    """A model retrained without the forget set, and its observations."""
    CELL = "cells"
    """An unlearned model, and its observations."""
    JUDGMENT = "judged"
    """Findings and verdict for an original, an oracle or an unlearned model."""


@dataclass(frozen=True, order=True)
class Scenario:
    """A world: one family, one forget set and one seed."""

    family: str
    forget: str
    seed: int


@dataclass(frozen=True, eq=False)
class BenchTask:
    """One task of a bench."""

    kind: TaskKind
    request: dict[str, Any]
    """Everything that decides the result."""
    world: Scenario
    label: str
    """``original``, ``oracle 1`` ..., or the name of the method entry in the grid."""
    setting: int = 0
    """Index of the setting in the method entry."""
    subject: BenchTask | None = None
    """The task that a judgment is about."""
    look: BenchTask | None = None
    """The observations of the original, for a judgment."""
    original: BenchTask | None = None
    oracles: tuple[BenchTask, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of kind, request and efface version."""
        return json_digest({"kind": self.kind.value, "efface": __version__, **self.request})

    def folder(self, home: Path) -> Path:
        """The folder of the result."""
        return home / self.kind.value / self.digest[:16]

    @property
    def needs(self) -> tuple[BenchTask, ...]:
        """The tasks that must have finished without an error."""
        return tuple(task for task in (self.original, self.look, self.subject) if task is not None)

    def __str__(self) -> str:
        world = self.world
        where = (
            f"{world.family}, {world.forget}, seed {world.seed}" if world.forget else f"{world.family}, {world.seed}"
        )
        what = "judgment on " if self.kind is TaskKind.JUDGMENT else ""
        return f"{where}: {what}{self.label}{f' #{self.setting + 1}' if self.setting else ''}"


@dataclass(frozen=True)
class NotApplicable:
    """A combination of the grid that cannot be run. It is reported, not silently dropped."""

    family: str
    forget: str
    """The forget set that the data does not have; empty if a method does not apply."""
    label: str
    """The method that does not apply to the family; empty if a forget set is missing."""
    reason: str


@dataclass(frozen=True, eq=False)
class MethodEntry:
    """One method entry of a family, with its settings."""

    label: str
    method: str
    settings: tuple[dict[str, Any], ...]
    """The settings, each with every field resolved."""
    idea: str
    """The first paragraph of the docstring of its module."""


@dataclass(frozen=True, eq=False)
class FamilyPlan:
    """A family with its resolved recipe, methods and forget sets."""

    name: str
    data: Any
    sizes: dict[str, Any]
    recipe: dict[str, Any]
    forget: dict[str, str]
    entries: tuple[MethodEntry, ...]
    unfit: tuple[NotApplicable, ...]
    shape: dict[str, Any] = field(default_factory=dict)
    """Number of examples in each part, by forget set; shown on the page."""


@dataclass(frozen=True, eq=False)
class BenchPlan:
    """The planned families of a grid, and the tasks of each world."""

    grid: Grid
    families: dict[str, FamilyPlan]

    def worlds(self, seeds: Sequence[int]) -> Iterator[Scenario]:
        """All worlds: families x forget sets x seeds."""
        for family in self.families.values():
            for name in family.forget:
                yield from (Scenario(family.name, name, seed) for seed in seeds)

    def original(self, world: Scenario) -> BenchTask:
        """The original model, shared by all forget sets of a family and seed."""
        one = self.families[world.family]
        request = {"data": one.data, "split": one.sizes, "recipe": one.recipe, "seed": world.seed}
        request |= {"bf16": True} if self.grid.bf16 else {}
        return BenchTask(TaskKind.ORIGINAL, request, Scenario(world.family, "", world.seed), "original")

    def look(self, world: Scenario) -> BenchTask:
        """The observations of the original."""
        return self._task(world, TaskKind.OBSERVATION, "original", {})

    def oracles(self, world: Scenario) -> tuple[BenchTask, ...]:
        """The models retrained without the forget set, each with its own seed."""
        counts = self.grid.oracles
        count = counts.selection if world.seed in self.grid.seeds.selection else counts.reporting
        seeds = [1000 * (number + 1) + world.seed for number in range(count)]
        return tuple(
            self._task(world, TaskKind.ORACLE, f"oracle {number}", {"seed": seed})
            for number, seed in enumerate(seeds, 1)
        )

    def cell(self, world: Scenario, label: str, setting: int) -> BenchTask:
        """An unlearned model: one method with one setting."""
        entry = next(one for one in self.families[world.family].entries if one.label == label)
        return self._task(world, TaskKind.CELL, label, {"method": entry.settings[setting]}, setting)

    def judgment(self, subject: BenchTask) -> BenchTask:
        """The judgment of observations, an oracle or a cell, against all oracles of its world."""
        look, oracles = self.look(subject.world), self.oracles(subject.world)
        criteria = config.dump(self.grid.criteria)
        request = {
            "subject": subject.digest,
            "original": look.digest,
            "oracles": [oracle.digest for oracle in oracles],
            "criteria": criteria,
        }
        return BenchTask(
            TaskKind.JUDGMENT,
            request,
            subject.world,
            subject.label,
            subject.setting,
            subject=subject,
            look=look,
            oracles=oracles,
        )

    def _task(self, world: Scenario, kind: TaskKind, label: str, more: dict[str, Any], setting: int = 0) -> BenchTask:
        """A task that starts from the original of a world, with ``more`` keys in its request."""
        original = self.original(world)
        request = {
            "original": original.request,
            "forget": self.families[world.family].forget[world.forget],
            "watch": config.dump(self.grid.watch),
            **more,
        }
        return BenchTask(kind, request, world, label, setting, original=original)


def plan_bench(grid: Grid) -> BenchPlan:
    """Plan a grid.

    Raises:
        EffaceError: Data are missing, a method has no such setting, or the sizes of the split do not fit the data.

    """
    return BenchPlan(grid, {name: _plan_family(name, grid.family(name), grid) for name in grid.families})


def load_divided(one: FamilyPlan, seed: int) -> tuple[Data, Split]:
    """Load the data of a family and split it, without a forget set."""
    data = load_data({"data": one.data})
    return data, Sizes(**one.sizes).divide(data, seed)


def _plan_family(name: str, family: ModelFamily, grid: Grid) -> FamilyPlan:
    """Resolve one family, and collect the methods and forget sets that do not apply to it."""
    try:
        data = load_data({"data": family.data})
        chosen = family.split or grid.split
        sizes, split = config.dump(chosen), chosen.divide(data, grid.seeds.reporting[0])
        recipe = build_recipe(data, "simclr", family.recipe)
    except EffaceError as error:
        raise EffaceError(f"The family '{name}' cannot be planned: {error.what}", error.why, error.remedy) from error
    start = Checkpoint(recipe.start(0), recipe)
    entries, unfit = [], []
    for label, value in (family.methods or {}).items():
        entry = _entry(label, value)
        reason = _unfit(entry, start) if entry.settings else ""
        if reason:
            unfit.append(NotApplicable(name, "", label, reason))
        elif entry.settings:
            entries.append(entry)
    forget_sets: dict[str, str] = {}
    shape: dict[str, Any] = {}
    for set_name, selector in (family.forget or {}).items():
        try:
            shape[set_name] = select_forget_set(split, data, selector, grid.seeds.reporting[0]).sizes()
        except EffaceError as error:
            if len(family.forget or {}) == 1 or not selector.startswith(DATA_SELECTORS):
                raise EffaceError(f"forget.{set_name}: {error.what}", error.why, error.remedy) from error
            unfit.append(NotApplicable(name, set_name, "", str(error)))
        else:
            forget_sets[set_name] = selector
    dumped = config.dump(recipe, CHOICES)
    return FamilyPlan(name, family.data, sizes, dumped, forget_sets, tuple(entries), tuple(unfit), shape)


def _entry(label: str, value: Any) -> MethodEntry:
    """Resolve the settings of a method entry."""
    listed = list_settings(value, label)
    made = [config.parse_choice(METHODS, one, "method", METHOD_CHOICES, f"methods.{label}.") for one in listed]
    resolved = tuple(json.loads(json.dumps(config.dump(one, METHOD_CHOICES))) for one in made)
    method = resolved[0]["name"] if resolved else label
    return MethodEntry(label, method, resolved, _idea(type(made[0])) if made else "")


def _idea(cls: type) -> str:
    """The first paragraph of the docstring of a method's module."""
    return (sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _unfit(entry: MethodEntry, start: Checkpoint) -> str:
    """Why a method does not apply to checkpoints of this kind; empty if it does."""
    cls = METHODS[entry.method]
    if cls.exact:
        return "It is the oracle; every table already contains retrained models."
    try:
        require_fit(entry.method, cls.needs, start)
    except EffaceError as error:
        return error.what
    return ""


__all__ = [
    "BenchPlan",
    "BenchTask",
    "FamilyPlan",
    "MethodEntry",
    "NotApplicable",
    "Scenario",
    "TaskKind",
    "load_divided",
    "plan_bench",
]
