"""Course: a grid from its plan to its page. What is complete is kept, what was cut is taken up, nothing runs twice."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from efface.bench import pool
from efface.bench.grid import Grid
from efface.bench.page import PAGE, render_bench
from efface.bench.plan import BenchPlan, BenchTask, MethodEntry, Scenario, TaskKind, plan_bench
from efface.bench.results import collect_results
from efface.bench.selection import best_setting
from efface.bench.tables import write_tables
from efface.bench.worker import TaskJob, read_outcome, run_bench_task
from efface.errors import EffaceError
from efface.files import write_text
from efface.reporting.environment import Environment
from efface.runs.run import Progress

LOCK = "bench.lock"


@dataclass(frozen=True)
class SettingChoice:
    """Which setting of an entry is reported, in one family and forget set."""

    family: str
    forget: str
    label: str
    chosen: int | None
    """By utility on V and membership against V; None where every setting failed."""
    by_oracle: int | None
    """By the average gap to the oracle; None where that is not known."""
    scores: tuple[float | None, ...]
    """Mean of what was chosen by over the selection seeds, for each setting; None where one failed."""
    gaps: tuple[float | None, ...]
    """Mean average gap, likewise."""


@dataclass(frozen=True)
class BenchResult:
    """How a bench ended."""

    folder: Path
    made: int
    """Tasks done in this call."""
    kept: int
    """Tasks that an earlier call had done."""
    failed: dict[str, str]
    """Task to its error; also those that could not be begun because what they start from failed."""
    results: dict[str, Any]


@dataclass(eq=False)
class BenchRunner:
    """The tasks of a bench and how far each of them is."""

    home: Path
    grid: Grid
    progress: Progress
    state: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Digest to outcome, of tasks that are over."""
    tasks: dict[str, BenchTask] = field(default_factory=dict)
    folders: dict[Path, BenchTask] = field(default_factory=dict)
    seconds: dict[TaskKind, list[float]] = field(default_factory=dict)
    started_at: dict[str, float] = field(default_factory=dict)
    made: int = 0
    kept: int = 0
    upcoming: int = 0
    """Cells that will be asked for once settings are chosen, at least; each is judged too."""

    def run_tasks(self, tasks: Iterable[BenchTask]) -> None:
        """Do the tasks, those first that others need."""
        wanted = {task.digest: task for task in tasks if task.digest not in self.tasks}
        self.tasks |= wanted
        self.folders |= {task.folder(self.home): task for task in wanted.values()}
        for digest, task in wanted.items():
            found = read_outcome(task.folder(self.home))
            if found is not None:
                self.state[digest] = found
                self.kept += 1
        waiting = [task for digest, task in wanted.items() if digest not in self.state]
        pool.run_jobs(lambda: self.next_job(waiting), run_bench_task, self.grid.jobs, self.on_finished, self.watch)

    def next_job(self, waiting: list[BenchTask]) -> TaskJob | None:
        """The first task that can be begun; those that never can are over."""
        for task in list(waiting):
            lost = next((one for one in task.needs if "error" in self.state.get(one.digest, {})), None)
            if lost is not None:
                waiting.remove(task)
                self.state[task.digest] = {"error": f"not begun, because this failed: {lost}", "blocked": True}
            elif all(one.digest in self.state for one in (*task.needs, *task.oracles) if one is not task):
                waiting.remove(task)
                self.started_at[task.digest] = monotonic()
                return self.job(task)
        return None

    def job(self, task: BenchTask) -> TaskJob:
        """The task as a process is handed it."""
        at = {
            name: getattr(task, name).folder(self.home)
            for name in ("original", "look", "subject")
            if getattr(task, name)
        }
        oracles = tuple(one.folder(self.home) for one in task.oracles)
        return TaskJob(
            task.kind,
            task.folder(self.home),
            task.request,
            oracles=oracles,
            device=self.grid.device,
            keep_weights=self.grid.keep_weights,
            **at,
        )

    def on_finished(self, done: pool.FinishedJob) -> None:
        """Note how a job ended, and say it."""
        task = self.folders[done.job.folder]
        found = done.result if not done.failed else {"error": done.failed, "lost": True}
        self.state[task.digest], self.made = found, self.made + 1
        took = monotonic() - self.started_at[task.digest]
        self.seconds.setdefault(task.kind, []).append(took)
        if "error" in found:
            self.progress.say(f"failed: {task}: {found['error']}")
        elif task.kind is not TaskKind.JUDGMENT:
            self.progress.say(f"{self.count()}  {task}  {took:.1f} s")

    def failed(self) -> dict[str, str]:
        """Tasks to their errors; of a model that is not there the judgment is not counted too."""
        lost = [(self.tasks[digest], one["error"]) for digest, one in self.state.items() if "error" in one]
        gone = {task.digest for task, _ in lost}
        return {str(task): error for task, error in lost if task.subject is None or task.subject.digest not in gone}

    def count(self) -> str:
        """``12/40``, of the tasks that are known so far and those that are to come at least."""
        return f"{len(self.state)}/{len(self.tasks) + 2 * self.upcoming}"

    def watch(self, busy: list[tuple[Any, tuple[int, int]]]) -> None:
        """Show what is going on and how long it will take."""
        shown = [
            f"{self.folders[job.folder]}" + (f" {step}/{total}" if total else f" step {step}" if step else "")
            for job, (step, total) in busy
        ]
        failed = len(self.failed())
        lost = f", {failed} failed" if failed else ""
        self.progress.status(f"{self.count()}{lost}, {self.left()} left | {' | '.join(shown)}")

    def left(self) -> str:
        """The time to come, by how long each kind has taken; ``over`` while that of a kind is not known yet.

        Kinds differ by orders of magnitude, so one says nothing about another.
        """
        open_ = Counter(task.kind for digest, task in self.tasks.items() if digest not in self.state)
        open_ += Counter({TaskKind.CELL: self.upcoming, TaskKind.JUDGMENT: self.upcoming})
        whole = sum(many * _mean(self.seconds[kind]) for kind, many in open_.items() if kind in self.seconds)
        if not whole:
            return "?"
        unknown = self.upcoming or any(kind not in self.seconds for kind in open_)
        seconds = int(whole / self.grid.jobs)
        return f"{'over ' if unknown else ''}{seconds // 60}:{seconds % 60:02d}"


def run_bench(grid: Grid, home: Path, *, retry: bool = False, progress: Progress | None = None) -> BenchResult:
    """Run a grid into ``home`` and write its tables and page. ``retry``: run again what failed before.

    A cell that fails is an outcome like others: the rest goes on. Killed at any moment, the same call goes on.
    """
    progress = progress or Progress()
    os.environ["OMP_NUM_THREADS"] = "1"
    with _bench_lock(home):
        planned = plan_bench(grid)
        work = BenchRunner(home, grid, progress)
        for one in planned.families.values():
            for unfit in one.unfit:
                progress.say(f"not applicable: {unfit.family}, {unfit.label or unfit.forget}: {unfit.reason}")
        first = [*_bases(planned, (*grid.seeds.selection, *grid.seeds.reporting)), *_compared(planned)]
        if retry:
            _clear(home, first)
        work.upcoming = len(grid.seeds.reporting) * sum(1 for _ in _entries(planned))
        work.run_tasks(first)
        work.upcoming = 0
        picks = [_choose_setting(planned, work, *where) for where in _entries(planned)]
        second = [task for pick in picks for task in _reported(planned, pick)]
        if retry:
            _clear(home, second)
        work.run_tasks(second)
        machine = Environment.current(torch.__version__, 1, grid.device).model_dump()
        results = collect_results(planned, work.tasks.values(), work.state, picks, machine)
        write_tables(home, results)
        write_text(home / PAGE, render_bench(results))
    return BenchResult(home, work.made, work.kept, work.failed(), results)


def _bases(planned: BenchPlan, seeds: tuple[int, ...]) -> Iterator[BenchTask]:
    """Originals, what they show, oracles, and judgments on them."""
    worlds = list(planned.worlds(seeds))
    yield from {planned.original(world).digest: planned.original(world) for world in worlds}.values()
    for world in worlds:
        look, oracles = planned.look(world), planned.oracles(world)
        yield from (look, *oracles)
        yield from (planned.judgment(one) for one in (look, *oracles))


def _compared(planned: BenchPlan) -> Iterator[BenchTask]:
    """Every setting of the entries that have several, on the selection seeds."""
    for world in planned.worlds(planned.grid.seeds.selection):
        for entry in planned.families[world.family].entries:
            if len(entry.settings) > 1:
                for number in range(len(entry.settings)):
                    cell = planned.cell(world, entry.label, number)
                    yield from (cell, planned.judgment(cell))


def _entries(planned: BenchPlan) -> Iterator[tuple[str, str, MethodEntry]]:
    for one in planned.families.values():
        for name in one.forget:
            yield from ((one.name, name, entry) for entry in one.entries)


def _choose_setting(planned: BenchPlan, work: BenchRunner, family: str, name: str, entry: MethodEntry) -> SettingChoice:
    """The setting to report, and the one that an oracle would have picked."""
    seeds = planned.grid.seeds.selection
    if len(entry.settings) == 1 or not seeds:
        return SettingChoice(
            family, name, entry.label, 0, None, (None,) * len(entry.settings), (None,) * len(entry.settings)
        )
    scored: list[dict[str, Any] | None] = []
    for number in range(len(entry.settings)):
        cells = [planned.cell(Scenario(family, name, seed), entry.label, number) for seed in seeds]
        found = [work.state[planned.judgment(cell).digest] for cell in cells]
        good = all("error" not in one for one in found)
        scored.append({"score": [_score(one) for one in found], "gap": _gaps(found)} if good else None)
    means = {
        key: tuple(_mean(one[key]) if one is not None and one[key] else None for one in scored)
        for key in ("score", "gap")
    }
    chosen, by_oracle = best_setting(scored, "score"), best_setting(scored, "gap")
    return SettingChoice(family, name, entry.label, chosen, by_oracle, means["score"], means["gap"])


def _score(judged: dict[str, Any]) -> float:
    return judged["choice"]["leak"] + judged["choice"]["drop"]


def _gaps(judged: Iterable[dict[str, Any]]) -> list[float]:
    """The average gap of each; nothing where there is no oracle."""
    values = [f["value"] for one in judged for f in one["findings"] if f["name"] == "oracle_gap.average"]
    return [value for value in values if value is not None]


def _reported(planned: BenchPlan, pick: SettingChoice) -> Iterator[BenchTask]:
    """The picked settings on the reporting seeds."""
    for seed in planned.grid.seeds.reporting:
        for number in sorted({one for one in (pick.chosen, pick.by_oracle) if one is not None}):
            cell = planned.cell(Scenario(pick.family, pick.forget, seed), pick.label, number)
            yield from (cell, planned.judgment(cell))


def _clear(home: Path, tasks: Iterable[BenchTask]) -> None:
    """Delete what failed, and the judgments that had to do without it."""
    lost: set[str] = set()
    for task in tasks:
        found = read_outcome(task.folder(home)) or {}
        if "error" in found or any(one.digest in lost for one in task.oracles):
            lost.add(task.digest)
            shutil.rmtree(task.folder(home), ignore_errors=True)


@contextmanager
def _bench_lock(home: Path) -> Iterator[None]:
    """Refuse to run beside another bench in the same folder; the lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:
        raise EffaceError(
            f"A bench cannot be run on this system ({sys.platform}).",
            "Two processes are kept from the same folder by a lock that only Unix has.",
            "Run it on Linux or macOS, and copy the folder.",
        ) from None
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EffaceError(
                f"Another bench is running in {home}.",
                "Two would make the same models.",
                "Wait, or choose another --out.",
            ) from error
        yield


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
