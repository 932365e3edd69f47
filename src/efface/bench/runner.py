"""Run a bench from its grid to its page. Finished tasks are reused, interrupted ones continued."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from efface.bench.grid import Grid
from efface.bench.page import PAGE, render_bench
from efface.bench.plan import BenchPlan, BenchTask, MethodEntry, Scenario, TaskKind, plan_bench
from efface.bench.results import collect_results
from efface.bench.selection import best_setting
from efface.bench.tables import write_tables
from efface.bench.worker import JOURNAL, BenchTaskError, TaskJob, note_made, read_outcome, run_bench_task
from efface.errors import EffaceError
from efface.files import hold_lock, make_folder, write_text
from efface.reporting.environment import Environment
from efface.runs.run import Progress
from efface.tasks import Task, TaskOutcome, run_tasks
from efface.tasks.place import TaskPlace

LOCK = "bench.lock"
SHOWN = 4
"""Number of running tasks that the status names."""


@dataclass(frozen=True)
class SettingChoice:
    """The setting of a method entry that is reported for one family and forget set."""

    family: str
    forget: str
    label: str
    chosen: int | None
    """Index of the setting with the best score on V; None if every setting failed."""
    by_oracle: int | None
    """Index of the setting with the smallest average gap to the oracle; None if unknown."""
    scores: tuple[float | None, ...]
    """Mean score of each setting over the selection seeds; None if it failed on a seed."""
    gaps: tuple[float | None, ...]
    """Mean average gap of each setting over the selection seeds."""


@dataclass(frozen=True)
class BenchResult:
    """The outcome of a bench."""

    folder: Path
    made: int
    """Number of tasks that this call ran."""
    kept: int
    """Number of tasks reused from earlier calls."""
    failed: dict[str, str]
    """Failed tasks with their errors, including those that were not started because a task they need failed."""
    results: dict[str, Any]


@dataclass(eq=False)
class BenchRunner:
    """Runs the tasks of a bench and keeps track of their progress."""

    home: Path
    grid: Grid
    progress: Progress
    on: str = "local"
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Outcomes of finished tasks, by digest."""
    tasks: dict[str, BenchTask] = field(default_factory=dict)
    seconds: dict[TaskKind, list[float]] = field(default_factory=dict)
    busy: int = 1
    """Number of tasks that run at the same time."""
    made: int = 0
    kept: int = 0
    upcoming: int = 0
    """Minimum number of cells to run after the settings are selected; each is judged as well."""

    def run_tasks(self, tasks: Iterable[BenchTask]) -> None:
        """Run tasks in the order of their dependencies."""
        wanted = {task.digest: task for task in tasks if task.digest not in self.tasks}
        self.tasks |= wanted
        for digest, task in wanted.items():
            outcome = read_outcome(task.folder(self.home))
            if outcome is not None:
                note_made(task.folder(self.home), unless_noted=True)
                self.state[digest] = outcome
                self.kept += 1
        waiting = [task for digest, task in wanted.items() if digest not in self.state and not self.is_blocked(task)]
        digests = {task.digest for task in waiting}
        run_tasks(
            [self.task(task, digests) for task in waiting],
            on=self.on,
            jobs=self.grid.processes(self.on),
            folder=self.home,
            say=self.progress.say,
            over=self.on_finished,
            watch=self.watch,
        )

    def is_blocked(self, task: BenchTask) -> bool:
        """Whether a task cannot be run because an earlier one failed; then it is marked as failed."""
        failed = next((one for one in task.needs if "error" in self.state.get(one.digest, {})), None)
        if failed is not None:
            self.state[task.digest] = {"error": f"not started, because this failed: {failed}", "blocked": True}
        return failed is not None

    def task(self, task: BenchTask, waiting: set[str]) -> Task:
        """A task as it is handed out; it waits for those of ``waiting`` that it reads."""
        after = tuple(task_name(one) for one in task.oracles if one is not task and one.digest in waiting)
        needs = tuple(task_name(one) for one in task.needs if one.digest in waiting)
        return Task(task_name(task), run_bench_task, (self.job(task),), needs=needs, after=after, label=str(task))

    def job(self, task: BenchTask) -> TaskJob:
        """The job that a worker process gets for a task."""
        home = self.home.resolve()
        folders = {
            name: getattr(task, name).folder(home) for name in ("original", "look", "subject") if getattr(task, name)
        }
        oracles = tuple(one.folder(home) for one in task.oracles)
        return TaskJob(
            task.kind,
            task.folder(home),
            task.request,
            oracles=oracles,
            device=self.grid.device,
            keep_weights=self.grid.keep_weights,
            **folders,
        )

    def on_finished(self, done: TaskOutcome) -> None:
        """Store and report the outcome of a task."""
        task = self.tasks[done.task.name.rpartition("-")[2]]
        if done.blocked_by is not None:
            self.state[task.digest] = {"error": f"not started, because this failed: {done.blocked_by}", "blocked": True}
            return
        self.made += 1
        self.seconds.setdefault(task.kind, []).append(done.seconds)
        if done.error is None:
            self.state[task.digest] = done.result
        else:
            self.state[task.digest] = _outcome_of(done.error)
        outcome = self.state[task.digest]
        if "error" in outcome:
            self.progress.say(f"failed: {task}: {outcome['error']}")
        elif task.kind is not TaskKind.JUDGMENT:
            self.progress.say(f"{self.count()}  {task}  {done.seconds:.1f} s")

    def failed(self) -> dict[str, str]:
        """Failed tasks with their errors; the judgment of a failed model is not listed separately."""
        errors = [(self.tasks[digest], one["error"]) for digest, one in self.state.items() if "error" in one]
        digests = {task.digest for task, _ in errors}
        return {
            str(task): error for task, error in errors if task.subject is None or task.subject.digest not in digests
        }

    def count(self) -> str:
        """``12/40``: finished tasks, and the minimum number of tasks in total."""
        return f"{len(self.state)}/{len(self.tasks) + 2 * self.upcoming}"

    def watch(self, busy: list[tuple[Task, tuple[int, int]]]) -> None:
        """Report the running tasks and the remaining time."""
        self.busy = max(1, len(busy))
        shown = [
            f"{task}" + (f" {step}/{total}" if total else f" step {step}" if step else "")
            for task, (step, total) in busy[:SHOWN]
        ]
        shown += [f"{len(busy) - SHOWN} more"] if len(busy) > SHOWN else []
        failed = len(self.failed())
        failures = f", {failed} failed" if failed else ""
        self.progress.status(f"{self.count()}{failures}, {self.left()} left | {' | '.join(shown) or 'starting'}")

    def left(self) -> str:
        """Estimate the remaining time from the mean time of each kind of task; ``over`` while one kind is unknown.

        Kinds differ by orders of magnitude, so the time of one kind does not predict that of another.
        """
        open_ = Counter(task.kind for digest, task in self.tasks.items() if digest not in self.state)
        open_ += Counter({TaskKind.CELL: self.upcoming, TaskKind.JUDGMENT: self.upcoming})
        total = sum(count * _mean(self.seconds[kind]) for kind, count in open_.items() if kind in self.seconds)
        if not total:
            return "?"
        unknown = self.upcoming or any(kind not in self.seconds for kind in open_)
        seconds = int(total / self.busy)
        return f"{'over ' if unknown else ''}{seconds // 60}:{seconds % 60:02d}"


def task_name(task: BenchTask) -> str:
    """The name of a task among those that are handed out: its kind and its digest."""
    return f"{task.kind.value}-{task.digest}"


def _outcome_of(error: BaseException) -> dict[str, Any]:
    """The recorded outcome of a failed task; one that is lost, such as one whose process died, has none."""
    if isinstance(error, BenchTaskError):
        return error.outcome
    said = str(error) if isinstance(error, EffaceError) else f"{type(error).__name__}: {error}"
    return {"error": said, "lost": True}


def run_bench(
    grid: Grid, home: Path, *, on: str = "local", retry: bool = False, progress: Progress | None = None
) -> BenchResult:
    """Run a grid, and write its tables and its page.

    A method that fails is recorded as a failure, and the other tasks continue. If the process is killed, the same
    call continues where it stopped.

    Args:
        grid: The grid, from :func:`efface.bench.grid.read_grid`.
        home: Folder of the bench.
        on: Where the tasks run; see :func:`efface.tasks.run_tasks`.
        retry: Run tasks again that failed before.
        progress: Reports progress.

    Returns:
        The outcome, with the results.

    Raises:
        EffaceError: The grid cannot be planned, there is no such place, or another bench is running in the folder.

    """
    progress = progress or Progress()
    TaskPlace.parse(on)
    with _bench_lock(home):
        planned = plan_bench(grid)
        work = BenchRunner(home, grid, progress, on)
        for one in planned.families.values():
            for unfit in one.unfit:
                progress.say(f"not applicable: {unfit.family}, {unfit.label or unfit.forget}: {unfit.reason}")
        first = [
            *_reference_tasks(planned, (*grid.seeds.selection, *grid.seeds.reporting)),
            *_comparison_tasks(planned),
        ]
        if retry:
            _delete_failed(home, first)
        work.upcoming = len(grid.seeds.reporting) * sum(1 for _ in _entries(planned))
        work.run_tasks(first)
        work.upcoming = 0
        picks = [_choose_setting(planned, work, *entry) for entry in _entries(planned)]
        second = [task for pick in picks for task in _reported_tasks(planned, pick)]
        if retry:
            _delete_failed(home, second)
        work.run_tasks(second)
        machine = Environment.current(torch.__version__, 1, grid.device).model_dump()
        results = collect_results(planned, work.tasks.values(), work.state, picks, machine)
        write_tables(home, results)
        write_text(home / PAGE, render_bench(results))
    return BenchResult(home, work.made, work.kept, work.failed(), results)


def _reference_tasks(planned: BenchPlan, seeds: tuple[int, ...]) -> Iterator[BenchTask]:
    """Originals, their observations, oracles, and judgments of these."""
    worlds = list(planned.worlds(seeds))
    yield from {planned.original(world).digest: planned.original(world) for world in worlds}.values()
    for world in worlds:
        look, oracles = planned.look(world), planned.oracles(world)
        yield from (look, *oracles)
        yield from (planned.judgment(one) for one in (look, *oracles))


def _comparison_tasks(planned: BenchPlan) -> Iterator[BenchTask]:
    """Every setting of the entries with several settings, on the selection seeds."""
    for world in planned.worlds(planned.grid.seeds.selection):
        for entry in planned.families[world.family].entries:
            if len(entry.settings) > 1:
                for number in range(len(entry.settings)):
                    cell = planned.cell(world, entry.label, number)
                    yield from (cell, planned.judgment(cell))


def _entries(planned: BenchPlan) -> Iterator[tuple[str, str, MethodEntry]]:
    """Family, forget set and entry of every method to report."""
    for one in planned.families.values():
        for name in one.forget:
            yield from ((one.name, name, entry) for entry in one.entries)


def _choose_setting(planned: BenchPlan, work: BenchRunner, family: str, name: str, entry: MethodEntry) -> SettingChoice:
    """Select the setting to report, and find the one that the oracle would select."""
    seeds = planned.grid.seeds.selection
    if len(entry.settings) == 1 or not seeds:
        unknown = (None,) * len(entry.settings)
        return SettingChoice(family, name, entry.label, 0, None, unknown, unknown)
    scored: list[dict[str, Any] | None] = []
    for number in range(len(entry.settings)):
        cells = [planned.cell(Scenario(family, name, seed), entry.label, number) for seed in seeds]
        judgments = [work.state[planned.judgment(cell).digest] for cell in cells]
        finished = all("error" not in one for one in judgments)
        scored.append({"score": [_score(one) for one in judgments], "gap": _gaps(judgments)} if finished else None)
    means = {
        key: tuple(_mean(one[key]) if one is not None and one[key] else None for one in scored)
        for key in ("score", "gap")
    }
    chosen, by_oracle = best_setting(scored, "score"), best_setting(scored, "gap")
    return SettingChoice(family, name, entry.label, chosen, by_oracle, means["score"], means["gap"])


def _score(judged: dict[str, Any]) -> float:
    return judged["choice"]["leak"] + judged["choice"]["drop"]


def _gaps(judged: Iterable[dict[str, Any]]) -> list[float]:
    """The average gap of each judgment that has one; without oracles there is none."""
    values = [f["value"] for one in judged for f in one["findings"] if f["name"] == "oracle_gap.average"]
    return [value for value in values if value is not None]


def _reported_tasks(planned: BenchPlan, pick: SettingChoice) -> Iterator[BenchTask]:
    """The selected setting and that of the oracle, on the reporting seeds."""
    for seed in planned.grid.seeds.reporting:
        for number in sorted({one for one in (pick.chosen, pick.by_oracle) if one is not None}):
            cell = planned.cell(Scenario(pick.family, pick.forget, seed), pick.label, number)
            yield from (cell, planned.judgment(cell))


def _delete_failed(home: Path, tasks: Iterable[BenchTask]) -> None:
    """Delete the folders of failed tasks, and of judgments that lacked a failed oracle."""
    failed: set[str] = set()
    for task in tasks:
        outcome = read_outcome(task.folder(home)) or {}
        if "error" in outcome or any(one.digest in failed for one in task.oracles):
            failed.add(task.digest)
            shutil.rmtree(task.folder(home), ignore_errors=True)


@contextmanager
def _bench_lock(home: Path) -> Iterator[None]:
    """Lock the folder against other benches; the lock is released when the process ends, even if it is killed."""
    make_folder(home)
    marks = (LOCK, JOURNAL, *TaskKind)
    others = [item.name for item in home.iterdir() if not item.name.startswith(".")]
    if others and not any((home / str(mark)).exists() for mark in marks):
        raise EffaceError(
            f"{home} is not the folder of a bench, and is not empty.",
            f"Such as {min(others)}. Its files could be overwritten.",
            "Choose another --out.",
        )
    busy = EffaceError(
        f"Another bench is running in {home}.",
        "Both would train the same models.",
        "Wait, or choose another --out.",
    )
    with hold_lock(home / LOCK, busy):
        (home / LOCK).touch()
        yield


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
