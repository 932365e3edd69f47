"""How far a verb is, and how long it will still take: one line that replaces the one before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from efface.tasks import Task
from efface.tasks.runner import RunningSteps

Status = Callable[[str], None]
"""Shows a sentence in place of the one before; see :class:`efface.runs.run.Progress`."""


def format_left(seconds: float) -> str:
    """Write a remaining time.

    Example:
        >>> format_left(125), format_left(7325)
        ('2:05 left', '2:02:05 left')

    """
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d} left" if hours else f"{minute}:{second:02d} left"


@dataclass(eq=False)
class RemainingTime:
    """Reports how much of something is done, with the remaining time, from the time that it took so far.

    Args:
        status: Receives the line.
        what: What is done, such as ``Observing original``.
        total: How much there is.
        unit: Of what.
        clock: Seconds that pass.

    Example:
        >>> left = RemainingTime(print, "Embedding", 200, "images", clock=iter([0.0, 10.0]).__next__)
        >>> left(50)
        Embedding: 50 of 200 images, 0:30 left

    """

    status: Status
    what: str
    total: int
    unit: str = ""
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def __call__(self, done: float) -> None:
        """Report that so much is done."""
        passed = self.clock() - self.began
        left = f", {format_left(passed / done * (self.total - done))}" if done > 0 else ""
        self.status(f"{self.what}: {int(done)} of {self.total}{f' {self.unit}' if self.unit else ''}{left}")


def count_rows(parts: Iterable[np.ndarray], total: int, status: Status) -> Iterator[np.ndarray]:
    """Pass embeddings on, and report how many there are of ``total``, and how long the rest takes."""
    left, done = RemainingTime(status, "Embedding", total, "images"), 0
    for part in parts:
        yield part
        done += len(part)
        left(done)


def watch_tasks(tasks: Sequence[Task], status: Status, what: str) -> Callable[[RunningSteps], None]:
    """Make a function for :func:`efface.tasks.run_tasks` that reports the remaining time of all tasks together.

    Args:
        tasks: The tasks; those that are done already do not count.
        status: Receives the line.
        what: What they make, such as ``models``.

    """
    left = [task for task in tasks if task.is_done is None or not task.is_done()]
    remaining = RemainingTime(status, "Running", len(left), what)

    def watch(running: RunningSteps) -> None:
        ended = sum(task.is_done is not None and task.is_done() for task in left)
        begun = sum(step / total for _, (step, total) in running if total)
        remaining(min(len(left), ended + begun))

    return watch
