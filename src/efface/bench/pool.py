"""A pool of single-thread worker processes that survives the death of a worker.

The standard pools break when one of their processes is killed (for example when memory runs out). Here only that job
fails, a new process takes the next one, and the others continue. Each worker watches its parent: if the parent is
killed, the worker exits at once, and its unfinished folder is continued by the next call. Ctrl-C reaches only the
parent, which stops the workers.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from efface.tasks.worker import end_with_parent

TaskFunction = Callable[[Any, Callable[[int, int], None]], Any]
"""``work(job, tell) -> result``: a module-level function, so that a new process can import it."""
REPORT_SECONDS, STOP_SECONDS = 0.5, 5.0
"""Seconds between progress reports of a worker; seconds that a worker has to stop."""


@dataclass(frozen=True)
class FinishedJob:
    """A finished job: its result, or why it failed."""

    job: Any
    result: Any = None
    failed: str = ""


class WorkerProcess:
    """A worker process and its current job."""

    def __init__(self, work: TaskFunction) -> None:
        spawn = get_context("spawn")
        self.pipe, worker_end = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(worker_end, work), daemon=True)
        with _ignore_interrupts():
            self.process.start()
        worker_end.close()
        self.job: Any = None
        self.steps = (0, 0)

    def send_job(self, job: Any) -> None:
        """Send a job to the worker."""
        self.job, self.steps = job, (0, 0)
        self.pipe.send(job)

    def poll_result(self) -> FinishedJob | None:
        """Read the messages of the worker; the finished job, or None while it is running."""
        try:
            while self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "steps":
                    self.steps = value
                    continue
                return self._finish(FinishedJob(self.job, **{kind: value}))
        except (EOFError, OSError):
            self.process.join(STOP_SECONDS)
            code = self.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            failed = f"Its process ended with {how}: it ran out of memory or was killed."
            return self._finish(FinishedJob(self.job, failed=failed))
        return None

    def _finish(self, done: FinishedJob) -> FinishedJob:
        self.job = None
        return done

    def end(self) -> None:
        """Stop the worker, whatever it is doing."""
        self.process.terminate()
        self.process.join(STOP_SECONDS)
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
    """Run jobs until ``next_job`` returns None and no job is running.

    Args:
        next_job: Returns a job, or None while no job can be started.
        work: The function that runs a job in a worker.
        jobs: Number of workers.
        over: Called with each finished job.
        watch: Called every half second with the running jobs and their ``(step, steps in total or 0)``.

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
            wait([one.pipe for one in busy], timeout=REPORT_SECONDS)
            for one in busy:
                done = one.poll_result()
                if done is not None:
                    over(done)
            watch([(one.job, one.steps) for one in team if one.job is not None])
    finally:
        for one in team:
            one.end()


@contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, also in processes that are started here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, work: TaskFunction) -> None:
    """The main loop of a worker: run jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    last = 0.0

    def tell(step: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= REPORT_SECONDS:
            last = time.monotonic()
            pipe.send(("steps", (step, total)))

    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("result", work(job, tell))
        except Exception as error:  # any failure is reported to the parent
            answer = ("failed", f"{type(error).__name__}: {error}")
        pipe.send(answer)
