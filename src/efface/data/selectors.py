"""Selectors: resolve what a request says to the examples to forget. NumPy only."""

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

MAX_NAMES_SHOWN = 100
"""A message about an unknown class or group lists the known ones only up to this many."""
FORMS = "@class:NAME, @group:NAME, @random:0.1, @random:50, @keys:a,b, or a .txt, .csv, .json, .jsonl of keys"


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


def resolve_selector(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], selector: str, seed: int
) -> Selection:
    """Find the training examples that a selector stands for.

    Args:
        data: The data set.
        train: Positions of the training examples.
        elsewhere: Name of a part to positions that cannot be chosen; the error for one of them names its part.
        selector: ``@class:NAME``, ``@group:NAME``, ``@random:0.1``, ``@random:50``, ``@keys:a,b``, or the path of a
            .txt, .csv, .json or .jsonl file of keys.
        seed: Seed of a random selection.

    Raises:
        EffaceError: The selector is malformed, selects none or all of the training examples, or names others.

    Example:
        >>> resolve_selector(data, split.retain, {}, "@class:cat", seed=0).positions

    """
    if not len(train):
        raise EffaceError("There are no training examples to choose from.", "The split's retain part is empty.")
    kind, colon, value = selector.partition(":")
    if selector.startswith("@"):
        if kind not in _KINDS:
            raise unknown_name_error("selector", kind, _KINDS)
        if not colon or not value.strip():
            raise EffaceError(f"The selector '{selector}' has nothing after {kind}.", remedy=f"Write {FORMS}.")
        chosen = _KINDS[kind](data, train, elsewhere, value.strip(), seed)
    else:
        chosen = _select_listed(data, train, elsewhere, read_keys(selector, data), selector)
    if len(chosen.positions) == len(train):
        raise EffaceError(
            f"'{selector}' selects all {len(train)} training examples.",
            "Nothing would be retained, so there is nothing to unlearn: such a model can only be deleted.",
            "Select fewer examples, or delete the model.",
        )
    return chosen


def read_keys(path: str, data: Data) -> list[str]:
    """Read the keys in a file.

    Args:
        path: A text file with one key on each line, a .csv with a column ``key`` or a single column, or a .json or
            .jsonl of strings.
        data: The data set; a path that is one of its keys gets a more helpful error.

    Raises:
        EffaceError: The file is missing, empty or malformed.

    """
    file = Path(path).expanduser()
    parsers: dict[str, Callable[[str], list[str]]] = {".csv": _parse_csv, ".json": _parse_json, ".jsonl": _parse_jsonl}
    try:
        text = file.read_text(encoding="utf-8-sig")
        keys = parsers.get(file.suffix.lower(), _parse_lines)(text)
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
            "Write one id on each line (.txt), a column named key (.csv), or a list of strings (.json).",
        ) from error
    if not keys:
        raise EffaceError(f"{path} holds no ids.", "There is nothing to forget.", "Put one id on each line.")
    return keys


def _parse_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parse_csv(text: str) -> list[str]:
    rows = [row for row in csv.reader(text.splitlines(keepends=True), strict=True) if any(cell.strip() for cell in row)]
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0]]
    if "key" in header:
        column = header.index("key")
        short = next((number for number, row in enumerate(rows, 1) if len(row) <= column), None)
        if short:
            raise ValueError(f"Row {short} has only {len(rows[short - 1])} columns, but 'key' is column {column + 1}.")
        return [row[column].strip() for row in rows[1:]]
    if any(len(row) != 1 for row in rows):
        raise ValueError(f"None of its columns is named 'key'; the first row is: {', '.join(header)}.")
    return [row[0].strip() for row in rows]


def _parse_json(text: str) -> list[str]:
    content = json.loads(text)
    if isinstance(content, dict) and "keys" in content:
        content = content["keys"]
    if not isinstance(content, list):
        raise ValueError(f"It contains a {type(content).__name__}, not a list of strings.")  # noqa: TRY004
    return [_parse_key(item) for item in content]


def _parse_jsonl(text: str) -> list[str]:
    return [_parse_key(json.loads(line)) for line in text.splitlines() if line.strip()]


def _parse_key(value: Any) -> str:
    if isinstance(value, dict) and "key" in value:
        value = value["key"]
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ValueError(f"{json.dumps(value)[:60]} is not an id; ids are strings.")


def _select_listed(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], keys: Sequence[str], where: str
) -> Selection:
    """Select the examples with these keys, each of which must be a training example and listed once."""
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise EffaceError(
            f"{len(repeated)} ids are listed more than once in {where}: {quote_first(repeated)}.",
            "An example can be forgotten only once, and a repeated id may be a typing error for another one.",
            "Remove the repeated ids.",
        )
    positions = data.positions(keys)
    untrained = positions[~np.isin(positions, train)]
    if len(untrained):
        counts = {part: int(np.isin(untrained, rows).sum()) for part, rows in elsewhere.items()}
        parts = [f"{part} {count}" for part, count in counts.items() if count]
        unused = len(untrained) - sum(counts.values())
        raise EffaceError(
            f"{len(untrained)} of {len(keys)} ids were not trained on: {quote_first(data.keys[untrained].tolist())}.",
            f"They are in: {', '.join(parts + ([f'no part {unused}'] if unused else []))}.",
            "Leave them out: the model has nothing to forget about them.",
        )
    return Selection(positions, listed=True)


def _select_keys(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    keys = [key.strip() for key in value.split(",") if key.strip()]
    if not keys:
        raise EffaceError("The selector @keys: lists no ids.", remedy="Write @keys:a,b.")
    return _select_listed(data, train, elsewhere, keys, "@keys")


def _select_class(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    if data.y is None:
        raise EffaceError(f"{data.name} has no labels.", "@class: selects by label.", "List the keys in a file.")
    if value in data.classes:
        label = data.classes.index(value)
    elif value.isdecimal() and int(value) < len(data.classes):
        label = int(value)
    else:
        raise _unknown_value_error("class", value, data.classes)
    return Selection(_require_any(train[data.y[train] == label], f"class '{value}'"))


def _select_group(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    if data.group is None:
        raise EffaceError(
            f"{data.name} has no groups.",
            "@group: selects by group.",
            "Use a manifest with a column 'group'.",
        )
    known = np.unique(data.group).tolist()
    if value not in known:
        raise _unknown_value_error("group", value, known)
    return Selection(_require_any(train[data.group[train] == value], f"group '{value}'"), by_group=True)


def _unknown_value_error(kind: str, name: str, known: Sequence[str]) -> EffaceError:
    """Build the error for an unknown class or group, without a long list of the known ones."""
    error = unknown_name_error(kind, name, known)
    return error if len(known) <= MAX_NAMES_SHOWN else EffaceError(error.what, f"There are {len(known)} others.")


def _require_any(positions: np.ndarray, what: str) -> np.ndarray:
    """Return ``positions``; raise if there are none."""
    if not len(positions):
        raise EffaceError(f"No training example is of {what}.", "All of them are in parts that were never trained on.")
    return positions


def _select_random(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    is_count = value.isdecimal()
    try:
        size = float(value)
    except ValueError:
        size = float("nan")
    if not is_count and not 0 < size <= 1:
        raise EffaceError(
            f"'@random:{value}' is neither a fraction nor a count.", remedy="Write @random:0.1 or @random:50."
        )
    count = int(value) if is_count else round(size * len(train))
    if not 0 < count <= len(train):
        raise EffaceError(f"'@random:{value}' selects {count} examples.", f"There are {len(train)} training examples.")
    rank = rank_by_hash(data.keys[train], seed, "forget")
    return Selection(train[np.argsort(rank, kind="stable")[:count]], random=True)


_KINDS: dict[str, Callable[..., Selection]] = {
    "@class": _select_class,
    "@group": _select_group,
    "@keys": _select_keys,
    "@random": _select_random,
}
