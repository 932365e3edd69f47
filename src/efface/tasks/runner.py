"""Run tasks in the order of their needs; failures are reported, and raised when all others have ended."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from efface.errors import EffaceError
from efface.files import hold_lock, make_folder
from efface.tasks.executors import OpenedPlace, open_executor
from efface.tasks.graph import Task, TaskOutcome, TaskQueue
from efface.tasks.place import TaskPlace
from efface.tasks.worker import (
    SEEN_SECONDS,
    STEP_SECONDS,
    LostTaskError,
    Performed,
    WorkerDiedError,
    Workplace,
    perform,
)

RETRIES = 1
"""How often a task is run again whose process died."""
NOTES = ".tasks-"
"""How the name of the folder of reports begins."""
RunningSteps = list[tuple[Task, tuple[int, int]]]
"""The running tasks, each with ``(step, steps in total)``; 0 for what is unknown."""


def run_tasks(
    tasks: Sequence[Task],
    *,
    on: str = "local",
    jobs: int | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    over: Callable[[TaskOutcome], None] | None = None,
    watch: Callable[[RunningSteps], None] | None = None,
) -> int:
    """Run tasks in the order of their needs, and among those that can start in the given order.

    A task that is done already is not run. If the process of a task dies, the task is run once more. A task that fails
    does not stop the others; those that need it are not run. If the call is interrupted, the same call goes on.

    Args:
        tasks: The tasks.
        on: ``local``: single-thread processes of this machine, which end with this one even if it is killed.
            ``dask://HOST:PORT?RESOURCE=NUMBER``: the workers of a Dask scheduler, with the resources that each task
            needs. ``slurm:PARTITION?OPTION=VALUE``: a job for each task; see
            :class:`efface.tasks.slurm.SlurmExecutor` for the options.
        jobs: Number of tasks at a time; by default one per core of this machine, or as many as the cluster can take.
        folder: Where the tasks write, for tasks on other machines: each must see it under the same path.
        say: Receives a line for each task that has ended, unless ``over`` is given.
        over: Receives the outcome of each task, also of those that are not run; then nothing is raised for failures.
        watch: Receives the running tasks about twice a second.

    Returns:
        The number of tasks that were run; those that were done already, or that needed a failed one, are not counted.

    Raises:
        EffaceError: A task failed (its own error, whatever its class: the first one, when all others have ended), or
            the executor cannot be opened.
        ValueError: Names are not unique, or needs are unknown or circular.

    Example:
        >>> run_tasks([Task("a", make, (Path("/data/a"),), is_done=Path("/data/a").exists)])  # doctest: +SKIP
        1

    """
    left = [task for task in tasks if task.is_done is None or not task.is_done()]
    TaskQueue(tasks)  # all names are checked, also those of finished tasks
    names = {task.name for task in left}
    queue = TaskQueue([_without_done(task, names) for task in left])
    place = TaskPlace.parse(on)
    if jobs is not None and jobs < 1:
        raise EffaceError(f"--jobs cannot be {jobs}.", "It is a number of processes.", "Set it to 1 or more.")
    if not left:
        return 0
    ended = _Reports(len(left), say, over)
    with _one_thread_each(), _make_workplace(place, folder) as workplace:
        opened = open_executor(place, jobs, workplace.notes)
        try:
            if opened.note:
                say(opened.note)
            _RunningTasks(queue, opened, workplace, ended, say, watch).run()
        finally:
            opened.executor.shutdown(cancel_futures=True)
    if ended.errors and over is None:
        raise ended.errors[0]
    return ended.run


def _without_done(task: Task, left: set[str]) -> Task:
    """The task, waiting only for those that are left to do."""
    needs, after = (tuple(name for name in names if name in left) for names in (task.needs, task.after))
    return replace(task, needs=needs, after=after)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started here use one thread; they read it before they import anything."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextmanager
def _make_workplace(place: TaskPlace, folder: Path | None) -> Iterator[Workplace]:
    """Make the folder of the reports where all processes see it, and remove it at the end."""
    if place.remote and folder is None:
        raise ValueError("tasks on other machines need a folder that all of them see")
    if folder is None or not place.remote:
        home, begin, start = Path(tempfile.gettempdir()), f"efface{NOTES}", None
    else:
        home, begin, start = folder.resolve(), NOTES, Path.cwd()
        make_folder(home)
    for left in home.glob(f"{begin}*"):
        _remove_left(left)
    notes = home / f"{begin}{secrets.token_hex(4)}"
    with hold_lock(notes):
        make_folder(notes)
        try:
            yield Workplace(notes, start)
        finally:
            shutil.rmtree(notes, ignore_errors=True)


def _remove_left(notes: Path) -> None:
    """Remove the reports of a caller that was killed; one that lives holds the lock."""
    with suppress(BlockingIOError), hold_lock(notes, BlockingIOError()):
        shutil.rmtree(notes, ignore_errors=True)


@dataclass(eq=False)
class _Reports:
    """What has ended: counted, reported, and the errors kept."""

    total: int
    say: Callable[[str], None]
    over: Callable[[TaskOutcome], None] | None
    ended: int = 0
    run: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def __call__(self, outcome: TaskOutcome) -> None:
        self.ended += 1
        self.run += outcome.blocked_by is None
        self.errors += [outcome.error] if outcome.error else []
        if self.over is not None:
            self.over(outcome)
            return
        line = f"{self.ended}/{self.total} {outcome.task}"
        if outcome.blocked_by is not None:
            self.say(f"{line}: not run, because {outcome.blocked_by} failed")
        elif outcome.error is not None:
            self.say(f"{line}, {outcome.seconds:.0f} s, failed: {outcome.error or type(outcome.error).__name__}")
        else:
            self.say(f"{line}, {outcome.seconds:.0f} s")


@dataclass(eq=False)
class _RunningTasks:
    """The tasks that are with the executor."""

    queue: TaskQueue
    opened: OpenedPlace
    workplace: Workplace
    ended: _Reports
    say: Callable[[str], None]
    watch: Callable[[RunningSteps], None] | None
    running: dict[Future[Performed], Task] = field(default_factory=dict)
    died: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Hand out tasks and collect their outcomes until none is left."""
        while True:
            self.fill()
            if not self.running:
                return
            done, _ = wait(self.running, STEP_SECONDS if self.watch else None, FIRST_COMPLETED)
            for future in done:
                self.collect(self.running.pop(future), future)
            if self.watch:
                steps = self.workplace.read_steps(task.name for task in self.running.values())
                self.watch([(task, steps[task.name]) for task in self.running.values() if task.name in steps])

    def fill(self) -> None:
        """Hand tasks to the executor while it has a free slot."""
        while len(self.running) < self.opened.slots and (task := self.queue.take()) is not None:
            blocked_by = self.queue.failed_need(task)
            if blocked_by is not None:
                self.end(TaskOutcome(task, blocked_by=blocked_by))
            else:
                self.start(task)

    def start(self, task: Task) -> None:
        """Hand a task to the executor."""
        future = self.opened.executor.submit(perform, self.workplace, task.name, task.function, task.arguments)
        self.running[future] = task

    def collect(self, task: Task, future: Future[Performed]) -> None:
        """Note the outcome of a task, or run it again if its process died."""
        lost = future.exception()
        performed = Performed() if lost else future.result()
        error = lost or performed.error
        if isinstance(lost, LostTaskError) or (
            isinstance(lost, WorkerDiedError) and self.died.get(task.name, 0) < RETRIES
        ):
            self.died[task.name] = self.died.get(task.name, 0) + isinstance(lost, WorkerDiedError)
            self.say(f"{task}: {lost.what} It is run again.")
            self.start(task)
            return
        if error is None and not self.appears(task):
            error = EffaceError(
                f"{task} ended without an error, but its result is not there.",
                "It was removed, or this machine does not see what the other one wrote.",
                "Run the same command again.",
            )
        self.end(TaskOutcome(task, performed.result, error, seconds=performed.seconds))

    def appears(self, task: Task) -> bool:
        """Whether the result of a task is there; network storage may take a while to show it."""
        until = time.monotonic() + (SEEN_SECONDS if self.workplace.start else 0)
        while task.is_done is not None and not task.is_done():
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
        return True

    def end(self, outcome: TaskOutcome) -> None:
        """Note and report how a task ended."""
        self.queue.end(outcome.task, failed=outcome.failed)
        self.ended(outcome)
