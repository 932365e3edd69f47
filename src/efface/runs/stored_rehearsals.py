"""Read finished rehearsals, check that their files belong together, and repeat some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from efface.auditing.observations import READY, Observations
from efface.auditing.signals import scored_rows
from efface.errors import EffaceError
from efface.runs.rehearsal_plan import BEFORE, TASK, RehearsalPlan
from efface.runs.rehearsals import observe_rehearsal

REPEAT_TOLERANCE = 0.1
"""Largest mean difference of repeated scores in standard deviations: other hardware unlearns a little otherwise, and
another method changes the scores of the forgotten by several times as much."""


def load_rehearsals(plan: RehearsalPlan) -> dict[str, Observations]:
    """Read the scores of all tasks of finished rehearsals, and check that each file is what its name says.

    What is checked needs no model: nobody's mistake passes, but somebody who makes up all files is only found by
    :func:`repeat_rehearsals`.

    Args:
        plan: The plan; all its tasks are finished.

    Raises:
        EffaceError: A file is of another task, of another model, or lists other examples than the rest.

    """
    found = {name: Observations.load(plan.file_of(name)) for name in plan.names}
    for judge in (_contradict_its_name, _contradict_the_others):
        for name in plan.names:
            wrong = judge(plan, name, found)
            if wrong:
                raise EffaceError(
                    f"{plan.file_of(name)} is not a part of these rehearsals.", wrong,
                    "Delete it and rehearse again: what is missing is made anew.",
                )  # fmt: skip
    return found


def _contradict_its_name(plan: RehearsalPlan, name: str, found: Mapping[str, Observations]) -> str:
    """In what a stored file contradicts its name; empty if in nothing."""
    one, own = found[name], plan.file_of(name).stem
    stem = one.meta.get(TASK, own)  # older releases did not say
    if stem != own:
        return f"It was made as {stem}."
    if name == BEFORE and one.model != plan.original:
        return "It holds the scores of another model than the original."
    if name != BEFORE and one.count("retain") and _forgotten(one) & set(one.of("retain", "keys").tolist()):
        return "Examples are both forgotten and retained."
    return ""


def _contradict_the_others(plan: RehearsalPlan, name: str, found: Mapping[str, Observations]) -> str:
    """In what a stored file contradicts the others; empty if in nothing."""
    one, others = found[name], {other: two for other, two in found.items() if other != name}
    if name == BEFORE:
        every = set[str]().union(*map(_forgotten, others.values()))
        return "" if _forgotten(one) == every else "Its examples are not those of all rehearsals together."
    twins = [other for other, two in others.items() if two.model == one.model]
    if twins and one.model != plan.original:  # an unlearning that stopped at once hands the original back
        return f"It is of the same model as {twins[0]}."
    return ""


def _forgotten(observed: Observations) -> set[str]:
    return set(observed.of("forget", "keys").tolist())


def repeat_rehearsals(
    plan: RehearsalPlan, count: int, device: str = "auto", say: Callable[[str], None] = lambda sentence: None
) -> list[str]:
    """Make some finished rehearsals again, drawn at random at each call, and compare their scores with the stored ones.

    Args:
        plan: The plan; all its tasks are finished.
        count: How many to repeat; the original's scores are always compared.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        say: Receives a message after each.

    Returns:
        The names of the tasks that were repeated.

    Raises:
        EffaceError: Stored scores are not what the same task gives now.

    """
    stored = load_rehearsals(plan)
    drawn = np.random.default_rng().permutation([name for name in plan.names if name != BEFORE])[:count].tolist()
    for name in (BEFORE, *sorted(drawn)):
        difference = compare_scores(stored[name], observe_rehearsal(plan, name, device))
        if difference:
            raise EffaceError(
                f"{plan.file_of(name)} holds other scores than the same task gives now: {difference}.",
                "It was changed or made up, or the software or hardware computes very differently.",
                "Do not rely on these rehearsals: make them yourself in another folder (--out).",
            )
        say(f"{Path(plan.file_of(name)).name} was made again and is the same.")
    return [BEFORE, *sorted(drawn)]


def compare_scores(stored: Observations, again: Observations) -> str:
    """Say in what two files of scores differ by more than ``REPEAT_TOLERANCE``; empty if in nothing."""
    if stored.arrays.keys() != again.arrays.keys():
        return f"'{min(stored.arrays.keys() ^ again.arrays.keys())}' is in one of them only"
    for name, value in again.arrays.items():
        held = stored.arrays[name]
        part, _, array = name.partition("/")
        if array.startswith(READY):  # only what has a score can be compared
            rows, own = (scored_rows(one, part, array.removeprefix(READY)) for one in (stored, again))
            if not np.array_equal(rows, own):
                return f"'{name}' is of other examples"
            held, value = held[rows], value[rows]
        if held.shape != value.shape or (value.dtype.kind != "f" and not bool((held == value).all())):
            return f"'{name}' is of other examples"
        if value.dtype.kind == "f" and float(np.abs(held - value).mean()) > REPEAT_TOLERANCE * _spread(again, name):
            return f"'{name}'"
    return ""


def _spread(observed: Observations, name: str) -> float:
    """The standard deviation of a score over never-trained examples, of which there are always enough."""
    score = name.split("/", 1)[1]
    return float(np.nanstd(observed.arrays.get(f"holdout/{score}", observed.arrays[name]))) + 1e-6
