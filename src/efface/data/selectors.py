"""Selectors: what a request says about whom to forget, resolved to examples. numpy only."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data, quote_first, rank_by_hash
from efface.errors import EffaceError, unknown_name_error

MAX_STORED_KEYS = 100
FORMS = "@class:NAME, @group:NAME, @random:0.1, @random:50, @keys:a,b, or a .txt, .csv, .json, .jsonl of keys"


@dataclass(frozen=True, eq=False)
class Selection:
    """The examples that a selector means."""

    positions: np.ndarray
    """Positions in the data, int64, in no particular order."""
    random: bool = False
    """Whether they are a random draw from the training examples."""
    by_group: bool = False
    """Whether they were selected by group."""
    listed: bool = False
    """Whether they were listed one by one."""


def resolve_selector(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], selector: str, seed: int
) -> Selection:
    """Resolve ``selector`` against the training examples at ``train``.

    ``elsewhere``: name to positions of examples that cannot be chosen; naming one is an error that says where
    it is.
    """
    if not len(train):
        raise EffaceError("There are no training examples to choose from.", "The split's retain part is empty.")
    kind, colon, value = selector.partition(":")
    if selector.startswith("@"):
        if kind not in _KINDS:
            raise unknown_name_error("selector", kind, _KINDS)
        if not colon or not value.strip():
            raise EffaceError(f"The selector '{selector}' says nothing after {kind}.", remedy=f"Write {FORMS}.")
        chosen = _KINDS[kind](data, train, elsewhere, value.strip(), seed)
    else:
        chosen = _listed(data, train, elsewhere, read_keys(selector, data), selector)
    if len(chosen.positions) == len(train):
        raise EffaceError(
            f"'{selector}' selects all {len(train)} training examples.",
            "Nothing would be retained: a model of nothing cannot be unlearned, only deleted.",
            "Select fewer, or delete the model.",
        )
    return chosen


def read_keys(path: str, data: Data) -> list[str]:
    """The keys in a file: one a line, a CSV's only column or its column ``key``, or a JSON list of
    strings."""
    file = Path(path).expanduser()
    readers: dict[str, Callable[[str], list[str]]] = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    try:
        text = file.read_text(encoding="utf-8-sig")
        keys = readers.get(file.suffix.lower(), _lines)(text)
    except FileNotFoundError:
        known = path in data.keys
        raise EffaceError(
            f"There is no file {path}.",
            f"But '{path}' is the id of an example." if known else "A selector without @ is the path of a file.",
            f"Write @keys:{path}." if known else f"Write {FORMS}.",
        ) from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise EffaceError(
            f"{path} cannot be read as a list of ids.",
            str(error),
            "One id a line (.txt); a column named key (.csv); a list of strings (.json).",
        ) from error
    if not keys:
        raise EffaceError(f"{path} holds no ids.", "There is nobody to forget.", "Put one id on each line.")
    return keys


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _csv(text: str) -> list[str]:
    rows = [row for row in csv.reader(text.splitlines(keepends=True), strict=True) if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    if "key" in header:
        column = header.index("key")
        short = next((number for number, row in enumerate(rows, 1) if len(row) <= column), None)
        if short:
            raise ValueError(f"Row {short} has {len(rows[short - 1])} columns, and 'key' is column {column + 1}.")
        return [row[column].strip() for row in rows[1:]]
    if any(len(row) != 1 for row in rows):
        raise ValueError(f"None of its columns is named 'key'; the first row is: {', '.join(header)}.")
    return [row[0].strip() for row in rows]


def _json(text: str) -> list[str]:
    content = json.loads(text)
    if isinstance(content, dict) and "keys" in content:
        content = content["keys"]
    if not isinstance(content, list):
        raise ValueError(f"It holds a {type(content).__name__}, not a list of strings.")  # noqa: TRY004
    return [_key(one) for one in content]


def _jsonl(text: str) -> list[str]:
    return [_key(json.loads(line)) for line in text.splitlines() if line.strip()]


def _key(value: Any) -> str:
    if isinstance(value, dict) and "key" in value:
        value = value["key"]
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"{json.dumps(value)[:60]} is not an id; ids are strings.")


def _listed(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], keys: Sequence[str], where: str
) -> Selection:
    """The examples with these keys, each of which must be in training and come once."""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise EffaceError(
            f"{len(twice)} ids are listed more than once in {where}: {quote_first(twice)}.",
            "Every example is forgotten once, and a repeated id may be a slip for another.",
            "Remove the repeated ids.",
        )
    positions = data.positions(keys)
    stray = positions[~np.isin(positions, train)]
    if len(stray):
        counts = {part: int(np.isin(stray, rows).sum()) for part, rows in elsewhere.items()}
        parts = [f"{part} {count}" for part, count in counts.items() if count]
        unused = len(stray) - sum(counts.values())
        raise EffaceError(
            f"{len(stray)} of {len(keys)} ids were not trained on: {quote_first(data.keys[stray].tolist())}.",
            f"They are in: {', '.join(parts + ([f'no part {unused}'] if unused else []))}.",
            "Leave them out: there is nothing of them to forget.",
        )
    return Selection(positions, listed=True)


def _by_keys(data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int) -> Selection:
    keys = [key.strip() for key in value.split(",") if key.strip()]
    if not keys:
        raise EffaceError("The selector @keys: names no ids.", remedy="Write @keys:a,b.")
    return _listed(data, train, elsewhere, keys, "@keys")


def _by_class(data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int) -> Selection:
    if data.y is None:
        raise EffaceError(f"{data.name} has no labels.", "@class: selects by label.", "List the keys in a file.")
    if value in data.classes:
        label = data.classes.index(value)
    elif value.isdecimal() and int(value) < len(data.classes):
        label = int(value)
    else:
        raise _unknown("class", value, data.classes)
    return Selection(_some(train[data.y[train] == label], f"class '{value}'"))


def _by_group(data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int) -> Selection:
    if data.group is None:
        raise EffaceError(
            f"{data.name} has no groups.",
            "@group: selects by group.",
            "Give a manifest with a column 'group'.",
        )
    known = np.unique(data.group).tolist()
    if value not in known:
        raise _unknown("group", value, known)
    return Selection(_some(train[data.group[train] == value], f"group '{value}'"), by_group=True)


def _unknown(kind: str, name: str, known: Sequence[str]) -> EffaceError:
    """The error for a class or group that is not there, without a long list of those that are."""
    error = unknown_name_error(kind, name, known)
    return error if len(known) <= MAX_STORED_KEYS else EffaceError(error.what, f"There are {len(known)} others.")


def _some(positions: np.ndarray, what: str) -> np.ndarray:
    if not len(positions):
        raise EffaceError(f"No training example is of {what}.", "All of them are in parts that were never trained on.")
    return positions


def _by_random(data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int) -> Selection:
    whole = value.isdecimal()
    try:
        size = float(value)
    except ValueError:
        size = float("nan")
    if not whole and not 0 < size <= 1:
        raise EffaceError(
            f"'@random:{value}' is neither a fraction nor a count.", remedy="Write @random:0.1 or @random:50."
        )
    count = int(value) if whole else round(size * len(train))
    if not 0 < count <= len(train):
        raise EffaceError(f"'@random:{value}' selects {count} examples.", f"There are {len(train)} training examples.")
    rank = rank_by_hash(data.keys[train], seed, "forget")
    return Selection(train[np.argsort(rank, kind="stable")[:count]], random=True)


_KINDS: dict[str, Callable[..., Selection]] = {
    "@class": _by_class,
    "@group": _by_group,
    "@keys": _by_keys,
    "@random": _by_random,
}
