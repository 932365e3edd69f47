"""Open the executor of a place."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from efface.tasks.place import TaskPlace


@dataclass(frozen=True, eq=False)
class OpenedPlace:
    """An executor, and how it is used."""

    executor: Executor
    slots: int
    """Number of tasks that are handed to it at a time."""
    note: str = ""
    """Where to watch it."""


def open_executor(place: TaskPlace, jobs: int | None, notes: Path) -> OpenedPlace:
    """Open the executor of a place.

    Args:
        place: Where tasks run.
        jobs: Number of tasks at a time; by default one per core of this machine, or what the cluster can take.
        notes: A folder that all processes see, for the files of the executor.

    Raises:
        EffaceError: The package that it needs is not installed, nothing answers there, or an option is unknown.

    """
    if place.kind == "dask":
        from efface.tasks.dask_cluster import DaskExecutor

        cluster = DaskExecutor(place.where, place.options)
        return OpenedPlace(cluster, jobs or DaskExecutor.most, cluster.note)
    if place.kind == "slurm":
        from efface.tasks.slurm import SlurmExecutor

        queue = SlurmExecutor(place.where, place.options, notes)
        return OpenedPlace(queue, jobs or SlurmExecutor.most, queue.note)
    from efface.tasks.local import LocalExecutor

    count = jobs or count_cores()
    return OpenedPlace(LocalExecutor(count), count)


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
