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

from efface import __version__, config
from efface.bench.grid import Family, Grid, settings
from efface.checkpoint import CHOICES, Checkpoint
from efface.data import Data
from efface.errors import EffaceError
from efface.giving import require_fit
from efface.methods import METHODS, Method
from efface.record import digest_of
from efface.runs import Sizes, load_data, recipe_of
from efface.splits import Split, forget

WRITTEN: config.Choices = {Method: METHODS}
OF_THE_DATA = ("@class:", "@group:")
"""Selectors that fit some data sets only; whatever else cannot be resolved is a slip of the pen."""


class Kind(StrEnum):
    """What a task makes, and the folder that it is in."""

    ORIGINAL = "originals"
    """A trained model."""
    LOOK = "looks"
    """What an original shows of a forget set."""
    ORACLE = "oracles"
    """A model retrained without the forget set, and what it shows."""
    CELL = "cells"
    """An unlearned model, and what it shows."""
    JUDGED = "judged"
    """Findings and verdict on one of the three."""


@dataclass(frozen=True, order=True)
class World:
    """One division of the data: who is trained on, who is to be forgotten."""

    family: str
    forget: str
    seed: int


@dataclass(frozen=True, eq=False)
class Task:
    """One thing to make."""

    kind: Kind
    request: dict[str, Any]
    """Everything that decides the result; the digest is its name."""
    world: World
    label: str
    """``original``, ``oracle 1``, or the method's entry in the grid."""
    setting: int = 0
    """Which of the entry's settings, from 0."""
    subject: Task | None = None
    """Of a judgment: who is judged."""
    look: Task | None = None
    """What its original shows of the forget set."""
    original: Task | None = None
    oracles: tuple[Task, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the request and of what makes results differ from version to version."""
        return digest_of({"kind": self.kind.value, "efface": __version__, **self.request})

    def folder(self, home: Path) -> Path:
        """Where its result is."""
        return home / self.kind.value / self.digest[:16]

    @property
    def needs(self) -> tuple[Task, ...]:
        """What must have been made before, without an error."""
        return tuple(task for task in (self.original, self.look, self.subject) if task is not None)

    def __str__(self) -> str:
        world = self.world
        where = (
            f"{world.family}, {world.forget}, seed {world.seed}" if world.forget else f"{world.family}, {world.seed}"
        )
        what = "judgment on " if self.kind is Kind.JUDGED else ""
        return f"{where}: {what}{self.label}{f' #{self.setting + 1}' if self.setting else ''}"


@dataclass(frozen=True)
class Unfit:
    """Something of the grid that cannot be: it is said, not dropped."""

    family: str
    forget: str
    """Empty where it is a method that does not fit the family."""
    label: str
    """Empty where it is a forget set that the data does not have."""
    reason: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One method of one family, with its settings."""

    label: str
    method: str
    settings: tuple[dict[str, Any], ...]
    """Every field of each, resolved."""
    idea: str
    """The first sentence of its docstring."""


@dataclass(frozen=True, eq=False)
class Planned:
    """A family made concrete: its recipe, its methods, its forget sets."""

    name: str
    data: Any
    sizes: dict[str, Any]
    recipe: dict[str, Any]
    forget: dict[str, str]
    entries: tuple[Entry, ...]
    unfit: tuple[Unfit, ...]
    shape: dict[str, Any] = field(default_factory=dict)
    """For the page: how many examples each part has, by forget set."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Every family, and the tasks of a world."""

    grid: Grid
    families: dict[str, Planned]

    def worlds(self, seeds: Sequence[int]) -> Iterator[World]:
        """Families x forget sets x seeds."""
        for family in self.families.values():
            for name in family.forget:
                yield from (World(family.name, name, seed) for seed in seeds)

    def original(self, world: World) -> Task:
        """The model that the world starts from: the same for all its forget sets."""
        one = self.families[world.family]
        request = {"data": one.data, "split": one.sizes, "recipe": one.recipe, "seed": world.seed}
        request |= {"bf16": True} if self.grid.bf16 else {}
        return Task(Kind.ORIGINAL, request, World(world.family, "", world.seed), "original")

    def look(self, world: World) -> Task:
        """What the original shows."""
        return self._made(world, Kind.LOOK, "original", {})

    def oracles(self, world: World) -> tuple[Task, ...]:
        """The models retrained without the forget set, each from a seed of its own."""
        counts = self.grid.oracles
        many = counts.selection if world.seed in self.grid.seeds.selection else counts.reporting
        seeds = [1000 * (number + 1) + world.seed for number in range(many)]
        return tuple(
            self._made(world, Kind.ORACLE, f"oracle {number}", {"seed": seed}) for number, seed in enumerate(seeds, 1)
        )

    def cell(self, world: World, label: str, setting: int) -> Task:
        """One method with one setting."""
        entry = next(one for one in self.families[world.family].entries if one.label == label)
        return self._made(world, Kind.CELL, label, {"method": entry.settings[setting]}, setting)

    def judged(self, subject: Task) -> Task:
        """The judgment on an original's look, an oracle or a cell, against all the world's oracles."""
        look, oracles = self.look(subject.world), self.oracles(subject.world)
        criteria = config.dump(self.grid.criteria)
        request = {
            "subject": subject.digest,
            "original": look.digest,
            "oracles": [oracle.digest for oracle in oracles],
            "criteria": criteria,
        }
        return Task(
            Kind.JUDGED, request, subject.world, subject.label, subject.setting, subject, look, None, oracles
        )  # fmt: skip

    def _made(self, world: World, kind: Kind, label: str, more: dict[str, Any], setting: int = 0) -> Task:
        original = self.original(world)
        request = {
            "original": original.request,
            "forget": self.families[world.family].forget[world.forget],
            "watch": config.dump(self.grid.watch),
            **more,
        }
        return Task(kind, request, world, label, setting, original=original)


def plan(grid: Grid) -> Plan:
    """The plan of a grid; data that are not there, settings that no method has and sizes that do not fit are errors."""
    return Plan(grid, {name: _planned(name, grid.family(name), grid) for name in grid.families})


def divided(one: Planned, seed: int) -> tuple[Data, Split]:
    """The data of a family and its division, with nothing to forget yet."""
    data = load_data({"data": one.data})
    return data, Sizes(**one.sizes).divide(data, seed)


def _planned(name: str, family: Family, grid: Grid) -> Planned:
    try:
        data = load_data({"data": family.data})
        chosen = family.split or grid.split
        sizes, split = config.dump(chosen), chosen.divide(data, grid.seeds.reporting[0])
        recipe = recipe_of(data, "simclr", family.recipe)
    except EffaceError as error:
        raise EffaceError(f"The family '{name}' cannot be made: {error.what}", error.why, error.remedy) from error
    start = Checkpoint(recipe.start(0), recipe)
    entries, unfit = [], []
    for label, value in (family.methods or {}).items():
        entry = _entry(label, value)
        reason = _unfit(entry, start) if entry.settings else ""
        if reason:
            unfit.append(Unfit(name, "", label, reason))
        elif entry.settings:
            entries.append(entry)
    forgotten: dict[str, str] = {}
    shape: dict[str, Any] = {}
    for called, selector in (family.forget or {}).items():
        try:
            shape[called] = forget(split, data, selector, grid.seeds.reporting[0]).sizes()
        except EffaceError as error:
            if len(family.forget or {}) == 1 or not selector.startswith(OF_THE_DATA):
                raise EffaceError(f"forget.{called}: {error.what}", error.why, error.remedy) from error
            unfit.append(Unfit(name, called, "", str(error)))
        else:
            forgotten[called] = selector
    dumped = config.dump(recipe, CHOICES)
    return Planned(name, family.data, sizes, dumped, forgotten, tuple(entries), tuple(unfit), shape)


def _entry(label: str, value: Any) -> Entry:
    """A method's entry with every field of each setting."""
    asked = settings(value, label)
    made = [config.choose(METHODS, one, "method", WRITTEN, f"methods.{label}.") for one in asked]
    resolved = tuple(json.loads(json.dumps(config.dump(one, WRITTEN))) for one in made)
    method = resolved[0]["name"] if resolved else label
    return Entry(label, method, resolved, _idea(type(made[0])) if made else "")


def _idea(cls: type) -> str:
    """The first line of the file that a method is."""
    return (sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _unfit(entry: Entry, start: Checkpoint) -> str:
    """Why a method does not work on checkpoints of this kind; empty where it does."""
    cls = METHODS[entry.method]
    if cls.exact:
        return "It is the oracle: retrained models are in every table."
    try:
        require_fit(entry.method, cls.needs, start)
    except EffaceError as error:
        return error.what
    return ""


__all__ = ["Entry", "Kind", "Plan", "Planned", "Task", "Unfit", "World", "divided", "plan"]
