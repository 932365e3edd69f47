"""Split: which examples are trained on, which are to be forgotten, and which no training ever sees. numpy
only."""

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
from efface.data.matching import matched_holdout
from efface.data.selectors import Selection, resolve_selector
from efface.errors import EffaceError
from efface.files import SPLIT, read_json, write_text

EARLIER = "earlier"
SPLIT_PARTS = ("forget", "retain", "valid", "holdout", "spare", "test", EARLIER)
NEVER_TRAINED = ("valid", "holdout", "spare", "test")
LISTED = 1000
"""How many copies of forgotten examples are kept by name."""


def _none() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint parts of one Data, each as sorted positions (int64)."""

    forget: np.ndarray = field(default_factory=_none)
    """F: trained on, and to be forgotten."""
    retain: np.ndarray = field(default_factory=_none)
    """R: trained on, and kept."""
    valid: np.ndarray = field(default_factory=_none)
    """V: never trained on; methods may see it."""
    holdout: np.ndarray = field(default_factory=_none)
    """H: never trained on, for the audit alone: the non-members that F is compared with, of F's own mix."""
    spare: np.ndarray = field(default_factory=_none)
    """The other never-trained holdout examples; empty when F is a random draw."""
    test: np.ndarray = field(default_factory=_none)
    """Never trained on; utility is measured here."""
    earlier: np.ndarray = field(default_factory=_none)
    """Forgotten by earlier requests: in no training any more, and no non-members either."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """``selector``, ``seed``, ``random``, ``matched`` (``class``, ``group`` or None), ``sizes``,
    ``warnings``; after a forget request also ``copies``, the first of them with their keys; after several
    ``earlier``: ``selector``, ``random``, ``matched`` and ``count`` of each request before the last."""

    @property
    def train(self) -> np.ndarray:
        """What the original is trained on: forget and retain, sorted."""
        return np.sort(np.concatenate([self.forget, self.retain]))

    def sizes(self) -> dict[str, int]:
        """Examples per part; ``earlier`` only where there are any."""
        counts = {part: len(getattr(self, part)) for part in SPLIT_PARTS}
        return counts if len(self.earlier) else {part: n for part, n in counts.items() if part != EARLIER}

    def check(self, n: int) -> None:
        """Raise unless the parts are sorted, within ``n`` examples and share none."""
        every = np.concatenate([getattr(self, part) for part in SPLIT_PARTS])
        if len(every) and (every.min() < 0 or every.max() >= n):
            raise EffaceError(
                f"The split names position {every.max() if every.max() >= n else every.min()}.",
                f"The data has {n} examples.",
            )
        for part in SPLIT_PARTS:
            positions = getattr(self, part)
            if (np.diff(positions) <= 0).any():
                raise EffaceError(f"The positions of {part} are not sorted, or one is there twice.")
        for number, one in enumerate(SPLIT_PARTS):
            for other in SPLIT_PARTS[number + 1 :]:
                shared = np.intersect1d(getattr(self, one), getattr(self, other))
                if len(shared):
                    raise EffaceError(
                        f"{one} and {other} share {len(shared)} examples.",
                        "What was trained on cannot also stand for what was not.",
                    )

    def digest(self, data: Data) -> str:
        """SHA-256 (hexadecimal) of the keys of every part, whatever the order of the data."""
        whole = hashlib.sha256()
        for part in self.sizes():
            keys = sorted(data.keys[getattr(self, part)].tolist())
            whole.update("\0".join([part, str(len(keys)), *keys, ""]).encode())
        return whole.hexdigest()

    def to_dict(self, data: Data) -> dict[str, Any]:
        """The split by keys, ready for JSON."""
        parts = {part: data.keys[getattr(self, part)].tolist() for part in self.sizes()}
        return {"parts": parts, "provenance": self.provenance}

    @staticmethod
    def from_dict(data: Data, stored: Mapping[str, Any]) -> Split:
        """What :meth:`to_dict` gave, found again in ``data`` by key; raises where keys are missing."""
        parts: Any = stored.get("parts")
        if not isinstance(parts, Mapping) or set(parts) | {EARLIER} != set(SPLIT_PARTS):
            raise EffaceError(
                "This is not a stored split.",
                f"It should have 'parts' called {', '.join(SPLIT_PARTS[:-1])}.",
                "Make it again.",
            )
        try:
            found = {part: np.sort(data.positions(keys)) for part, keys in dict[str, Any](parts).items()}
        except EffaceError as error:
            raise EffaceError(
                "The stored split does not fit the data.",
                error.what,
                "Load the data that the split was made with: same source, same options.",
            ) from error
        split = Split(**found, provenance=dict(stored.get("provenance", {})))
        split.check(len(data))
        return split

    def save(self, folder: Path, data: Data) -> None:
        """Write it into a run folder, by keys."""
        write_text(folder / SPLIT, json.dumps(self.to_dict(data)))

    @staticmethod
    def load(folder: Path, data: Data) -> Split:
        """What :meth:`save` wrote; raises where it is damaged or does not fit the data."""
        return Split.from_dict(data, read_split(folder))


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
    """Divide the data into what is trained on (``retain``) and what never is; ``forget`` is empty.

    Sizes are counts, or fractions (a number with a point, up to 1.0) of the examples they are drawn from: the
    official training part where there is one, else everything; ``test`` of the official test part where there
    is one, of which the default takes all (else a tenth of everything). ``train`` takes all that the others
    leave. ``canaries``: the folder of a plan; on top of the sizes, included canaries are trained on, and excluded
    ones are part of the holdout. Stratified by class; drawn by key and ``seed``, so that the order of the data does
    not matter, and a larger ``train`` keeps the smaller one's examples and all other parts.
    """
    known = data.official is not None and bool((data.official == "test").any())
    pool = np.flatnonzero(data.official == "train") if known else np.arange(len(data))
    included, excluded = (_none(), _none()) if canaries is None else locate_canaries(Path(canaries), data.keys)
    pool = np.setdiff1d(pool, np.concatenate([included, excluded]))
    parts: dict[str, Any] = {}
    if known:
        tested = np.setdiff1d(np.flatnonzero(data.official == "test"), np.concatenate([included, excluded]))
        size = _count("test", 1.0 if test is None else test, len(tested))
        parts["test"] = np.sort(_order(data, tested, seed)[:size])
    sizes = {} if known else {"test": _count("test", 0.1 if test is None else test, len(pool))}
    sizes |= {"holdout": _count("holdout", holdout, len(pool)), "valid": _count("valid", valid, len(pool))}
    rest = len(pool) - sum(sizes.values())
    # What is trained on comes last in the order: changing its size moves no other part.
    sizes["retain"] = rest if train is None else _count("train", train, len(pool))
    if not 1 <= sizes["retain"] <= rest:
        raise _too_few(data, len(pool), sizes, known, train is None)
    order = _order(data, pool, seed)
    for name, size in sizes.items():
        parts[name], order = np.sort(order[:size]), order[size:]
    parts["retain"] = np.union1d(parts["retain"], included)
    parts["holdout"] = np.union1d(parts["holdout"], excluded)
    return _with_provenance(Split(**parts), selector=None, seed=seed, random=True, matched=None, warnings=[])


def partition_around_training(
    data: Data, trained: str, *, valid: float = 0.1, holdout: float = 0.1, test: float = 0.1, seed: int = 0
) -> Split:
    """Divide the data around what a checkpoint was already trained on; ``forget`` is empty.

    ``trained``: a selector of the training examples, as in :func:`forget`. The other parts are drawn from the rest;
    their sizes are counts, or fractions of that rest.
    """
    own = np.sort(resolve_selector(data, np.arange(len(data)), {}, trained, seed).positions)
    rest = np.setdiff1d(np.arange(len(data)), own)
    sizes = {"test": _count("test", test, len(rest)), "holdout": _count("holdout", holdout, len(rest))}
    sizes |= {"valid": _count("valid", valid, len(rest))}
    if sum(sizes.values()) > len(rest):
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise EffaceError(
            f"{data.name} has {len(rest)} examples beside the {len(own)} trained ones, and {sum(sizes.values())} "
            "are asked for.",
            f"These are never trained on: {shown}.",
            "Set smaller split.valid, split.holdout, split.test, or give more data.",
        )
    order = _order(data, rest, seed)
    parts: dict[str, Any] = {"retain": own}
    for name, size in sizes.items():
        parts[name], order = np.sort(order[:size]), order[size:]
    return _with_provenance(Split(**parts), selector=None, seed=seed, random=True, matched=None, warnings=[])


def select_matched_valid(split: Split, data: Data) -> np.ndarray:
    """Positions of the ``valid`` examples of F's kind: all for a random F, else those of its classes or groups.

    All of them too where fewer than two are of F's kind, or nothing is known of their kind.
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

    ``selector``: the path of a .txt, .csv, .json or .jsonl of keys; ``@keys:a,b``; ``@class:5`` or
    ``@class:name``; ``@group:g``; ``@random:0.1`` (of the training examples) or ``@random:50``. The same
    selector and ``seed`` choose the same keys whatever the order of the data.

    A random F is compared with the whole holdout. Any other is compared with the holdout examples of its
    classes (of its groups, when selected by group) in its own proportions; the rest goes to ``spare``. Copies
    of F that would stay in training are an error where F was listed by key (``allow_duplicates`` makes it a
    warning).

    What earlier requests took out of training stays out of it: it is kept apart, in ``earlier``.
    """
    elsewhere = {part: getattr(split, part) for part in NEVER_TRAINED}
    before = np.sort(np.concatenate([split.earlier, split.forget]))
    chosen = resolve_selector(data, split.retain, {**elsewhere, "an earlier request": before}, selector, seed)
    positions = np.sort(chosen.positions)
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    holdout, matched, warnings = matched_holdout(data, positions, pool, chosen, seed)
    made = replace(
        split,
        forget=positions,
        retain=np.setdiff1d(split.retain, positions),
        holdout=holdout,
        spare=np.setdiff1d(pool, holdout),
        earlier=before,
    )
    found = find_duplicates(data, made)
    if chosen.listed and not allow_duplicates:
        refuse_copies(found)
    warnings += describe_copies(found)
    if len(before):
        warnings.append(f"{len(before)} examples of earlier requests stay out of training.")
    made = _with_provenance(
        made,
        selector=selector,
        seed=seed,
        random=chosen.random,
        matched=matched,
        warnings=warnings,
        copies=[vars(one) for one in found[:LISTED]],
        **({"earlier": _requests(split)} if len(before) else {}),
    )
    made.check(len(data))
    return made


def merge_requests(split: Split, data: Data) -> Split:
    """Everything that was ever to be forgotten as one forget set: the last request's and all earlier ones'.

    The holdout is matched to all of it; a union of random draws is a random draw. Nothing else moves, so what is
    retained is the same. Of a first request it is the split itself.
    """
    if not len(split.earlier):
        return split
    asked = _requests(split)
    positions = np.sort(np.concatenate([split.earlier, split.forget]))
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    grouped = any(one["matched"] == "group" for one in asked)
    chosen = Selection(positions, random=all(one["random"] for one in asked), by_group=grouped)
    holdout, matched, warnings = matched_holdout(data, positions, pool, chosen, split.provenance["seed"])
    made = replace(split, forget=positions, earlier=_none(), holdout=holdout, spare=np.setdiff1d(pool, holdout))
    return _with_provenance(
        made,
        selector=", then ".join(str(one["selector"]) for one in asked),
        seed=split.provenance["seed"],
        random=chosen.random,
        matched=matched,
        warnings=warnings,
    )


def _requests(split: Split) -> list[dict[str, Any]]:
    """What was asked so far, oldest first: each request's selector, how it was matched, how many it was."""
    asked = split.provenance
    last = {key: asked.get(key) for key in ("selector", "random", "matched")} | {"count": len(split.forget)}
    return [*asked.get("earlier", ()), *([last] if len(split.forget) else [])]


def find_duplicates(data: Data, split: Split) -> list[Duplicate]:
    """Exact and near copies of the forgotten examples in every other part; see :mod:`efface.data.duplicates`."""
    others = ("retain", *NEVER_TRAINED)
    return find_copies(data, split.forget, {part: getattr(split, part) for part in others})


def _count(name: str, size: float, available: int) -> int:
    """A size as a count: a fraction up to 1.0 of what is available, or a count."""
    whole = float(size).is_integer() and not (isinstance(size, float) and size == 1.0)
    if isinstance(size, bool) or not size >= 0 or (size > 1 and not whole):
        raise EffaceError(f"split.{name} cannot be {size}.", "A size is a fraction (0.1) or a count (500).")
    count = int(size) if whole else round(size * available)
    if count > available:
        raise EffaceError(f"split.{name} asks for {count} examples.", f"There are {available} to draw from.")
    return count


def _order(data: Data, positions: np.ndarray, seed: int) -> np.ndarray:
    """The positions in the order in which they are given to the parts."""
    strata = None if data.y is None else data.y[positions]
    return positions[shuffle_by_key(data.keys[positions], strata, seed, "partition")]


def _too_few(data: Data, available: int, sizes: Mapping[str, int], known: bool, rest: bool) -> EffaceError:
    asked = {("train" if name == "retain" else name): size for name, size in sizes.items()}
    if rest:
        asked["train"] = 1
    listed = ", ".join(f"{name} {size}" for name, size in asked.items())
    kind = "official training examples" if known else "examples"
    return EffaceError(
        f"{available} {kind} of {data.name} are too few for this split.",
        f"It asks for {listed}{' or more' if rest else ''}.",
        f"Ask for less in {', '.join(f'split.{name}' for name in asked)}, or raise data.limit if it is set.",
    )


def _with_provenance(split: Split, **facts: Any) -> Split:
    return replace(split, provenance={**facts, "sizes": split.sizes()})


__all__ = [
    "NEVER_TRAINED",
    "SPLIT_PARTS",
    "Duplicate",
    "Split",
    "find_duplicates",
    "merge_requests",
    "partition",
    "select_forget_set",
]


def read_split(folder: Path) -> dict[str, Any]:
    """The ``split.json`` of a run folder or of a plan of references, by keys."""
    path = Path(folder) / SPLIT
    stored = read_json(path, "split")
    if not isinstance(stored.get("parts"), dict) or "forget" not in stored["parts"]:
        raise EffaceError(f"{path} is not a split.", "It has no parts.", "Restore it, or make it again.")
    return stored
