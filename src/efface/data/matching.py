"""Match the holdout to the forget set F: non-members with the same mix of classes or groups. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data, shuffle_by_key
from efface.data.selection import Selection
from efface.errors import EffaceError

MISMATCH = 0.05
"""Largest total variation distance between the mix of a matched holdout and that of F without a warning."""
ENOUGH = 100
"""A matched holdout is not made smaller than this to get exact proportions."""
FEWEST_OF_GROUP = 30
"""With fewer unseen examples of the forgotten groups, the holdout is matched by class instead."""


def match_holdout(
    data: Data, chosen: np.ndarray, pool: np.ndarray, how: Selection, seed: int
) -> tuple[np.ndarray, str | None, list[str]]:
    """Select the holdout examples that F is compared with.

    Args:
        data: The data set.
        chosen: Positions of F.
        pool: Positions of all examples that F may be compared with.
        how: How F was selected.
        seed: Seed of the draw.

    Returns:
        The positions of the holdout, what it was matched by (``group``, ``class`` or None), and warnings. A random F,
        or data without labels and groups, gets the whole pool.

    Raises:
        EffaceError: F was chosen by class, and the pool has no example of its classes.

    """
    if not len(pool):
        return pool, None, ["The split has no holdout: whether the examples were forgotten cannot be audited."]
    if how.random:
        return pool, None, []
    if how.by_group and data.group is not None:
        return _match_group(data, chosen, pool, seed)
    if data.y is None:
        lacking = "neither labels nor groups" if data.group is None else "no labels"
        unmatched = (
            f"The data has {lacking} to match the holdout by: any other difference between the forgotten "
            "examples and the holdout will look like memorization."
        )
        return pool, None, [unmatched]
    holdout, short = _draw_in_proportion(data.keys, data.y, chosen, pool, seed)
    if not len(holdout):
        raise EffaceError(
            f"None of the {len(pool)} holdout examples is of a class to be forgotten.",
            "An audit compares the forgotten examples with never-trained ones of the same classes or groups.",
            "Pretrain with a larger split.holdout.",
        )
    return holdout, "class", [_describe_shortage(data, "class", short)] if short else []


def find_companions(data: Data, chosen: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """Find the examples of a pool that are of the groups of F, such as unseen pictures of the same person.

    Args:
        data: The data set.
        chosen: Positions of F.
        pool: Positions to search.

    Returns:
        Positions, sorted; none if the data has no groups.

    """
    if data.group is None:
        return np.empty(0, np.int64)
    return np.sort(pool[np.isin(data.group[pool], np.unique(data.group[chosen]))])


def _match_group(
    data: Data, chosen: np.ndarray, pool: np.ndarray, seed: int
) -> tuple[np.ndarray, str | None, list[str]]:
    """Match by group where there are enough unseen examples of F's groups, else by class, else not at all.

    What is of F's groups and too little to compare with stays out of the holdout: it is observed apart.
    """
    assert data.group is not None
    companions = find_companions(data, chosen, pool)
    if len(companions) >= FEWEST_OF_GROUP:
        holdout, short = _draw_in_proportion(data.keys, data.group, chosen, companions, seed)
        if len(holdout) >= FEWEST_OF_GROUP:
            return holdout, "group", [_describe_shortage(data, "group", short)] if short else []
    others = np.setdiff1d(pool, companions)
    few = (
        f"The holdout has {len(companions) or 'no'} example{'s' if len(companions) != 1 else ''} of the forgotten group"
    )
    apart = " They are reported apart." if len(companions) else ""
    if data.y is not None and len(others):
        holdout, short = _draw_in_proportion(data.keys, data.y, chosen, others, seed)
        if len(holdout) >= min(FEWEST_OF_GROUP, len(others)):
            notes = [f"{few}: it was matched by class, not by group.{apart}"]
            return holdout, "class", notes + ([_describe_shortage(data, "class", short)] if short else [])
        few += f", and {len(holdout)} of its classes"
    if not len(others):
        return companions, "group", [f"{few}, and no others: the audit can hardly decide."]
    mixed = f"{few}: it was matched neither by group nor by class. Any other difference between it and the forgotten "
    return others, None, [f"{mixed}will look like memorization.{apart}"]


def _draw_in_proportion(
    keys: np.ndarray, values: np.ndarray, chosen: np.ndarray, pool: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[Any, int]]:
    """Draw by key the largest part of the pool that has F's proportions of ``values``.

    Proportions are kept to within ``MISMATCH``, unless that would leave fewer than ``ENOUGH`` examples (or fewer than F
    has). In that case the second result holds each value that the pool has too few of, and how many it has.
    """
    wanted, counts = np.unique(values[chosen], return_counts=True)
    available = np.array([(values[pool] == value).sum() for value in wanted])

    def sizes(scale: float) -> np.ndarray:
        return np.minimum(available, np.maximum(1, np.floor(scale * counts + 0.5))).astype(np.int64)

    def mismatch(scale: float) -> float:
        share = sizes(scale) / max(1, sizes(scale).sum())
        return float(np.abs(share - counts / counts.sum()).sum() / 2)

    fitting = [scale for scale in np.unique(available / counts) if scale > 0 and mismatch(scale) <= MISMATCH]
    scale = max([*fitting, min(len(chosen), ENOUGH) / len(chosen)])
    short: dict[Any, int] = {}
    if mismatch(scale) > MISMATCH:
        lacking = sizes(scale) < np.floor(scale * counts + 0.5)
        short = dict(zip(wanted[lacking].tolist(), available[lacking].tolist(), strict=True))
    members = {value: pool[values[pool] == value] for value in wanted.tolist()}
    drawn = [
        rows[shuffle_by_key(keys[rows], None, seed, "match")[:count]]
        for rows, count in zip(members.values(), sizes(scale), strict=True)
    ]
    return np.sort(np.concatenate(drawn)), short


def _describe_shortage(data: Data, by: str, short: Mapping[Any, int]) -> str:
    """Write the warning that the holdout does not have F's mix."""
    names = {value: data.classes[value] if by == "class" and value != UNKNOWN_LABEL else str(value) for value in short}
    listed = ", ".join(f"'{names[value]}' ({have})" for value, have in list(short.items())[:5])
    kind = "groups" if by == "group" else "classes"
    return (
        f"The holdout has too few examples of {len(short)} of the forgotten {kind} to match their mix: "
        f"{listed}{', ...' if len(short) > 5 else ''}. The rest of the mix was matched."
    )
