"""Splits: which examples to train on, which of them to forget, and which no training ever sees. NumPy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.canaries import locate_canaries
from efface.data.dataset import Data, shuffle_by_key
from efface.data.duplicates import Duplicate, describe_copies, find_copies, refuse_copies
from efface.data.matching import match_holdout
from efface.data.selectors import Selection, resolve_selector
from efface.errors import EffaceError
from efface.files import SPLIT, read_json, write_text

EARLIER = "earlier"
SPLIT_PARTS = ("forget", "retain", "valid", "holdout", "spare", "test", EARLIER)
NEVER_TRAINED = ("valid", "holdout", "spare", "test")
LISTED = 1000
"""Largest number of copies of forgotten examples that are stored with their keys."""


def _no_positions() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """A data set divided into disjoint parts, each as sorted positions (int64).

    Example:
        >>> split = select_forget_set(partition(data), data, "@class:cat")
        >>> data.take(split.forget)

    """

    forget: np.ndarray = field(default_factory=_no_positions)
    """F: trained on and to be forgotten."""
    retain: np.ndarray = field(default_factory=_no_positions)
    """R: trained on and kept."""
    valid: np.ndarray = field(default_factory=_no_positions)
    """V: never trained on; methods may use it."""
    holdout: np.ndarray = field(default_factory=_no_positions)
    """H: never trained on and reserved for the audit: the non-members that F is compared with, with the same mix."""
    spare: np.ndarray = field(default_factory=_no_positions)
    """The other never-trained holdout examples; empty when F is a random draw."""
    test: np.ndarray = field(default_factory=_no_positions)
    """Never trained on; utility is measured on it."""
    earlier: np.ndarray = field(default_factory=_no_positions)
    """Forgotten by earlier requests: no longer trained on, but not non-members either."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How the split was made: ``selector``, ``seed``, ``random``, ``matched`` (``class``, ``group`` or None), ``sizes``
    and ``warnings``. After a forget request also ``copies`` (the first ones, with their keys); after several requests
    also ``earlier`` (``selector``, ``random``, ``matched`` and ``count`` of each request before the last)."""

    @property
    def train(self) -> np.ndarray:
        """What the original model is trained on: forget and retain, sorted."""
        return np.sort(np.concatenate([self.forget, self.retain]))

    def sizes(self) -> dict[str, int]:
        """Count the examples of each part; ``earlier`` is left out if it is empty."""
        counts = {part: len(getattr(self, part)) for part in SPLIT_PARTS}
        return counts if len(self.earlier) else {part: n for part, n in counts.items() if part != EARLIER}

    def check(self, n: int) -> None:
        """Raise unless the parts are sorted and disjoint, and all positions are below ``n``."""
        positions = np.concatenate([getattr(self, part) for part in SPLIT_PARTS])
        if len(positions) and (positions.min() < 0 or positions.max() >= n):
            raise EffaceError(
                f"The split contains position {positions.max() if positions.max() >= n else positions.min()}.",
                f"The data has {n} examples.",
            )
        for part in SPLIT_PARTS:
            positions = getattr(self, part)
            if (np.diff(positions) <= 0).any():
                raise EffaceError(f"The positions of {part} are not sorted, or one is repeated.")
        for number, part in enumerate(SPLIT_PARTS):
            for other in SPLIT_PARTS[number + 1 :]:
                shared = np.intersect1d(getattr(self, part), getattr(self, other))
                if len(shared):
                    raise EffaceError(
                        f"{part} and {other} share {len(shared)} examples.",
                        "An example cannot be in two parts: non-members must not be trained on.",
                    )

    def digest(self, data: Data) -> str:
        """Compute the SHA-256 (hexadecimal) of the keys of every part; the order of the data does not matter."""
        sha = hashlib.sha256()
        for part in self.sizes():
            keys = sorted(data.keys[getattr(self, part)].tolist())
            sha.update("\0".join([part, str(len(keys)), *keys, ""]).encode())
        return sha.hexdigest()

    def to_dict(self, data: Data) -> dict[str, Any]:
        """Convert the split to a JSON-able dictionary of keys."""
        parts = {part: data.keys[getattr(self, part)].tolist() for part in self.sizes()}
        return {"parts": parts, "provenance": self.provenance}

    @staticmethod
    def from_dict(data: Data, stored: Mapping[str, Any]) -> Split:
        """Restore a split from the result of :meth:`to_dict` by looking its keys up in ``data``.

        Raises:
            EffaceError: ``stored`` is not a split, or some of its keys are not in the data.

        """
        parts: Any = stored.get("parts")
        if not isinstance(parts, Mapping) or set(parts) | {EARLIER} != set(SPLIT_PARTS):
            raise EffaceError(
                "This is not a stored split.",
                f"It should have 'parts' with the names {', '.join(SPLIT_PARTS[:-1])}.",
                "Make it again.",
            )
        try:
            found = {part: np.sort(data.positions(keys)) for part, keys in dict[str, Any](parts).items()}
        except EffaceError as error:
            raise EffaceError(
                "The stored split does not fit the data.",
                error.what,
                "Load the data that the split was made from, with the same source and the same options.",
            ) from error
        split = Split(**found, provenance=dict(stored.get("provenance", {})))
        split.check(len(data))
        return split

    def save(self, folder: Path, data: Data) -> None:
        """Write the split into a run folder, by keys."""
        write_text(folder / SPLIT, json.dumps(self.to_dict(data)), private=True)

    @staticmethod
    def load(folder: Path, data: Data) -> Split:
        """Read what :meth:`save` wrote; raise if it is damaged or does not fit the data."""
        return Split.from_dict(data, read_split(folder))


def read_split(folder: Path) -> dict[str, Any]:
    """Read the ``split.json`` of a run folder or of a plan of references, by keys and without the data."""
    path = Path(folder) / SPLIT
    stored = read_json(path, "split")
    if not isinstance(stored.get("parts"), dict) or "forget" not in stored["parts"]:
        raise EffaceError(f"{path} is not a split.", "It has no parts.", "Restore it, or make it again.")
    return stored


def partition(
    data: Data,
    *,
    train: float | None = None,
    valid: float = 0.1,
    holdout: float = 0.1,
    test: float | None = None,
    canaries: str | None = None,
    seed: int = 0,
) -> Split:
    """Divide the data into training examples (``retain``) and never-trained parts; ``forget`` is empty.

    Sizes are counts, or fractions (a number with a decimal point, up to 1.0) of the examples they are drawn from. These
    are the official training set if there is one, else all examples. The draw is stratified by class and depends only
    on the keys and ``seed``, not on the order of the data. A larger ``train`` keeps the examples of a smaller one and
    leaves all other parts as they are.

    Args:
        data: The data set.
        train: Size of ``retain``; by default everything that the other parts leave.
        valid: Size of ``valid``.
        holdout: Size of ``holdout``.
        test: Size of ``test``. It is drawn from the official test set if there is one, and all of it by default; else
            by default a tenth of all examples.
        canaries: Folder of a canary plan. In addition to the sizes, included canaries are trained on, and excluded
            ones are part of the holdout.
        seed: Seed of the draw.

    Raises:
        EffaceError: The sizes are invalid or do not fit the data.

    """
    has_official_test = data.official is not None and bool((data.official == "test").any())
    pool = np.flatnonzero(data.official == "train") if has_official_test else np.arange(len(data))
    included, excluded = (
        (_no_positions(), _no_positions()) if canaries is None else locate_canaries(Path(canaries), data.keys)
    )
    pool = np.setdiff1d(pool, np.concatenate([included, excluded]))
    parts: dict[str, Any] = {}
    if has_official_test:
        official_test = np.setdiff1d(np.flatnonzero(data.official == "test"), np.concatenate([included, excluded]))
        size = _count("test", 1.0 if test is None else test, len(official_test))
        parts["test"] = np.sort(_shuffle(data, official_test, seed)[:size])
    sizes = {} if has_official_test else {"test": _count("test", 0.1 if test is None else test, len(pool))}
    sizes |= {"holdout": _count("holdout", holdout, len(pool)), "valid": _count("valid", valid, len(pool))}
    rest = len(pool) - sum(sizes.values())
    # The training examples come last, so that changing their number moves no other part.
    sizes["retain"] = rest if train is None else _count("train", train, len(pool))
    if not 1 <= sizes["retain"] <= rest:
        raise _too_few_error(data, len(pool), sizes, has_official_test, train is None)
    order = _shuffle(data, pool, seed)
    for name, size in sizes.items():
        parts[name], order = np.sort(order[:size]), order[size:]
    parts["retain"] = np.union1d(parts["retain"], included)
    parts["holdout"] = np.union1d(parts["holdout"], excluded)
    return _with_provenance(Split(**parts), selector=None, seed=seed, random=True, matched=None, warnings=[])


def partition_around_training(
    data: Data, trained: str, *, valid: float = 0.1, holdout: float = 0.1, test: float = 0.1, seed: int = 0
) -> Split:
    """Divide the data around what a checkpoint was already trained on; ``forget`` is empty.

    Args:
        data: The data set.
        trained: A selector of the training examples, as in :func:`select_forget_set`.
        valid: Size of ``valid``: a count, or a fraction of the examples that were not trained on.
        holdout: Size of ``holdout``.
        test: Size of ``test``.
        seed: Seed of the draw.

    Raises:
        EffaceError: The sizes ask for more examples than were not trained on.

    """
    seen = np.sort(resolve_selector(data, np.arange(len(data)), {}, trained, seed).positions)
    rest = np.setdiff1d(np.arange(len(data)), seen)
    sizes = {"test": _count("test", test, len(rest)), "holdout": _count("holdout", holdout, len(rest))}
    sizes |= {"valid": _count("valid", valid, len(rest))}
    if sum(sizes.values()) > len(rest):
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise EffaceError(
            f"{data.name} has {len(rest)} examples besides the {len(seen)} trained ones, but {sum(sizes.values())} "
            "are requested.",
            f"These parts must not have been trained on: {shown}.",
            "Set smaller split.valid, split.holdout and split.test, or add more data.",
        )
    order = _shuffle(data, rest, seed)
    parts: dict[str, Any] = {"retain": seen}
    for name, size in sizes.items():
        parts[name], order = np.sort(order[:size]), order[size:]
    return _with_provenance(Split(**parts), selector=None, seed=seed, random=True, matched=None, warnings=[])


def select_matched_valid(split: Split, data: Data) -> np.ndarray:
    """Select the ``valid`` examples of the classes or groups of F.

    Returns:
        Their positions. All of ``valid`` if F is a random draw, if fewer than two examples match, or if the data has
        neither labels nor groups.

    """
    kinds = {"class": data.y, "group": data.group}.get(str(split.provenance.get("matched")))
    if kinds is None:
        return split.valid
    same = split.valid[np.isin(kinds[split.valid], np.unique(kinds[split.forget]))]
    return same if len(same) >= 2 else split.valid


def select_forget_set(
    split: Split, data: Data, selector: str, seed: int = 0, *, allow_duplicates: bool = False
) -> Split:
    """Move the selected training examples from ``retain`` to ``forget``, and match the holdout to them.

    A random F is compared with the whole holdout. Any other F is compared with the holdout examples of its classes (of
    its groups, if it was selected by group) in the same proportions; the rest of the holdout goes to ``spare``. What
    earlier requests took out of training stays out of it, in ``earlier``.

    Args:
        split: The split to start from.
        data: The data set.
        selector: The path of a .txt, .csv, .json or .jsonl of keys; ``@keys:a,b``; ``@class:5`` or ``@class:name``;
            ``@group:g``; ``@random:0.1`` (of the training examples) or ``@random:50``. The same selector and ``seed``
            select the same keys in any order of the data.
        seed: Seed of a random selection and of the matching.
        allow_duplicates: Warn about exact copies of listed examples that would stay in training; by default they are an
            error.

    Raises:
        EffaceError: The selector is invalid, no holdout example matches, or exact copies would stay in training.

    Example:
        >>> split = select_forget_set(partition(data), data, "@random:0.1")

    """
    elsewhere = {part: getattr(split, part) for part in NEVER_TRAINED}
    earlier = np.sort(np.concatenate([split.earlier, split.forget]))
    chosen = resolve_selector(data, split.retain, {**elsewhere, "an earlier request": earlier}, selector, seed)
    positions = np.sort(chosen.positions)
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    holdout, matched, warnings = match_holdout(data, positions, pool, chosen, seed)
    result = replace(
        split,
        forget=positions,
        retain=np.setdiff1d(split.retain, positions),
        holdout=holdout,
        spare=np.setdiff1d(pool, holdout),
        earlier=earlier,
    )
    copies = find_duplicates(data, result)
    if chosen.listed and not allow_duplicates:
        refuse_copies(copies)
    warnings += describe_copies(copies)
    if len(earlier):
        warnings.append(f"{len(earlier)} examples of earlier requests stay out of training.")
    result = _with_provenance(
        result,
        selector=selector,
        seed=seed,
        random=chosen.random,
        matched=matched,
        warnings=warnings,
        copies=[vars(copy) for copy in copies[:LISTED]],
        **({"earlier": _list_requests(split)} if len(earlier) else {}),
    )
    result.check(len(data))
    return result


def merge_requests(split: Split, data: Data) -> Split:
    """Merge the forget sets of the last request and all earlier ones into one.

    The holdout is matched to the merged forget set; a union of random draws is a random draw. The other parts, and so
    the retained examples, stay the same. A split with a single request is returned as it is.
    """
    if not len(split.earlier):
        return split
    requests = _list_requests(split)
    positions = np.sort(np.concatenate([split.earlier, split.forget]))
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    grouped = any(request["matched"] == "group" for request in requests)
    chosen = Selection(positions, random=all(request["random"] for request in requests), by_group=grouped)
    holdout, matched, warnings = match_holdout(data, positions, pool, chosen, split.provenance["seed"])
    merged = replace(
        split, forget=positions, earlier=_no_positions(), holdout=holdout, spare=np.setdiff1d(pool, holdout)
    )
    return _with_provenance(
        merged,
        selector=", then ".join(str(request["selector"]) for request in requests),
        seed=split.provenance["seed"],
        random=chosen.random,
        matched=matched,
        warnings=warnings,
    )


def _list_requests(split: Split) -> list[dict[str, Any]]:
    """List all requests so far, oldest first: selector, whether it was random, how it was matched, and its size."""
    provenance = split.provenance
    last = {key: provenance.get(key) for key in ("selector", "random", "matched")} | {"count": len(split.forget)}
    return [*provenance.get("earlier", ()), *([last] if len(split.forget) else [])]


def find_duplicates(data: Data, split: Split) -> list[Duplicate]:
    """Find exact and near copies of the forgotten examples in all other parts; see :mod:`efface.data.duplicates`."""
    others = ("retain", *NEVER_TRAINED)
    return find_copies(data, split.forget, {part: getattr(split, part) for part in others})


def _count(name: str, size: float, available: int) -> int:
    """Convert a size, a count or a fraction up to 1.0 of what is available, to a count."""
    is_count = float(size).is_integer() and not (isinstance(size, float) and size == 1.0)
    if isinstance(size, bool) or not size >= 0 or (size > 1 and not is_count):
        raise EffaceError(f"split.{name} cannot be {size}.", "A size is a fraction (0.1) or a count (500).")
    count = int(size) if is_count else round(size * available)
    if count > available:
        raise EffaceError(f"split.{name} asks for {count} examples.", f"There are {available} to draw from.")
    return count


def _shuffle(data: Data, positions: np.ndarray, seed: int) -> np.ndarray:
    """Shuffle the positions into the order in which the parts take them, stratified by class."""
    strata = None if data.y is None else data.y[positions]
    return positions[shuffle_by_key(data.keys[positions], strata, seed, "partition")]


def _too_few_error(
    data: Data, available: int, sizes: Mapping[str, int], has_official_test: bool, takes_rest: bool
) -> EffaceError:
    requested = {("train" if name == "retain" else name): size for name, size in sizes.items()}
    if takes_rest:
        requested["train"] = 1
    listed = ", ".join(f"{name} {size}" for name, size in requested.items())
    kind = "official training examples" if has_official_test else "examples"
    return EffaceError(
        f"{available} {kind} of {data.name} are too few for this split.",
        f"It asks for {listed}{' or more' if takes_rest else ''}.",
        f"Ask for less in {', '.join(f'split.{name}' for name in requested)}, or raise data.limit if it is set.",
    )


def _with_provenance(split: Split, **facts: Any) -> Split:
    return replace(split, provenance={**facts, "sizes": split.sizes()})
