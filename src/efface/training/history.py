"""Results of early stopping and of a search among methods, and their descriptions in words. Needs no torch.

Made by :mod:`efface.unlearning.early_stopping` and :mod:`efface.unlearning.search`, saved with the checkpoint, and
shown in the record and the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import TypeAdapter

_T = TypeVar("_T")


class StopReason(StrEnum):
    """Why a method stopped."""

    MATCHED = "matched"
    OVER = "over"
    BUDGET = "budget"
    ENDED = "ended"
    """The method finished by itself."""
    BLIND = "blind"
    """The first check could not tell forget set and unseen examples apart, so there was nothing to guide stopping."""
    DIVERGED = "diverged"
    """The loss was no longer finite; the returned state is an earlier one."""


@dataclass(frozen=True)
class StoppingCheck:
    """One check of a model against unseen examples, while a method runs.

    F, R, V: forget set, retained examples, unseen examples. AUCs are of margins; 1/2: cannot be told apart.
    """

    step: int
    """Optimizer steps taken before the check."""
    forget: Mapping[str, tuple[float, float, float]]
    """For each space: AUC of F against V, and the ends of its confidence interval at the level of this check."""
    retain: Mapping[str, float]
    """For each space: AUC of R against V."""
    distance: float
    """Distance from the goal, F like V and R as before; lower is better, 0 is the goal."""


@dataclass(frozen=True)
class StoppingResult:
    """How a run with early stopping ended."""

    reason: StopReason
    reached: bool
    """Whether the returned state meets the goal: intervals show no difference, AUCs within δ, R within ``spare``."""
    step: int
    """Optimizer steps before the returned state."""
    taken: int
    """Optimizer steps taken in total."""
    unseen: int
    """Number of unseen examples used."""
    delta: float
    """δ: the largest |AUC - 1/2| that counts as equal."""
    looks: tuple[StoppingCheck, ...]
    """All checks in order; the first is of the original checkpoint."""

    @property
    def blind(self) -> bool:
        """Whether the first check could not guide stopping, so that there were no others."""
        return len(self.looks) < 2

    @property
    def distance(self) -> float:
        """Smallest distance of all checks after the first; that of the first if there are no others."""
        return min((look.distance for look in self.looks[1:]), default=self.looks[0].distance)


@dataclass(frozen=True)
class Trial:
    """One method that a search tried."""

    method: Mapping[str, Any]
    """Name and settings of the method."""
    stopped: StoppingResult


@dataclass(frozen=True)
class SearchHistory:
    """The trials of a search within a budget, and which one was chosen."""

    budget: int
    """Largest number of optimizer steps of all trials together."""
    taken: int
    """Optimizer steps that the trials took together."""
    chosen: int
    """Position of the chosen trial."""
    trials: tuple[Trial, ...]

    @property
    def reached_goal(self) -> bool:
        """Whether the chosen trial reached the goal, by its own checks."""
        return self.trials[self.chosen].stopped.reached


def as_dict(found: StoppingResult | SearchHistory) -> dict[str, Any]:
    """Convert to plain values for JSON."""
    return TypeAdapter(type(found)).dump_python(found, mode="json")


def from_dict(kind: type[_T], value: Mapping[str, Any] | None) -> _T | None:
    """Convert back what :func:`as_dict` made; ``None`` stays ``None``."""
    return None if value is None else TypeAdapter(kind).validate_python(value)


def describe_stopping(stopped: StoppingResult) -> str:
    """Describe in words how a run with early stopping ended."""
    if stopped.blind:
        return (
            f"The {stopped.unseen} unseen examples could not tell when to stop: the forgotten examples did not stand "
            f"out from them even before unlearning. The method took its {stopped.taken} steps unguided."
        )
    why = {
        StopReason.MATCHED: f"the forgotten examples were shown to be within {stopped.delta:g} of the unseen ones",
        StopReason.OVER: "the forgotten examples began to stand out below the unseen ones",
        StopReason.BUDGET: "the budget of steps was used up",
        StopReason.ENDED: "the method finished",
        StopReason.DIVERGED: "the loss was no longer finite",
    }[stopped.reason]
    met = "reached" if stopped.reached else "not reached"
    return (
        f"Unlearning stopped after {stopped.taken} steps: {why}. The result is the state after {stopped.step} steps, "
        f"the nearest to the goal of {len(stopped.looks) - 1} checks (distance {stopped.distance:.3f}, at the start "
        f"{stopped.looks[0].distance:.3f}). By these checks the goal was {met}; only the audit, on other examples, can "
        "confirm it."
    )


def describe_trial(number: int, trial: Trial) -> str:
    """Describe one trial of a search in words."""
    stopped = trial.stopped
    lr = (trial.method.get("optim") or {}).get("lr")
    strength = "" if lr is None else f" at lr {lr:g}"
    start = f"trial {number}: {trial.method['name']}{strength}: {stopped.taken} steps"
    if stopped.blind:
        return f"{start}, unguided"
    met = "met the bar" if stopped.reached else "did not meet the bar"
    return f"{start}, {stopped.reason}, distance {stopped.distance:.3f}, {met}"


def describe_search(search: SearchHistory) -> str:
    """Describe in words how a search ended."""
    best, count = search.trials[search.chosen], len(search.trials)
    trials = "one trial" if count == 1 else f"{count} trials"
    steps = f"{search.taken} of at most {search.budget} steps"
    name = best.method["name"]
    if search.reached_goal:
        return f"{name} met the bar on unseen examples ({trials}, {steps})."
    if best.stopped.blind:
        return (
            f"Nothing could be chosen by unseen examples: the forgotten ones did not stand out from them even before "
            f"unlearning. {name}, the first of the list, ran unguided ({steps})."
        )
    return (
        f"Nothing met the bar on unseen examples within {steps} ({trials}). The result is the nearest, {name}, at a "
        f"distance of {best.stopped.distance:.3f} (at the start {best.stopped.looks[0].distance:.3f})."
    )


def find_best_trial(trials: Sequence[Trial]) -> int:
    """Find the position of the best trial: those that reached the goal come first, then the smallest distance wins."""
    if not trials:
        raise ValueError("no trials")

    def rank(position: int) -> tuple[bool, float]:
        stopped = trials[position].stopped
        return not stopped.reached, math.inf if stopped.blind else stopped.distance

    return min(range(len(trials)), key=rank)
