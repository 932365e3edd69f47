"""Match the holdout to the forget set F: non-members with the same mix of classes or groups. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from efface.data.dataset import UNKNOWN_LABEL, Data, shuffle_by_key
from efface.data.selectors import Selection
from efface.errors import EffaceError

MISMATCH = 0.05
"""Largest total variation distance between the mix of a matched holdout and that of F without a warning."""
ENOUGH = 100
"""A matched holdout is not made smaller than this to get exact proportions."""


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
        EffaceError: The pool has no example of F's classes or groups.

    """
    if not len(pool):
        return pool, None, ["The split has no holdout: whether the examples were forgotten cannot be audited."]
    if how.random:
        return pool, None, []
    criteria: dict[str, np.ndarray] = {}
    if how.by_group and data.group is not None:
        criteria["group"] = data.group
    if data.y is not None:
        criteria["class"] = data.y
    warnings: list[str] = []
    for by, values in criteria.items():
        holdout, short = _draw_in_proportion(data.keys, values, chosen, pool, seed)
        if len(holdout):
            return holdout, by, warnings + ([_describe_shortage(data, by, short)] if short else [])
        warnings.append(f"The holdout has no example of the forgotten {by}: it could not be matched by {by}.")
    if criteria:
        raise EffaceError(
            f"None of the {len(pool)} holdout examples is of a class to be forgotten.",
            "An audit compares the forgotten examples with never-trained ones of the same classes or groups.",
            "Pretrain with a larger split.holdout.",
        )
    unmatched = (
        "The data has neither labels nor groups to match the holdout by: any other difference between the "
        "forgotten examples and the holdout will look like memorization."
    )
    return pool, None, [unmatched]


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
