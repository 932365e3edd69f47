"""What looks at unseen examples found while a method ran, and what a search among methods tried. No torch.

Made by :mod:`efface.unlearning.early_stopping` and :mod:`efface.unlearning.search`, kept with the checkpoint, told by the record and the report.
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
    """Why no further step was taken."""

    MATCHED = "matched"
    OVER = "over"
    BUDGET = "budget"
    ENDED = "ended"
    """The method came to its own end."""
    BLIND = "blind"
    """The looks saw nothing at the start."""
    DIVERGED = "diverged"
    """The loss was no longer finite; the state given back is from before."""


@dataclass(frozen=True)
class StoppingCheck:
    """What one look saw."""

    step: int
    """Optimizer steps taken before it."""
    forget: Mapping[str, tuple[float, float, float]]
    """By space: AUC of F against V and its interval at this look's level."""
    retain: Mapping[str, float]
    """By space: AUC of R against V."""
    distance: float
    """From F like V and R as before; lower is better, 0 is both."""


@dataclass(frozen=True)
class StoppingResult:
    """How a run with looks ended."""

    reason: StopReason
    reached: bool
    """Whether no interval of the state given back shows a difference, its AUCs lie within δ, and R within `spare`."""
    step: int
    """Optimizer steps of the state that was given back."""
    taken: int
    """Optimizer steps that were taken in all."""
    unseen: int
    """Examples of V that were looked at."""
    delta: float
    looks: tuple[StoppingCheck, ...]
    """The first is of the checkpoint as received."""

    @property
    def blind(self) -> bool:
        """Whether the looks saw nothing at the start, so that no others were taken."""
        return len(self.looks) < 2

    @property
    def distance(self) -> float:
        """Of the state given back; of the start where nothing else was looked at."""
        return min((look.distance for look in self.looks[1:]), default=self.looks[0].distance)


@dataclass(frozen=True)
class Trial:
    """One method that a search tried."""

    method: Mapping[str, Any]
    """Name and settings."""
    stopped: StoppingResult


@dataclass(frozen=True)
class SearchHistory:
    """What was tried within a budget, and which trial was taken."""

    budget: int
    """Optimizer steps that all trials together might take."""
    taken: int
    """Optimizer steps that they took."""
    chosen: int
    """Position of the trial that was given back."""
    trials: tuple[Trial, ...]

    @property
    def reached_goal(self) -> bool:
        """Whether the trial given back reached the goal, by the looks."""
        return self.trials[self.chosen].stopped.reached


def as_dict(found: StoppingResult | SearchHistory) -> dict[str, Any]:
    """JSON-able."""
    return TypeAdapter(type(found)).dump_python(found, mode="json")


def from_dict(kind: type[_T], value: Mapping[str, Any] | None) -> _T | None:
    """What :func:`as_dict` made; None stays None."""
    return None if value is None else TypeAdapter(kind).validate_python(value)


def describe_stopping(stopped: StoppingResult) -> str:
    """How a run ended, in plain words."""
    if stopped.blind:
        return (
            f"The {stopped.unseen} unseen examples could not tell when to stop: before unlearning, the forgotten "
            f"examples did not stand out from them. The method took its {stopped.taken} steps unguided."
        )
    why = {
        StopReason.MATCHED: f"the forgotten examples were shown to be within {stopped.delta:g} of the unseen ones",
        StopReason.OVER: "the forgotten examples began to stand out below the unseen ones",
        StopReason.BUDGET: "its budget of steps was used up",
        StopReason.ENDED: "the method came to its own end",
        StopReason.DIVERGED: "the loss was no longer finite",
    }[stopped.reason]
    met = "reached" if stopped.reached else "not reached"
    return (
        f"Unlearning stopped after {stopped.taken} steps: {why}. Given back is the state after {stopped.step} steps, "
        f"the nearest of {len(stopped.looks) - 1} looks to the goal (distance {stopped.distance:.3f}, at the start "
        f"{stopped.looks[0].distance:.3f}). By these looks the goal was {met}; only the audit, on other examples, can "
        "say whether it was."
    )


def describe_trial(number: int, trial: Trial) -> str:
    """One trial of a search."""
    stopped = trial.stopped
    lr = (trial.method.get("optim") or {}).get("lr")
    strength = "" if lr is None else f" at lr {lr:g}"
    begun = f"trial {number}: {trial.method['name']}{strength}: {stopped.taken} steps"
    if stopped.blind:
        return f"{begun}, unguided"
    met = "met the bar" if stopped.reached else "did not meet the bar"
    return f"{begun}, {stopped.reason}, distance {stopped.distance:.3f}, {met}"


def describe_search(search: SearchHistory) -> str:
    """How a search ended, in plain words."""
    best, count = search.trials[search.chosen], len(search.trials)
    tried = "one trial" if count == 1 else f"{count} trials"
    spent = f"{search.taken} of at most {search.budget} steps"
    name = best.method["name"]
    if search.reached_goal:
        return f"{name} met the bar on unseen examples ({tried}, {spent})."
    if best.stopped.blind:
        return (
            f"Nothing could be chosen by unseen examples: the forgotten ones did not stand out from them before "
            f"unlearning. {name}, the first of the list, ran unguided ({spent})."
        )
    return (
        f"Nothing met the bar on unseen examples within {spent} ({tried}). Given back is the nearest, {name}, at a "
        f"distance of {best.stopped.distance:.3f} (at the start {best.stopped.looks[0].distance:.3f})."
    )


def find_best_trial(trials: Sequence[Trial]) -> int:
    """Position of the best trial: one that reached the goal before any other, then the smallest distance."""
    if not trials:
        raise ValueError("no trials")

    def merit(position: int) -> tuple[bool, float]:
        stopped = trials[position].stopped
        return not stopped.reached, math.inf if stopped.blind else stopped.distance

    return min(range(len(trials)), key=merit)
