"""Selectors: resolve what a request says to the examples to forget. NumPy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from efface.data.dataset import Data, rank_by_hash
from efface.data.memorization import read_memorization
from efface.data.names import (
    MatchedNames,
    NameIndex,
    escape_invisible,
    match_equivalent,
    match_listed_names,
    match_names,
    quote_first,
)
from efface.data.selection import Selection, count_classes, identify_list
from efface.data.text_files import IdList, read_list
from efface.errors import EffaceError, unknown_name_error

LONGEST_COUNT = 18
"""Digits of the largest count that is read as one."""
FORGOTTEN = "an earlier request"
"""What the place of examples is called that were trained on once and are forgotten."""
FORMS = (
    "@class:NAME, @group:NAME, @random:0.1, @random:50, @memorized:10%:FILE, @keys:a,b, or a .txt, .csv, .json, .jsonl "
    "of keys"
)


def resolve_selector(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], selector: str, seed: int
) -> Selection:
    """Find the training examples that a selector stands for.

    Args:
        data: The data set.
        train: Positions of the training examples.
        elsewhere: Name of a part to positions that cannot be chosen; the error for one of them names its part.
        selector: ``@class:NAME``, ``@group:NAME`` (or several names, or a file of names), ``@random:0.1``,
            ``@random:50``, ``@memorized:10%:FILE`` (see :mod:`efface.data.memorization`), ``@keys:a,b``, or the path of
            a .txt, .csv, .tsv, .json or .jsonl file of keys.
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
        chosen = _KINDS[kind](data, train, elsewhere, value, seed)
    else:
        listed = read_keys(selector, data)
        chosen = _select_listed(data, train, elsewhere, listed.ids, selector)
        chosen = replace(chosen, notes=(*listed.notes, *chosen.notes))
    if len(chosen.positions) == len(train):
        raise EffaceError(
            f"'{selector}' selects all {len(train)} training examples.",
            "Nothing would be retained, so there is nothing to unlearn: such a model can only be deleted.",
            "Select fewer examples, or delete the model.",
        )
    return chosen


def read_keys(path: str, data: Data) -> IdList:
    """Read the keys in a file, as they are written there.

    Args:
        path: A text file with one key on each line, a .csv or .tsv with a column ``key`` or a single column, or a .json
            or .jsonl of strings.
        data: The data set; a path that is one of its keys gets a more helpful error.

    Raises:
        EffaceError: The file is missing, empty or malformed.

    """
    return _read_ids(path, "key", data.index.positions, data)


def find_keys(data: Data, keys: Sequence[str], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Find the examples that are listed by their keys, each of them once.

    Args:
        data: The data set.
        keys: Keys as they were written; one that differs from the data's only in its Unicode form is matched.
        where: What lists them, for messages.

    Returns:
        Their positions in the order of ``keys``, and notes on what was matched other than exactly.

    Raises:
        EffaceError: A key is unknown or is listed more than once.

    """
    matched = match_equivalent(keys, data.index)
    repeated = [key for key, count in Counter(matched.names).items() if count > 1]
    if repeated:
        raise EffaceError(
            f"{len(repeated)} ids are listed more than once in {where}: {quote_first(repeated)}.",
            "An example can be forgotten only once, and a repeated id may be a typing error for another one.",
            "Remove the repeated ids.",
        )
    return data.positions(matched.names), tuple(matched.notes)


def _read_ids(path: str, column: str, known: Collection[str], data: Data) -> IdList:
    try:
        found = read_list(Path(path).expanduser(), column, known)
    except FileNotFoundError:
        is_key = path in data.index.positions
        raise EffaceError(
            f"There is no file {path}.",
            f"But '{path}' is the id of an example." if is_key else "A selector without @ is the path of a file.",
            f"Write @keys:{path}." if is_key else f"Write {FORMS}.",
        ) from None
    except (OSError, ValueError) as error:
        raise EffaceError(
            f"{path} cannot be read as a list of ids.",
            str(error),
            "Write one id on each line (.txt), a column named key (.csv), or a list of strings (.json).",
        ) from error
    if not found.ids:
        raise EffaceError(f"{path} holds no ids.", "There is nothing to forget.", "Put one id on each line.")
    return found


def _select_listed(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], keys: Sequence[str], where: str
) -> Selection:
    """Select the examples with these keys, each of which must be a training example and listed once."""
    groups = set() if data.group is None else set(np.unique(data.group).tolist()) - {""}
    if keys and set(keys) <= groups and not set(keys) & data.index.positions.keys():
        named = f"@group:{where}" if where != "@keys" else f"@group:{','.join(keys)}"
        raise EffaceError(
            f"{quote_first(list(keys))} in {where}: no ids of examples, but names of groups.",
            "A list holds the ids of single examples.",
            f"To forget all of theirs, write --forget {named}.",
        )
    positions, notes = find_keys(data, keys, where)
    untrained = positions[~np.isin(positions, train)]
    gone = np.isin(untrained, elsewhere.get(FORGOTTEN, untrained[:0]))
    if len(untrained) and gone.all():
        raise EffaceError(
            f"{len(untrained)} of {len(keys)} ids were asked for before: {quote_first(data.keys[untrained].tolist())}.",
            "They were trained on once, and the model has forgotten them already.",
            "Leave them out. The run and the record of the earlier request say how well they were forgotten.",
        )
    if len(untrained):
        raise EffaceError(
            f"{len(untrained)} of {len(keys)} ids were not trained on: {quote_first(data.keys[untrained].tolist())}.",
            f"They are in: {_count_by_part(untrained, elsewhere)}.",
            "Leave them out: the model has nothing to forget about them"
            f"{', or has forgotten them already' if gone.any() else ''}.",
        )
    return identify_list(data, train, Selection(positions, listed=True, notes=notes))


def _count_by_part(positions: np.ndarray, elsewhere: Mapping[str, np.ndarray]) -> str:
    """How many of the examples are in each part, as in ``holdout 3, no part 1``."""
    counts = {part: int(np.isin(positions, rows).sum()) for part, rows in elsewhere.items()}
    unused = len(positions) - sum(counts.values())
    return ", ".join([f"{part} {count}" for part, count in (counts | {"no part": unused}).items() if count])


def _select_keys(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    keys: list[str] = []
    for key in value.split(","):
        plain = key.strip()
        if key != plain and key in data.index.positions and plain in data.index.positions:
            raise EffaceError(
                f"'{key}' and '{plain}' are both ids of examples.",
                "With a space after the comma it is unclear which one is meant.",
                "Put the ids into a file, one on each line.",
            )
        keys += [key if key in data.index.positions else plain] if plain else []
    if not keys:
        raise EffaceError("The selector @keys: lists no ids.", remedy="Write @keys:a,b.")
    return _select_listed(data, train, elsewhere, keys, "@keys")


def _select_class(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    if data.y is None:
        raise EffaceError(f"{data.name} has no labels.", "@class: selects by label.", "List the keys in a file.")
    found = _resolve_names(data, value, NameIndex(data.classes), "class", numbered=True)
    labels = {name: data.y == data.classes.index(name) for name in found.names}
    return _select_named(train, elsewhere, labels, "class", found.notes)


def _select_group(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    if data.group is None:
        raise EffaceError(
            f"{data.name} has no groups.",
            "@group: selects by group.",
            "Use a manifest with a column 'group'.",
        )
    known = NameIndex(name for name in np.unique(data.group).tolist() if name)
    found = _resolve_names(data, value, known, "group")
    members = {name: data.group == name for name in found.names}
    return _select_named(train, elsewhere, members, "group", found.notes)


def _resolve_names(data: Data, value: str, known: NameIndex, kind: str, *, numbered: bool = False) -> MatchedNames:
    """Find the classes or groups that are named in a selector, or in the file that it names."""
    try:
        return match_names(value, known, kind, numbered=numbered)
    except EffaceError:
        if not _is_file(value):
            raise
    listed = _read_ids(value.strip(), kind, known.positions, data)
    found = match_listed_names(listed.ids, known, kind)
    return MatchedNames(found.names, [*listed.notes, *found.notes])


def _is_file(path: str) -> bool:
    try:
        return Path(path.strip()).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def _select_named(
    train: np.ndarray,
    elsewhere: Mapping[str, np.ndarray],
    members: Mapping[str, np.ndarray],
    kind: str,
    notes: Sequence[str],
) -> Selection:
    """Select the training examples of the named classes or groups; ``members`` says which examples are of each."""
    rows = {name: train[chosen[train]] for name, chosen in members.items()}
    positions = np.concatenate(list(rows.values()))
    if not len(positions):
        raise EffaceError(
            f"No training example is of {kind} {quote_first(list(rows))}.",
            f"They are in: {_count_by_part(np.flatnonzero(np.any(list(members.values()), axis=0)), elsewhere)}.",
            "Nothing is to be done: the model was never trained on them, or has forgotten them already.",
        )
    counts = {name: len(found) for name, found in rows.items()}
    return Selection(positions, by_group=kind == "group", kind=kind, names=counts, notes=tuple(notes))


def _select_random(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    count = _read_size("@random", value, len(train))
    rank = rank_by_hash(data.keys[train], seed, "forget")
    positions = train[np.argsort(rank, kind="stable")[:count]]
    return Selection(positions, random=True, kind="random", names=count_classes(data, positions))


def _select_memorized(
    data: Data, train: np.ndarray, elsewhere: Mapping[str, np.ndarray], value: str, seed: int
) -> Selection:
    size, colon, path = value.partition(":")
    if not colon or not path.strip():
        raise EffaceError(
            f"'@memorized:{escape_invisible(value)}' does not say which file holds the numbers.",
            "How much an example is memorized can only be measured with other models.",
            "Write @memorized:10%:FILE, where FILE is a .csv with the columns key and memorization.",
        )
    count = _read_size("@memorized", size, len(train))
    known = read_memorization(Path(path.strip()))
    keys = data.keys[train].tolist()
    absent = [key for key in keys if key not in known]
    if absent:
        raise EffaceError(
            f"{path.strip()} does not say how much {len(absent)} of {len(keys)} training examples are memorized: "
            f"{quote_first(absent)}.",
            "They might be among the most memorized.",
            "Write a number for every training example.",
        )
    scores = np.array([known[key] for key in keys])
    positions = train[np.lexsort((rank_by_hash(data.keys[train], seed, "forget"), -scores))[:count]]
    note = (
        "The most memorized examples are unlike others also to models that never saw them: they can be judged with "
        "retrained references only."
    )
    return Selection(positions, kind="memorized", names=count_classes(data, positions), notes=(note,))


def _read_size(kind: str, value: str, available: int) -> int:
    """Read how many of the training examples are meant: a fraction, a percentage or a count."""
    value = value.strip()
    is_count = value.isdecimal() and len(value) <= LONGEST_COUNT
    number, percent = (value[:-1], 100.0) if value.endswith("%") else (value, 1.0)
    try:
        size = float(number) / percent
    except ValueError:
        size = float("nan")
    if not is_count and not 0 < size <= 1:
        raise EffaceError(
            f"'{kind}:{escape_invisible(value)}' is neither a fraction nor a count.",
            remedy=f"Write {kind}:0.1 or {kind}:50."
            if kind == "@random"
            else f"Write {kind}:10%:FILE or {kind}:50:FILE.",
        )
    count = int(value) if is_count else round(size * available)
    if not 0 < count <= available:
        raise EffaceError(f"'{kind}:{value}' selects {count} examples.", f"There are {available} training examples.")
    return count


_KINDS: dict[str, Callable[..., Selection]] = {
    "@class": _select_class,
    "@group": _select_group,
    "@keys": _select_keys,
    "@memorized": _select_memorized,
    "@random": _select_random,
}
