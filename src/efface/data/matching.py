"""The non-members that F is compared with: the holdout in F's own mix of classes or groups. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data, shuffle_by_key
from efface.data.selectors import Selection
from efface.errors import EffaceError

MISMATCH = 0.05
"""Share of a matched holdout that may differ from F's mix (total variation) before it is worth a warning."""
ENOUGH = 100
"""A matched holdout of so many is not made smaller for the sake of exact proportions."""


def matched_holdout(
    data: Data, chosen: np.ndarray, pool: np.ndarray, how: Selection, seed: int
) -> tuple[np.ndarray, str | None, list[str]]:
    """The holdout for F, by what it was matched (``group``, ``class`` or None), and what to warn of.

    ``chosen``: positions of F; ``pool``: of all that may be compared with it. All of the pool for a random F or where
    nothing is known of the kinds; raises where the pool has none of F's kind.
    """
    if not len(pool):
        return (
            pool,
            None,
            ["The split has no holdout: whether the examples were forgotten cannot be audited."],
        )
    if how.random:
        return pool, None, []
    tried: dict[str, np.ndarray] = {}
    if how.by_group and data.group is not None:
        tried["group"] = data.group
    if data.y is not None:
        tried["class"] = data.y
    warnings: list[str] = []
    for by, values in tried.items():
        holdout, short = _proportional(data.keys, values, chosen, pool, seed)
        if len(holdout):
            return holdout, by, warnings + ([_shortage(data, by, short)] if short else [])
        warnings.append(f"The holdout has no example of the forgotten {by}: it could not be matched by {by}.")
    if tried:
        raise EffaceError(
            f"None of the {len(pool)} holdout examples is of a class to be forgotten.",
            "An audit compares the forgotten with never-trained examples of the same kind.",
            "Pretrain with a larger split.holdout.",
        )
    unmatched = (
        "The data has neither labels nor groups to match the holdout by: whatever else sets the forgotten "
        "examples apart from it will look like memory."
    )
    return pool, None, [unmatched]


def _proportional(
    keys: np.ndarray, values: np.ndarray, chosen: np.ndarray, pool: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[Any, int]]:
    """As much of the pool as keeps F's proportions of ``values``, drawn by key.

    Proportions are kept to within ``MISMATCH`` of the examples, unless that would leave fewer than ``ENOUGH``
    (or than F has); then second: each value that the pool has too few of, and how many it has.
    """
    wanted, counts = np.unique(values[chosen], return_counts=True)
    there = np.array([(values[pool] == value).sum() for value in wanted])

    def taken(times: float) -> np.ndarray:
        return np.minimum(there, np.maximum(1, np.floor(times * counts + 0.5))).astype(np.int64)

    def mismatch(times: float) -> float:
        share = taken(times) / max(1, taken(times).sum())
        return float(np.abs(share - counts / counts.sum()).sum() / 2)

    fitting = [times for times in np.unique(there / counts) if times > 0 and mismatch(times) <= MISMATCH]
    times = max([*fitting, min(len(chosen), ENOUGH) / len(chosen)])
    short: dict[Any, int] = {}
    if mismatch(times) > MISMATCH:
        lacking = taken(times) < np.floor(times * counts + 0.5)
        short = dict(zip(wanted[lacking].tolist(), there[lacking].tolist(), strict=True))
    members = {value: pool[values[pool] == value] for value in wanted.tolist()}
    drawn = [
        rows[shuffle_by_key(keys[rows], None, seed, "match")[:count]]
        for rows, count in zip(members.values(), taken(times), strict=True)
    ]
    return np.sort(np.concatenate(drawn)), short


def _shortage(data: Data, by: str, short: Mapping[Any, int]) -> str:
    """The warning that the holdout does not have F's mix."""
    names = {value: data.classes[value] if by == "class" and value != UNKNOWN_LABEL else str(value) for value in short}
    listed = ", ".join(f"'{names[value]}' ({have})" for value, have in list(short.items())[:5])
    kind = "groups" if by == "group" else "classes"
    return (
        f"The holdout has too few examples of {len(short)} of the forgotten {kind} to match their mix: "
        f"{listed}{', ...' if len(short) > 5 else ''}. The rest of the mix was matched."
    )
