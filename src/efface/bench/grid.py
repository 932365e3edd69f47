"""The configuration of a bench: a YAML file as a frozen dataclass. Unknown keys are errors with a suggestion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efface import config
from efface.auditing.criteria import Criteria
from efface.auditing.observers.settings import ObservationSettings
from efface.config import Settings
from efface.errors import EffaceError, unknown_name_error
from efface.runs.run import Sizes
from efface.schema import Jobs, SeedNumber, SmallWhole

LOCAL_JOBS = 2
"""Number of parallel tasks on this machine, if nothing is said."""
MethodSettings = dict[str, Any]
"""One setting of a method, as in ``--set method.*``; with ``name`` if the entry has another name than the method."""


@dataclass(frozen=True, kw_only=True)
class BenchSeeds(Settings):
    """The seeds that select settings and the seeds that are reported; no seed may do both."""

    selection: tuple[SeedNumber, ...] = (0, 1)
    """Seeds on which settings are compared, without the oracle."""
    reporting: tuple[SeedNumber, ...] = (10, 11, 12)
    """Seeds that the tables report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = set(self.selection) & set(self.reporting)
        if both or not self.reporting:
            raise EffaceError(
                f"The seeds {sorted(both)} both select and report." if both else "There are no seeds to report on.",
                "On the seed that selected it, a setting looks better than it is.",
                "Give seeds.selection and seeds.reporting different numbers.",
            )


@dataclass(frozen=True, kw_only=True)
class OracleCounts(Settings):
    """Number of retrained models for each combination of family, forget set and seed."""

    selection: SmallWhole = 1
    """On selection seeds. They do not influence the selection; they show what an oracle would select. May be 0."""
    reporting: SmallWhole = 2
    """On reporting seeds. With two or more, the distance between them is the noise floor."""


@dataclass(frozen=True, kw_only=True)
class ModelFamily(Settings):
    """One kind of original model. Fields that are not set are taken from the grid."""

    recipe: dict[str, Any]
    """The training recipe, as in ``efface pretrain``: objective, backbone, epochs ..."""
    data: str | dict[str, Any] | None = None
    """The name of a data source, or a mapping with ``source`` and its options."""
    split: Sizes | None = None
    """Sizes of the parts."""
    forget: dict[str, str] | None = None
    """Forget sets: a name of your choice, mapped to a selector."""
    methods: dict[str, Any] | None = None
    """Methods with their settings; they override those of the grid by name. An empty list removes a method."""


@dataclass(frozen=True, kw_only=True)
class Grid(Settings):
    """The configuration of a bench: everything that decides the results, and the number of processes."""

    families: dict[str, ModelFamily]
    """Families by a name of your choice."""
    name: str = ""
    """Title of the page."""
    data: str | dict[str, Any] | None = None
    """The data of families that set none."""
    split: Sizes = field(default_factory=Sizes)
    """Sizes of the parts, for families that set none."""
    forget: dict[str, str] = field(default_factory=dict)
    """Forget sets of families that set none."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Methods by name: one setting, a list of settings to compare, or nothing for the defaults."""
    seeds: BenchSeeds = field(default_factory=BenchSeeds)
    oracles: OracleCounts = field(default_factory=OracleCounts)
    watch: ObservationSettings = field(
        default_factory=lambda: ObservationSettings(gradient=False, cap=1000, test_cap=2000)
    )
    """How every model is observed; validation examples are always included."""
    criteria: Criteria = field(default_factory=Criteria)
    """What counts as removed."""
    device: str = "cpu"
    """The device; every process uses one thread."""
    bf16: bool = False
    """Train every model with bfloat16 autocast, which is faster on some machines."""
    jobs: Jobs | None = None
    """Number of parallel tasks; by default 2 on this machine, and on others as many as they can take."""
    keep_weights: bool = False
    """Whether to keep the weights of unlearned and retrained models; those of originals are always kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.families or (self.jobs is not None and self.jobs < 1):
            raise EffaceError(
                "The grid has no families." if not self.families else f"The grid asks for {self.jobs} processes.",
                remedy="Add `families: {NAME: {recipe: ...}}`." if not self.families else "Set jobs to 1 or more.",
            )
        object.__setattr__(self, "watch", replace(self.watch, valid=True))

    def processes(self, on: str = "local") -> int | None:
        """Number of parallel tasks at a place; None for as many as it can take."""
        return self.jobs or (LOCAL_JOBS if on == "local" else None)

    def family(self, name: str) -> ModelFamily:
        """A family completed with the values of the grid. A family without data, forget sets or methods raises."""
        one = self.families[name]
        complete = replace(
            one,
            data=one.data if one.data is not None else self.data,
            split=one.split or self.split,
            forget=self.forget if one.forget is None else one.forget,
            methods={**self.methods, **(one.methods or {})},
        )
        methods = [entry for entry in (complete.methods or {}).values() if entry != []]
        for what, value in (("data", complete.data), ("forget sets", complete.forget), ("methods", methods)):
            if not value:
                raise EffaceError(
                    f"The family '{name}' has no {what}.",
                    "The grid has none either.",
                    f"Add families.{name}.{what.split()[0]}.",
                )
        return complete

    def select(self, families: Iterable[str] = (), forget: Iterable[str] = ()) -> Grid:
        """Restrict the grid to some families and forget sets.

        Args:
            families: Names of families; empty for all.
            forget: Names of forget sets; empty for all. Families that have none of them are removed.

        """
        names, sets = list(families) or list(self.families), set(forget)
        for name in names:
            if name not in self.families:
                raise unknown_name_error("family", name, self.families)
        offered = {name: self.family(name).forget or {} for name in names}
        for one in sets:
            if not any(one in offer for offer in offered.values()):
                raise unknown_name_error(
                    "forget set", one, sorted({key for offer in offered.values() for key in offer})
                )
        kept = {
            name: {key: value for key, value in offer.items() if not sets or key in sets}
            for name, offer in offered.items()
        }
        chosen = {name: replace(self.families[name], forget=kept[name]) for name in names if kept[name]}
        return replace(self, families=chosen)


def folder_name(grid: Grid, fallback: str) -> str:
    """The name of a grid as that of a folder: a title may hold slashes and dots, and must not lead out of ``runs``."""
    names = (re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] for name in (grid.name, fallback))
    return next((name for name in names if name), "bench")


def list_settings(entry: Any, label: str) -> tuple[MethodSettings, ...]:
    """The settings of a method entry, which is empty, one mapping, or a list of mappings."""
    listed = [{}] if entry is None else entry if isinstance(entry, list) else [entry]
    for one in listed:
        if not isinstance(one, Mapping):
            raise EffaceError(
                f"methods.{label} contains {one!r}.", "A setting is a mapping: `weight: 0.1`, or {} for the defaults."
            )
    named = [{"name": label, **one} for one in listed]
    if len({one["name"] for one in named}) > 1:
        raise EffaceError(f"methods.{label} compares different methods.", remedy="Give each method its own entry.")
    return tuple(named)


def read_grid(path: Path) -> Grid:
    """Read a grid from a YAML file."""
    return build_grid(config.read(path), path.stem)


def build_grid(values: Mapping[str, Any], name: str = "") -> Grid:
    """Build a grid from a mapping; an unknown key raises an error with a suggestion."""
    values = {"name": name, **values}
    families = values.get("families")
    if isinstance(families, Mapping):
        values["families"] = {
            str(key): config.build(ModelFamily, {} if one is None else one, path=f"families.{key}.")
            for key, one in families.items()
        }
    return config.build(Grid, values)
