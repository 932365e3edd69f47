"""An executor over a Slurm queue: each call is a job of its own, sent and read by submitit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from efface.errors import EffaceError, optional_imports, unknown_name_error
from efface.tasks.worker import WorkerDiedError, call_attended

POLL_SECONDS = 0.5
"""Time between two looks at the jobs."""
NUMBERS: dict[str, str] = {
    "time": "timeout_min",
    "cpus": "cpus_per_task",
    "gpus": "gpus_per_node",
    "mem_gb": "mem_gb",
}
WORDS: dict[str, str] = {"account": "slurm_account", "qos": "slurm_qos", "constraint": "slurm_constraint"}
"""Options of ``--on slurm:PARTITION?NAME=VALUE``, and what submitit calls them."""


class SlurmExecutor(Executor):
    """Jobs of a Slurm partition.

    Args:
        partition: The partition.
        options: ``time`` in minutes (by default 1440), ``cpus``, ``gpus`` and ``mem_gb`` of a job; ``account``,
            ``qos``, ``constraint``. ``cluster=local`` runs the jobs on this machine without Slurm, to try it out;
            these end with this process, even if it is killed.
        folder: A folder that the machines of the cluster see, for the files of the jobs.

    Raises:
        EffaceError: submitit is not installed, there is no Slurm here, or an option is unknown.

    """

    most: ClassVar[int] = 200
    """Number of jobs in the queue at a time, by default."""

    def __init__(self, partition: str, options: Mapping[str, str], folder: Path) -> None:
        with optional_imports(f"--on slurm:{partition}", "slurm"):
            import submitit
        given = dict(options)
        cluster = given.pop("cluster", "slurm")
        if cluster not in ("slurm", "local"):
            raise EffaceError(f"There is no cluster '{cluster}'.", "Known: slurm, local.", "Leave the option out.")
        settings = {"name": "efface", "timeout_min": 1440, "cpus_per_task": 1, "slurm_partition": partition}
        settings |= _settings(given)
        try:
            self._queue = submitit.AutoExecutor(folder / "jobs", cluster=cluster)
            self._queue.update_parameters(**settings)
        except RuntimeError as error:
            raise EffaceError(
                "Slurm was not found on this machine.", str(error), "Run the command on a login node of the cluster."
            ) from error
        self._attended = cluster == "local"
        self._jobs: dict[Future[Any], Any] = {}
        self._ended, self._changed = False, threading.Condition()
        self._watcher = threading.Thread(target=self._watch, name="efface-slurm", daemon=True)
        self._watcher.start()
        self.note = f"Jobs in the Slurm partition {partition}, called efface." if cluster == "slurm" else ""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the queue."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        call = partial(fn, *args, **kwargs)
        job = self._queue.submit(call_attended, os.getpid(), call) if self._attended else self._queue.submit(call)
        with self._changed:
            self._jobs[future] = job
            self._changed.notify()
        return future

    def _watch(self) -> None:
        """Tell the callers which jobs have ended."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._ended)
                if self._ended and not self._jobs:
                    return
                jobs = dict(self._jobs)
            for future, job in jobs.items():
                self._look(future, job)
            with self._changed:
                self._changed.wait_for(lambda: self._ended, POLL_SECONDS)

    def _look(self, future: Future[Any], job: Any) -> None:
        """Tell the caller of a job how it ended, if it did."""
        from submitit.core.utils import UncompletedJobError

        try:
            if not job.done():
                return
            future.set_result(job.result())
        except UncompletedJobError:
            said = (job.stderr() or "").strip().splitlines()[-1:]
            died = WorkerDiedError(
                f"Job {job.job_id} ended before its task did, in state {job.state}.",
                f"Its last words: {said[0]}" if said else "It said nothing: it was killed, or over its limits.",
                "Raise time or mem_gb after the ? of --on, and run the same command again.",
            )
            future.set_exception(died)
        except Exception as error:
            future.set_exception(error)
        with self._changed:
            self._jobs.pop(future, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End; with ``cancel_futures``, jobs that have not ended are cancelled."""
        with self._changed:
            jobs = list(self._jobs.values())
            if cancel_futures:
                self._jobs.clear()
            self._ended = True
            self._changed.notify_all()
        if cancel_futures:
            for job in jobs:
                job.cancel()
        if wait:
            self._watcher.join()


def _settings(options: Mapping[str, str]) -> dict[str, Any]:
    """The options in the words of submitit."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in WORDS:
            found[WORDS[name]] = value
            continue
        if name not in NUMBERS:
            raise unknown_name_error("option of --on slurm:PARTITION", name, [*NUMBERS, *WORDS])
        if not value.isdecimal() or int(value) < 1:
            raise EffaceError(
                f"The option {name} of --on cannot be '{value}'.", "It is a whole number.", "Write 1 or more."
            )
        found[NUMBERS[name]] = int(value)
    return found
