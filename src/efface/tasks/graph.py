"""Tasks, their outcomes, and the order in which they can start."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any


@dataclass(frozen=True, eq=False)
class Task:
    """A call that can be repeated without harm, and what it waits for.

    The function runs in another process, maybe on another machine: it must be defined at the top of a module, and
    function, arguments and result must be picklable. Paths among the arguments should be absolute. If a process dies,
    the task is run again, so the function must go on where it was stopped, or begin anew.
    """

    name: str
    """A name that no other task of the call has."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    """Names of tasks that must have ended well; if one failed, this one is not run."""
    after: tuple[str, ...] = ()
    """Names of tasks that must have ended, well or not."""
    is_done: Callable[[], bool] | None = None
    """Whether the result is there; asked in the calling process, before the task is started and after it has ended."""
    label: str = ""
    """What messages call the task; by default its name."""

    def __str__(self) -> str:
        return self.label or self.name


@dataclass(frozen=True, eq=False)
class TaskOutcome:
    """How a task ended."""

    task: Task
    result: Any = None
    """What the function returned."""
    error: BaseException | None = None
    """What the function raised, or why it could not be run."""
    blocked_by: Task | None = None
    """The failed task that this one needed: it was not run."""
    seconds: float = 0.0
    """Time that it took in its process."""

    @property
    def failed(self) -> bool:
        """Whether the task has no result."""
        return self.error is not None or self.blocked_by is not None


class TaskQueue:
    """Tasks that wait for others, and those that can start, in the order in which they were given.

    Args:
        tasks: The tasks to run.

    Raises:
        ValueError: Two tasks have the same name, one waits for a task that is not there, or some wait for each other.

    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}
        if len(self._tasks) < len(tasks):
            names = [task.name for task in tasks]
            raise ValueError(f"tasks of the same name: {sorted({name for name in names if names.count(name) > 1})}")
        graph = {task.name: (*task.needs, *task.after) for task in tasks}
        unknown = {name for names in graph.values() for name in names} - set(self._tasks)
        if unknown:
            raise ValueError(f"tasks wait for others that are not there: {sorted(unknown)}")
        self._sorter = TopologicalSorter(graph)
        try:
            self._sorter.prepare()
        except CycleError as error:
            raise ValueError(f"tasks wait for each other: {' > '.join(error.args[1])}") from error
        self._place = {name: number for number, name in enumerate(self._tasks)}
        self._ready: list[tuple[int, str]] = []
        self._failed: set[str] = set()
        self._collect()

    def __len__(self) -> int:
        return len(self._tasks)

    def take(self) -> Task | None:
        """Return the first task that can start, or that never will because a task it needs failed; None if none can."""
        return self._tasks[heapq.heappop(self._ready)[1]] if self._ready else None

    def failed_need(self, task: Task) -> Task | None:
        """The first task that ``task`` needs and that failed or was not run."""
        return next((self._tasks[name] for name in task.needs if name in self._failed), None)

    def end(self, task: Task, *, failed: bool) -> None:
        """Note that a task has ended; those that waited for it may start now."""
        if failed:
            self._failed.add(task.name)
        self._sorter.done(task.name)
        self._collect()

    def _collect(self) -> None:
        for name in self._sorter.get_ready():
            heapq.heappush(self._ready, (self._place[name], name))
