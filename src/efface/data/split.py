"""Splits: which examples to train on, which of them to forget, and which no training ever sees. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.canaries import locate_canaries
from efface.data.dataset import Data, shuffle_by_key
from efface.data.duplicates import Duplicate, describe_copies, find_copies, refuse_copies
from efface.data.matching import match_holdout
from efface.data.selection import Selection, identify_list
from efface.data.selectors import FORGOTTEN, resolve_selector
from efface.data.split_parts import EARLIER, NEVER_TRAINED, SPLIT_PARTS, Split, no_positions, read_split
from efface.errors import EffaceError

LISTED = 1000
"""Largest number of copies of forgotten examples that are stored with their keys."""

ERASED_DRAW = 0
"""Seed of the matching of all requests together where the ids of the last one were erased, and its seed with them: any
will do, but every audit must draw the same holdout."""


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
        (no_positions(), no_positions()) if canaries is None else locate_canaries(Path(canaries), data.keys)
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
    data: Data, trained: str, *, valid: float = 0.1, holdout: float = 0.1, test: float | None = None, seed: int = 0
) -> Split:
    """Divide the data around what a checkpoint was already trained on; ``forget`` is empty.

    Args:
        data: The data set.
        trained: A selector of the training examples, as in :func:`select_forget_set`.
        valid: Size of ``valid``: a count, or a fraction of the examples that were not trained on.
        holdout: Size of ``holdout``.
        test: Size of ``test``; by default everything that the two leave.
        seed: Seed of the draw.

    Raises:
        EffaceError: The sizes ask for more examples than were not trained on.

    """
    seen = np.sort(resolve_selector(data, np.arange(len(data)), {}, trained, seed).positions)
    rest = np.setdiff1d(np.arange(len(data)), seen)
    drawn = {"holdout": _count("holdout", holdout, len(rest)), "valid": _count("valid", valid, len(rest))}
    if test is None:
        sizes = {**drawn, "test": max(0, len(rest) - sum(drawn.values()))}
    else:
        sizes = {"test": _count("test", test, len(rest)), **drawn}
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
    split: Split,
    data: Data,
    selector: str,
    seed: int = 0,
    *,
    allow_duplicates: bool = False,
    skip_never_trained: bool = False,
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
        skip_never_trained: Skip listed examples that were not trained on; by default they are an error. Their keys are
            in the provenance, so that a rebuilt index leaves them out.

    Raises:
        EffaceError: The selector is invalid, no holdout example matches, or exact copies would stay in training.

    Example:
        >>> split = select_forget_set(partition(data), data, "@random:0.1")

    """
    elsewhere = {part: getattr(split, part) for part in NEVER_TRAINED}
    earlier = np.sort(np.concatenate([split.earlier, split.forget]))
    before = split.provenance.get("before", ())
    gone = np.union1d(earlier, np.flatnonzero(np.isin(data.keys, list(before)))) if before else earlier
    chosen, skipped = _choose_trained(
        data, split.retain, {**elsewhere, FORGOTTEN: gone}, selector, seed, skip=skip_never_trained
    )
    result, matched, warnings = move_to_forget(split, data, chosen, seed)
    copies = find_duplicates(data, result)
    if chosen.listed and not allow_duplicates:
        refuse_copies(copies)
    warnings += describe_copies(copies)
    if EARLIER in result.sizes():
        warnings.append(f"{result.sizes()[EARLIER]} examples of earlier requests stay out of training.")
    if before:
        warnings.append(
            f"{len(before)} examples were forgotten before the model came here, and stay out of training: only the new "
            "request is judged here, and the records of the earlier ones judge those."
        )
    if split.absent.get("retain"):
        warnings.append(
            f"{len(split.absent['retain'])} retained examples are not in the data: not trained on any more."
        )
    if len(skipped):
        warnings.append(
            f"{len(skipped)} examples that were asked for, or are of a group to be forgotten, were never trained on: "
            "there is nothing to unlearn; an index rebuilt with `efface embed` leaves them out."
        )
    skipped = sorted({*split.provenance.get("skipped", ()), *data.keys[skipped].tolist()})
    result = _with_provenance(
        result,
        selector=selector,
        seed=seed,
        random=chosen.random,
        matched=matched,
        warnings=warnings,
        copies=[vars(copy) for copy in copies[:LISTED]],
        resolved=chosen.facts(),
        **({"by_group": True} if chosen.by_group else {}),
        **({"earlier": _list_requests(split)} if EARLIER in result.sizes() else {}),
        **({"skipped": skipped} if skipped else {}),
        **({"before": before} if before else {}),
    )
    result.check(len(data))
    return result


def move_to_forget(split: Split, data: Data, chosen: Selection, seed: int) -> tuple[Split, str | None, list[str]]:
    """Move a selection from ``retain`` to ``forget`` and match the holdout to it; the provenance stays as it was.

    Returns:
        The split, what the holdout was matched on, and warnings.

    """
    positions = np.sort(chosen.positions)
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    holdout, matched, warnings = match_holdout(data, positions, pool, chosen, seed)
    moved = replace(
        split,
        forget=positions,
        retain=np.setdiff1d(split.retain, positions),
        holdout=holdout,
        spare=np.setdiff1d(pool, holdout),
        earlier=np.sort(np.concatenate([split.earlier, split.forget])),
        absent=_absent_after_request(split),
    )
    return moved, matched, warnings


def merge_requests(split: Split, data: Data) -> Split:
    """Merge the forget sets of the last request and all earlier ones into one.

    The holdout is matched to the merged forget set; a union of random draws is a random draw. The other parts, and so
    the retained examples, stay the same. A split with a single request is returned as it is. That of a request whose
    ids were erased has no seed any more, which would draw them again: the holdout is drawn by one that tells nothing.
    """
    if EARLIER not in split.sizes():
        return split
    requests = _list_requests(split)
    positions = np.sort(np.concatenate([split.earlier, split.forget]))
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    grouped = any(request["matched"] == "group" or request.get("by_group") for request in requests)
    chosen = Selection(positions, random=all(request["random"] for request in requests), by_group=grouped)
    holdout, matched, warnings = split.holdout, None, []
    if len(positions):  # of examples that are all erased, nothing tells the mix any more
        drawn_by = split.provenance.get("seed", ERASED_DRAW)
        holdout, matched, warnings = match_holdout(data, positions, pool, chosen, drawn_by)
    gone = {**split.absent, "forget": (*split.absent.get(EARLIER, ()), *split.absent.get("forget", ()))}
    merged = replace(
        split,
        forget=positions,
        earlier=no_positions(),
        holdout=holdout,
        spare=np.setdiff1d(pool, holdout),
        absent={part: keys for part, keys in gone.items() if keys and part != EARLIER},
    )
    return _with_provenance(
        merged,
        selector=", then ".join(str(request["selector"]) for request in requests),
        **({"seed": split.provenance["seed"]} if "seed" in split.provenance else {}),
        random=chosen.random,
        matched=matched,
        warnings=warnings,
        **({"by_group": True} if grouped else {}),
    )


def _list_requests(split: Split) -> list[dict[str, Any]]:
    """List all requests so far, oldest first: selector, whether it was random, how it was matched, and its size."""
    provenance = split.provenance
    last = {key: provenance.get(key) for key in ("selector", "random", "matched", "by_group")} | {
        "count": split.sizes()["forget"]
    }
    return [*provenance.get("earlier", ()), *([last] if last["count"] else [])]


def _choose_trained(
    data: Data, trained: np.ndarray, elsewhere: Mapping[str, np.ndarray], selector: str, seed: int, *, skip: bool
) -> tuple[Selection, np.ndarray]:
    """Resolve a selector to training examples, and find what else it asks for that was never trained on.

    Args:
        data: The data set.
        trained: Positions of the training examples.
        elsewhere: Name of a part to positions that cannot be chosen.
        selector: The selector.
        seed: Seed of a random selection.
        skip: Skip listed examples that were not trained on; by default they are an error.

    Returns:
        The training examples, and the positions of the others: those skipped, and members of the selected groups.

    """
    if not (skip and (not selector.startswith("@") or selector.startswith("@keys:"))):
        chosen = resolve_selector(data, trained, elsewhere, selector, seed)
        if not chosen.by_group or chosen.listed or data.group is None:
            return chosen, no_positions()
        members = np.flatnonzero(np.isin(data.group, np.unique(data.group[chosen.positions])))
        return chosen, np.setdiff1d(members, np.concatenate([trained, elsewhere.get(FORGOTTEN, trained)]))
    asked = resolve_selector(data, np.arange(len(data)), {}, selector, seed)
    kept = np.isin(asked.positions, trained)
    if not kept.any() or kept.sum() == len(trained):
        resolve_selector(data, trained, elsewhere, selector, seed)  # raises, with the parts that the examples are in
    positions = asked.positions[kept]
    return identify_list(data, trained, replace(asked, positions=positions)), asked.positions[~kept]


def _absent_after_request(split: Split) -> dict[str, tuple[str, ...]]:
    """The absent keys after a further request: what was trained on and is gone counts as forgotten earlier."""
    gone = [key for part in (EARLIER, "forget", "retain") for key in split.absent.get(part, ())]
    kept = {part: split.absent[part] for part in NEVER_TRAINED if split.absent.get(part)}
    return kept | ({EARLIER: tuple(gone)} if gone else {})


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


__all__ = [
    "EARLIER",
    "NEVER_TRAINED",
    "SPLIT_PARTS",
    "Split",
    "find_duplicates",
    "merge_requests",
    "partition",
    "partition_around_training",
    "read_split",
    "select_forget_set",
    "select_matched_valid",
]
