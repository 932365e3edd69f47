"""Which executor runs the tasks: the value of ``--on``."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass

from efface.errors import EffaceError


@dataclass(frozen=True, eq=False)
class TaskPlaces:
    """An executor, and what is known about its processes."""

    executor: Executor
    slots: int
    """Number of tasks that are handed to it at a time."""
    remote: bool = False
    """Whether its processes may be on other machines."""
    note: str = ""
    """Where to watch it."""


def open_executor(on: str, jobs: int | None) -> TaskPlaces:
    """Open the executor that ``on`` names.

    Args:
        on: ``local``: processes of this machine.
        jobs: Number of tasks at a time; by default one per core of this machine.

    Raises:
        EffaceError: There is no such executor, or no such number of processes.

    """
    if jobs is not None and jobs < 1:
        raise EffaceError(f"--jobs cannot be {jobs}.", "It is a number of processes.", "Set it to 1 or more.")
    if on == "local":
        from efface.tasks.local import LocalExecutor

        count = jobs or count_cores()
        return TaskPlaces(LocalExecutor(count), count)
    raise EffaceError(f"--on cannot be '{on}'.", "Known: local.", "Choose one of these.")


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
