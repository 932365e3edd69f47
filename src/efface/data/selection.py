"""The examples that a selector stands for, and what they are: random, listed, a group or a class. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data
from efface.data.names import quote_first
from efface.data.request_kinds import ListedUnits, find_listed_units

CLASSES_SHOWN = 5
"""Number of classes that the description of a selection names."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The examples that a selector stands for."""

    positions: np.ndarray
    """Positions in the data, int64, in no particular order."""
    random: bool = False
    """Whether they are a random draw from the training examples."""
    by_group: bool = False
    """Whether they were selected by group."""
    listed: bool = False
    """Whether their keys were listed one by one."""
    kind: str = "listed"
    """What the selector was resolved to: ``class``, ``group``, ``listed``, ``memorized`` or ``random``. A list of all
    examples of a class or a group is resolved to that."""
    names: Mapping[str, int] = field(default_factory=dict)
    """How many of them are of each class, or of each group that was named."""
    notes: tuple[str, ...] = ()
    """What the selector was understood to mean, and how a file was read, where that is not obvious."""
    units: ListedUnits | None = None
    """The groups or classes that a list is of."""

    def facts(self) -> dict[str, Any]:
        """What the selector was resolved to, as a JSON object for a split's provenance."""
        notes = [*self.notes, *([] if self.units is None else [self.units.note()])]
        return {"kind": self.kind, "count": len(self.positions), "names": dict(self.names), "notes": notes}


def describe_selection(facts: Mapping[str, Any]) -> list[str]:
    """Describe what a selector was resolved to, from :meth:`Selection.facts`, as sentences to show before it is done.

    Example:
        >>> describe_selection({"kind": "class", "count": 66, "names": {"02": 66}, "notes": []})
        ["Forgets 66 training examples of class '02'."]

    """
    count, names = int(facts.get("count", 0)), dict(facts.get("names", {}))
    examples = f"{count} training example{'' if count == 1 else 's'}"
    kind = str(facts.get("kind"))
    if kind in ("class", "group") and len(names) == 1:
        what = f"{examples} of {kind} {quote_first(list(names))}"
    elif kind in ("class", "group"):
        plural = "classes" if kind == "class" else "groups"
        what = f"{examples} of {len(names)} {plural}: {_list_counts(names)}"
    else:
        how = {"random": "drawn at random", "memorized": "that are memorized most"}.get(kind, "listed by id")
        what = f"{examples} {how}" + (f", by class: {_list_counts(names)}" if names else "")
    return [*(str(note) for note in facts.get("notes", ())), f"Forgets {what}."]


def _list_counts(names: Mapping[str, int]) -> str:
    most = sorted(names.items(), key=lambda item: -item[1])[:CLASSES_SHOWN]
    return ", ".join(f"{quote_first([name])} {count}" for name, count in most) + (
        f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    )


def count_classes(data: Data, positions: np.ndarray) -> dict[str, int]:
    """Count the examples at ``positions`` by the name of their class; those without a class are left out."""
    if data.y is None:
        return {}
    labels, counts = np.unique(data.y[positions], return_counts=True)
    pairs = zip(labels.tolist(), counts.tolist(), strict=True)
    return {data.classes[label]: count for label, count in pairs if label != UNKNOWN_LABEL}


def identify_list(data: Data, train: np.ndarray, listed: Selection) -> Selection:
    """Tell what listed examples are: groups or classes if they are all that were trained on of these, else a list."""
    units = find_listed_units(data, train, listed.positions)
    if units is None or not units.whole:
        names = count_classes(data, listed.positions)
        return replace(listed, by_group=False, kind="listed", names=names, units=units)
    return replace(listed, by_group=units.kind == "group", kind=units.kind, names=units.names, units=units)
