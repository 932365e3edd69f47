"""Grid: what a bench is asked, a YAML file as a frozen dataclass. Unknown keys are refused, with the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efface import config
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.verdict import Criteria
from efface.errors import EffaceError, unknown_name_error
from efface.runs.run import Sizes

MethodSettings = dict[str, Any]
"""One setting of a method, as in ``--set method.*``; with ``name`` where the entry is called otherwise."""


@dataclass(frozen=True, kw_only=True)
class BenchSeeds:
    """Which seeds choose settings, and which are reported: never the same."""

    selection: tuple[int, ...] = (0, 1)
    """Settings are compared on these, without the oracle."""
    reporting: tuple[int, ...] = (10, 11, 12)
    """Only these are in the tables."""

    def __post_init__(self) -> None:
        both = set(self.selection) & set(self.reporting)
        if both or not self.reporting:
            raise EffaceError(
                f"The seeds {sorted(both)} both select and report." if both else "There are no seeds to report on.",
                "A setting that was chosen on a seed looks better on it than it is.",
                "Give seeds.selection and seeds.reporting different numbers.",
            )


@dataclass(frozen=True, kw_only=True)
class OracleCounts:
    """How many models are retrained for each world."""

    selection: int = 1
    """On selection seeds: they choose nothing, but show what an oracle would have chosen. May be 0."""
    reporting: int = 2
    """On reporting seeds: from two on, the distance between them is the noise floor."""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Originals of one kind; what is left out is the grid's."""

    recipe: dict[str, Any]
    """How they are trained, as in ``efface pretrain``: objective, backbone, epochs ..."""
    data: str | dict[str, Any] | None = None
    """A source's name, or a mapping with ``source`` and its options."""
    split: Sizes | None = None
    """Sizes of the parts."""
    forget: dict[str, str] | None = None
    """Forget sets: a name of your own to a selector."""
    methods: dict[str, Any] | None = None
    """Methods with their settings, put over the grid's by name; an empty list leaves one out."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything that decides the results, and how many processes compute them."""

    families: dict[str, ModelFamily]
    """By a name of your own."""
    name: str = ""
    """What the page is called."""
    data: str | dict[str, Any] | None = None
    """For families that name none."""
    split: Sizes = field(default_factory=Sizes)
    """For families that name none."""
    forget: dict[str, str] = field(default_factory=dict)
    """For families that name none."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Name to one setting, a list of them (they are compared), or nothing (the defaults)."""
    seeds: BenchSeeds = field(default_factory=BenchSeeds)
    oracles: OracleCounts = field(default_factory=OracleCounts)
    watch: ObservationSettings = field(
        default_factory=lambda: ObservationSettings(gradient=False, cap=1000, test_cap=2000)
    )
    """How every model is looked at; valid examples always are."""
    criteria: Criteria = field(default_factory=Criteria)
    """What the verdicts count as removed."""
    device: str = "cpu"
    """Where to compute; each process has one thread."""
    bf16: bool = False
    """bfloat16 autocast of every training, where the machine is faster with it: ask for it on all or none."""
    jobs: int = 2
    """Processes at a time."""
    keep_weights: bool = False
    """Whether unlearned and retrained models keep their weights; originals always do."""

    def __post_init__(self) -> None:
        if not self.families or self.jobs < 1:
            raise EffaceError(
                "The grid has no families." if not self.families else f"{self.jobs} processes compute nothing.",
                remedy="Add `families: {NAME: {recipe: ...}}`." if not self.families else "Set jobs to 1 or more.",
            )
        object.__setattr__(self, "watch", replace(self.watch, valid=True))

    def family(self, name: str) -> ModelFamily:
        """A family with the grid's own where it names none."""
        one = self.families[name]
        whole = replace(
            one,
            data=one.data if one.data is not None else self.data,
            split=one.split or self.split,
            forget=self.forget if one.forget is None else one.forget,
            methods={**self.methods, **(one.methods or {})},
        )
        asked = [one for one in (whole.methods or {}).values() if one != []]
        for what, value in (("data", whole.data), ("forget sets", whole.forget), ("methods", asked)):
            if not value:
                raise EffaceError(
                    f"The family '{name}' has no {what}.",
                    "Neither has the grid.",
                    f"Add families.{name}.{what.split()[0]}.",
                )
        return whole

    def select(self, families: Iterable[str] = (), forget: Iterable[str] = ()) -> Grid:
        """The grid with some of its families and forget sets; nothing named: all. A family left without one goes."""
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


def list_settings(entry: Any, label: str) -> tuple[MethodSettings, ...]:
    """The settings of a method's entry: nothing, one mapping, or a list of them."""
    listed = [{}] if entry is None else entry if isinstance(entry, list) else [entry]
    for one in listed:
        if not isinstance(one, Mapping):
            raise EffaceError(
                f"methods.{label} holds {one!r}.", "A setting is a mapping: `weight: 0.1`, or {} for the defaults."
            )
    named = [{"name": label, **one} for one in listed]
    if len({one["name"] for one in named}) > 1:
        raise EffaceError(f"methods.{label} compares different methods.", remedy="Give each an entry of its own.")
    return tuple(named)


def read_grid(path: Path) -> Grid:
    """The grid in a YAML file."""
    return build_grid(config.read(path), path.stem)


def build_grid(values: Mapping[str, Any], name: str = "") -> Grid:
    """A grid from a mapping; whatever it does not know is an error that suggests the nearest."""
    values = {"name": name, **values}
    families = values.get("families")
    if isinstance(families, Mapping):
        made = {
            str(key): config.build(ModelFamily, one if isinstance(one, Mapping) else {}, path=f"families.{key}.")
            for key, one in families.items()
        }
        values["families"] = made
    return config.build(Grid, values)
