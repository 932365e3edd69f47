"""What kind of request a split holds: random examples, whole groups or whole classes, however it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data
from efface.data.names import quote_first
from efface.data.split_parts import Split

KINDS = ("random", "group", "class")
FEWEST_OF_UNIT = 2
"""A list is one of groups or classes if it has at least so many examples of each, on average."""
LEAST_SHARE = 0.25
"""A list that has less of its groups is not taken to be about them."""


@dataclass(frozen=True)
class ListedUnits:
    """The groups, or the classes, that the examples of a list are of."""

    kind: str
    """``group`` or ``class``."""
    names: Mapping[str, int]
    """Examples in the list, by the name of the group or class."""
    trained: int
    """How many examples of these were trained on, listed or not."""

    @property
    def whole(self) -> bool:
        """Whether the list has all that were trained on."""
        return sum(self.names.values()) == self.trained

    def note(self) -> str:
        """Say what the list was understood to be."""
        plural = self.kind if len(self.names) == 1 else {"group": "groups", "class": "classes"}[self.kind]
        what, count = f"of {plural} {quote_first(list(self.names))}", sum(self.names.values())
        if self.whole:
            return f"The list names every trained example {what}: it is a request for the whole {plural}."
        return f"The list names {count} of {self.trained} trained examples {what}: the others stay in training."


def find_listed_units(data: Data, train: np.ndarray, listed: np.ndarray) -> ListedUnits | None:
    """Find out whether a list stands for groups, or for whole classes: a person's pictures are no random pictures.

    Args:
        data: The data set.
        train: Positions of the training examples.
        listed: Positions of those in the list.

    Returns:
        The groups of which the list has at least two examples each, on average, and at least a quarter of all; or the
        classes of which it has every example. None if it stands for neither: it is like random examples then.

    """
    for kind, values, missing in (("group", data.group, ""), ("class", data.y, UNKNOWN_LABEL)):
        if values is None:
            continue
        named, counts = np.unique(values[listed], return_counts=True)
        if not len(listed) or missing in named or FEWEST_OF_UNIT * len(named) > len(listed):
            continue
        titles = named.tolist() if kind == "group" else [data.classes[label] for label in named.tolist()]
        names = dict(zip(titles, counts.tolist(), strict=True))
        found = ListedUnits(kind, names, int(np.isin(values[train], named).sum()))
        if found.whole or (kind == "group" and len(listed) >= LEAST_SHARE * found.trained):
            return found
    return None


def kind_of_request(split: Split) -> str:
    """Return the kind of a split's request: ``group``, ``class``, or ``random``, which stands for other lists too."""
    found = (split.provenance.get("resolved") or {}).get("kind")
    if found in KINDS:
        return str(found)
    return "group" if split.provenance.get("matched") == "group" else "random"


def kinds_that_stand_for(split: Split) -> tuple[str, ...]:
    """The kinds of rehearsals that say something about a split's request: its own; of a list, any that is chosen."""
    listed = (split.provenance.get("resolved") or {}).get("kind") == "listed"
    return KINDS if listed else (kind_of_request(split),)


def count_units(split: Split) -> int:
    """Count the groups or classes that a split's request asks for; 1 for other requests."""
    resolved = split.provenance.get("resolved") or {}
    return max(1, len(resolved.get("names") or ())) if resolved.get("kind") in ("group", "class") else 1
