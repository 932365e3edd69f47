"""The order of the classes: an output of a classifier is a position, and what a position means is a convention.

``torchvision.datasets.ImageFolder`` sorts folders as text (``1, 10, 11, 2``), timm by lower case and numbers inside of
names (``natural``), and this package as numbers where all names are numbers. NumPy only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data, quote_first
from efface.errors import EffaceError


def _by_number(names: Sequence[str]) -> tuple[str, ...]:
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=(lambda name: (int(name), name)) if numeric else None))


def _by_nature(names: Sequence[str]) -> tuple[str, ...]:
    """Sort as timm does: lower case, and digits inside of names as numbers."""

    def parts(name: str) -> list[tuple[bool, int, str]]:
        found = re.split(r"(\d+)", name.lower())
        return [(part.isdecimal(), int(part), "") if part.isdecimal() else (False, 0, part) for part in found if part]

    return tuple(sorted(names, key=lambda name: (parts(name), name)))


CLASS_ORDERS: dict[str, Callable[[Sequence[str]], tuple[str, ...]]] = {
    "text": lambda names: tuple(sorted(names)),
    "number": _by_number,
    "natural": _by_nature,
    "lower": lambda names: tuple(sorted(names, key=lambda name: (name.lower(), name))),
}
"""Orders that libraries use: torchvision's, this package's, timm's, and text without regard to case."""


def number_classes(data: Data, names: Sequence[str]) -> Data:
    """Number the classes of ``data`` by their positions in ``names``; classes that are not there come after them."""
    if data.y is None:
        return data
    used = {data.classes[label] for label in np.unique(data.y) if label != UNKNOWN_LABEL}
    classes = (*names, *(name for name in data.classes if name not in names and name in used))
    if classes == data.classes:
        return data
    position = {name: number for number, name in enumerate(classes)}
    table = np.array([*(position.get(name, UNKNOWN_LABEL) for name in data.classes), UNKNOWN_LABEL], dtype=np.int64)
    return replace(data, y=table[data.y], classes=classes)


def state_classes(data: Data, stated: Any) -> Data:
    """Number the classes as the user states with ``data.classes``.

    Args:
        data: The data set.
        stated: ``text``, ``number``, ``natural`` or ``lower``; a list of names; a mapping with ``order``; or a file:
            a name on each line, a JSON list, or a JSON mapping from positions to names.

    Raises:
        EffaceError: The data have no labels, the file cannot be read, or a class is missing from the list.

    """
    if data.y is None:
        raise EffaceError(f"{data.name} has no labels.", "data.classes orders the classes.", "Leave out data.classes.")
    if isinstance(stated, dict) and set(stated) == {"order"}:
        stated = stated["order"]
    if isinstance(stated, str) and stated in CLASS_ORDERS:
        return number_classes(data, CLASS_ORDERS[stated](data.classes))
    names = _read_names(stated) if isinstance(stated, str) else stated
    if isinstance(names, dict):
        names = _from_positions(names)
    if not isinstance(names, list | tuple) or len({str(name) for name in names}) < max(1, len(names)):
        raise EffaceError(
            f"data.classes cannot be {stated!r}.",
            "It is a list of different names, a file of them, or an order.",
            f"Orders: {', '.join(CLASS_ORDERS)}. A file has one name on each line.",
        )
    names = [str(name) for name in names]
    missing = [name for name in data.classes if name not in names and (data.y == data.classes.index(name)).any()]
    if missing:
        raise EffaceError(
            f"{len(missing)} classes of {data.name} are not in data.classes: {quote_first(missing)}.",
            f"It lists {len(names)}: {quote_first(names)}.",
            "List all classes in the order of the classifier's outputs.",
        )
    return number_classes(data, names)


def _read_names(path: str) -> Any:
    """Read the names in a file: JSON, or one on each line."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        return (
            json.loads(text) if path.lower().endswith(".json") else [line for line in text.split("\n") if line.strip()]
        )
    except FileNotFoundError:
        raise EffaceError(
            f"data.classes: there is no file {path}.", f"Orders are: {', '.join(CLASS_ORDERS)}.", "Check the path."
        ) from None
    except (OSError, ValueError) as error:
        raise EffaceError(f"The class names in {path} cannot be read.", str(error)) from error


def _from_positions(names: dict[Any, Any]) -> list[str]:
    """The names of a mapping from positions to names, or from names to positions, by position."""
    if all(isinstance(value, int) for value in names.values()):
        names = {value: name for name, value in names.items()}
    try:
        ordered = {int(position): str(name) for position, name in names.items()}
    except (TypeError, ValueError):
        ordered = {}
    if sorted(ordered) != list(range(len(names))):
        raise EffaceError("data.classes does not name the class of every position from 0 on.", f"It has {len(names)}.")
    return [ordered[position] for position in range(len(names))]
