"""Plan: the tasks that answer a grid. A task's request holds all that decides its result, and its digest names it."""

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
"""Selectors that fit some data sets only; whatever else cannot be resolved is a slip of the pen."""


class TaskKind(StrEnum):
    """What a task makes, and the folder that it is in."""

    ORIGINAL = "originals"
    """A trained model."""
    OBSERVATION = "looks"
    """What an original shows of a forget set."""
    ORACLE = "oracles"
    """A model retrained without the forget set, and what it shows."""
    CELL = "cells"
    """An unlearned model, and what it shows."""
    JUDGMENT = "judged"
    """Findings and verdict on one of the three."""


@dataclass(frozen=True, order=True)
class Scenario:
    """One division of the data: who is trained on, who is to be forgotten."""

    family: str
    forget: str
    seed: int


@dataclass(frozen=True, eq=False)
class BenchTask:
    """One thing to make."""

    kind: TaskKind
    request: dict[str, Any]
    """Everything that decides the result; the digest is its name."""
    world: Scenario
    label: str
    """``original``, ``oracle 1``, or the method's entry in the grid."""
    setting: int = 0
    """Which of the entry's settings, from 0."""
    subject: BenchTask | None = None
    """Of a judgment: who is judged."""
    look: BenchTask | None = None
    """What its original shows of the forget set."""
    original: BenchTask | None = None
    oracles: tuple[BenchTask, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the request and of what makes results differ from version to version."""
        return json_digest({"kind": self.kind.value, "efface": __version__, **self.request})

    def folder(self, home: Path) -> Path:
        """Where its result is."""
        return home / self.kind.value / self.digest[:16]

    @property
    def needs(self) -> tuple[BenchTask, ...]:
        """What must have been made before, without an error."""
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
    """Something of the grid that cannot be: it is said, not dropped."""

    family: str
    forget: str
    """Empty where it is a method that does not fit the family."""
    label: str
    """Empty where it is a forget set that the data does not have."""
    reason: str


@dataclass(frozen=True, eq=False)
class MethodEntry:
    """One method of one family, with its settings."""

    label: str
    method: str
    settings: tuple[dict[str, Any], ...]
    """Every field of each, resolved."""
    idea: str
    """The first sentence of its docstring."""


@dataclass(frozen=True, eq=False)
class FamilyPlan:
    """A family made concrete: its recipe, its methods, its forget sets."""

    name: str
    data: Any
    sizes: dict[str, Any]
    recipe: dict[str, Any]
    forget: dict[str, str]
    entries: tuple[MethodEntry, ...]
    unfit: tuple[NotApplicable, ...]
    shape: dict[str, Any] = field(default_factory=dict)
    """For the page: how many examples each part has, by forget set."""


@dataclass(frozen=True, eq=False)
class BenchPlan:
    """Every family, and the tasks of a world."""

    grid: Grid
    families: dict[str, FamilyPlan]

    def worlds(self, seeds: Sequence[int]) -> Iterator[Scenario]:
        """Families x forget sets x seeds."""
        for family in self.families.values():
            for name in family.forget:
                yield from (Scenario(family.name, name, seed) for seed in seeds)

    def original(self, world: Scenario) -> BenchTask:
        """The model that the world starts from: the same for all its forget sets."""
        one = self.families[world.family]
        request = {"data": one.data, "split": one.sizes, "recipe": one.recipe, "seed": world.seed}
        request |= {"bf16": True} if self.grid.bf16 else {}
        return BenchTask(TaskKind.ORIGINAL, request, Scenario(world.family, "", world.seed), "original")

    def look(self, world: Scenario) -> BenchTask:
        """What the original shows."""
        return self._made(world, TaskKind.OBSERVATION, "original", {})

    def oracles(self, world: Scenario) -> tuple[BenchTask, ...]:
        """The models retrained without the forget set, each from a seed of its own."""
        counts = self.grid.oracles
        many = counts.selection if world.seed in self.grid.seeds.selection else counts.reporting
        seeds = [1000 * (number + 1) + world.seed for number in range(many)]
        return tuple(
            self._made(world, TaskKind.ORACLE, f"oracle {number}", {"seed": seed})
            for number, seed in enumerate(seeds, 1)
        )

    def cell(self, world: Scenario, label: str, setting: int) -> BenchTask:
        """One method with one setting."""
        entry = next(one for one in self.families[world.family].entries if one.label == label)
        return self._made(world, TaskKind.CELL, label, {"method": entry.settings[setting]}, setting)

    def judgment(self, subject: BenchTask) -> BenchTask:
        """The judgment on an original's look, an oracle or a cell, against all the world's oracles."""
        look, oracles = self.look(subject.world), self.oracles(subject.world)
        criteria = config.dump(self.grid.criteria)
        request = {
            "subject": subject.digest,
            "original": look.digest,
            "oracles": [oracle.digest for oracle in oracles],
            "criteria": criteria,
        }
        return BenchTask(
            TaskKind.JUDGMENT, request, subject.world, subject.label, subject.setting, subject, look, None, oracles
        )  # fmt: skip

    def _made(self, world: Scenario, kind: TaskKind, label: str, more: dict[str, Any], setting: int = 0) -> BenchTask:
        original = self.original(world)
        request = {
            "original": original.request,
            "forget": self.families[world.family].forget[world.forget],
            "watch": config.dump(self.grid.watch),
            **more,
        }
        return BenchTask(kind, request, world, label, setting, original=original)


def plan_bench(grid: Grid) -> BenchPlan:
    """The plan of a grid; data that are not there, settings that no method has and sizes that do not fit are errors."""
    return BenchPlan(grid, {name: _planned(name, grid.family(name), grid) for name in grid.families})


def load_divided(one: FamilyPlan, seed: int) -> tuple[Data, Split]:
    """The data of a family and its division, with nothing to forget yet."""
    data = load_data({"data": one.data})
    return data, Sizes(**one.sizes).divide(data, seed)


def _planned(name: str, family: ModelFamily, grid: Grid) -> FamilyPlan:
    try:
        data = load_data({"data": family.data})
        chosen = family.split or grid.split
        sizes, split = config.dump(chosen), chosen.divide(data, grid.seeds.reporting[0])
        recipe = build_recipe(data, "simclr", family.recipe)
    except EffaceError as error:
        raise EffaceError(f"The family '{name}' cannot be made: {error.what}", error.why, error.remedy) from error
    start = Checkpoint(recipe.start(0), recipe)
    entries, unfit = [], []
    for label, value in (family.methods or {}).items():
        entry = _entry(label, value)
        reason = _unfit(entry, start) if entry.settings else ""
        if reason:
            unfit.append(NotApplicable(name, "", label, reason))
        elif entry.settings:
            entries.append(entry)
    forgotten: dict[str, str] = {}
    shape: dict[str, Any] = {}
    for called, selector in (family.forget or {}).items():
        try:
            shape[called] = select_forget_set(split, data, selector, grid.seeds.reporting[0]).sizes()
        except EffaceError as error:
            if len(family.forget or {}) == 1 or not selector.startswith(DATA_SELECTORS):
                raise EffaceError(f"forget.{called}: {error.what}", error.why, error.remedy) from error
            unfit.append(NotApplicable(name, called, "", str(error)))
        else:
            forgotten[called] = selector
    dumped = config.dump(recipe, CHOICES)
    return FamilyPlan(name, family.data, sizes, dumped, forgotten, tuple(entries), tuple(unfit), shape)


def _entry(label: str, value: Any) -> MethodEntry:
    """A method's entry with every field of each setting."""
    asked = list_settings(value, label)
    made = [config.parse_choice(METHODS, one, "method", METHOD_CHOICES, f"methods.{label}.") for one in asked]
    resolved = tuple(json.loads(json.dumps(config.dump(one, METHOD_CHOICES))) for one in made)
    method = resolved[0]["name"] if resolved else label
    return MethodEntry(label, method, resolved, _idea(type(made[0])) if made else "")


def _idea(cls: type) -> str:
    """The first line of the file that a method is."""
    return (sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _unfit(entry: MethodEntry, start: Checkpoint) -> str:
    """Why a method does not work on checkpoints of this kind; empty where it does."""
    cls = METHODS[entry.method]
    if cls.exact:
        return "It is the oracle: retrained models are in every table."
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
