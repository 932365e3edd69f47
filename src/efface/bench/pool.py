"""Pool: a few one-thread processes that work through jobs, and end with whoever started them.

The standard pools give up everything when one of their processes is killed (out of memory, say); here that job has
failed, a fresh process takes the next one, and the rest goes on. A process watches its parent: should that be killed,
it ends at once and leaves its half-written folder to be taken up. Ctrl-C reaches the parent alone, which ends the rest.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

TaskFunction = Callable[[Any, Callable[[int, int], None]], Any]
"""``work(job, tell) -> result``: a function of a module, so that a fresh process can import it."""
EVERY, PATIENCE = 0.5, 5.0
"""Seconds between two words of a process about its steps; seconds it is given to end."""


@dataclass(frozen=True)
class FinishedJob:
    """A job that is over: its result, or why there is none."""

    job: Any
    result: Any = None
    failed: str = ""


class WorkerProcess:
    """One process and the job that it has."""

    def __init__(self, work: TaskFunction) -> None:
        spawn = get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, work), daemon=True)
        with _uninterrupted():
            self.process.start()
        theirs.close()
        self.job: Any = None
        self.steps = (0, 0)

    def send_job(self, job: Any) -> None:
        """Give it a job."""
        self.job, self.steps = job, (0, 0)
        self.pipe.send(job)

    def poll_result(self) -> FinishedJob | None:
        """What it has to say: that its job is over, or None."""
        try:
            while self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "steps":
                    self.steps = value
                    continue
                return self._over(FinishedJob(self.job, **{kind: value}))
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            code = self.process.exitcode
            said = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return self._over(FinishedJob(self.job, failed=f"Its process ended with {said}: out of memory, or killed."))
        return None

    def _over(self, done: FinishedJob) -> FinishedJob:
        self.job = None
        return done

    def end(self) -> None:
        """Make it stop, whatever it is doing."""
        self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def run_jobs(
    next_job: Callable[[], Any],
    work: TaskFunction,
    jobs: int,
    over: Callable[[FinishedJob], None],
    watch: Callable[[list[tuple[Any, tuple[int, int]]]], None] = lambda busy: None,
) -> None:
    """Work through jobs until ``next_job`` has none and none is being worked on.

    ``next_job``: a job, or None while there is none that can be begun. ``over``: called with each job that ended.
    ``watch``: called every half second with the jobs in work and their steps.
    """
    team: list[WorkerProcess] = []
    try:
        while True:
            team = [one for one in team if one.job is not None or one.process.is_alive()]
            job = next_job() if sum(one.job is not None for one in team) < jobs else None
            while job is not None:
                idle = next((one for one in team if one.job is None), None)
                if idle is None:
                    idle = WorkerProcess(work)
                    team.append(idle)
                idle.send_job(job)
                job = next_job() if sum(one.job is not None for one in team) < jobs else None
            busy = [one for one in team if one.job is not None]
            if not busy:
                return
            wait([one.pipe for one in busy], timeout=EVERY)
            for one in busy:
                done = one.poll_result()
                if done is not None:
                    over(done)
            watch([(one.job, one.steps) for one in team if one.job is not None])
    finally:
        for one in team:
            one.end()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process started in here ignores Ctrl-C from its first instruction on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, work: TaskFunction) -> None:
    """The life of a process: one job after the other until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()
    last = 0.0

    def tell(step: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            pipe.send(("steps", (step, total)))

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("result", work(job, tell))
        except Exception as error:  # whatever it is, the parent is told, and says so
            answer = ("failed", f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _follow() -> None:
    """End at once when the parent does: nobody would hear the result."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
