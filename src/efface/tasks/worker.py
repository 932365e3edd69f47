"""What happens in the process that runs a task: it sees the shared folder, reports its steps, ends with its parent."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from efface.errors import EffaceError

STEP_SECONDS = 0.5
"""Time between two reports of a task's steps."""
SEEN_SECONDS = 30.0
"""Time that shared storage may take until a machine sees what another one wrote."""


class WorkerDiedError(EffaceError):
    """The process that ran a task ended before the task did."""


class FailedTaskError(RuntimeError):
    """Stands for an exception that cannot be sent between processes, with its text and traceback."""


@dataclass(frozen=True)
class Workplace:
    """Where the tasks of one call run: what their processes share with the one that called.

    Args:
        notes: A folder for the reports of steps, made by the caller; None if nothing is reported.
        start: The caller's working directory, if the process may be on another machine; relative paths begin there.

    """

    notes: Path | None = None
    start: Path | None = None

    def steps_path(self, name: str) -> Path | None:
        """The file with the steps of a task."""
        return None if self.notes is None else self.notes / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"

    def read_steps(self, name: str) -> tuple[int, int]:
        """The ``(step, steps in total)`` that a task reported last; 0 for what is unknown."""
        path = self.steps_path(name)
        try:
            step, total = json.loads(path.read_text(encoding="utf-8")) if path else (0, 0)
        except FileNotFoundError:
            return 0, 0
        return step, total


@dataclass(eq=False)
class _StepFile:
    """The report of the task that this process is running."""

    path: Path | None = None
    last: float = 0.0


_STEPS = _StepFile()


def report_steps(step: int, total: int = 0) -> None:
    """Report how far the running task is; without effect outside of a task, or twice within half a second.

    Args:
        step: Number of the current step.
        total: Number of steps; 0 if that is unknown.

    """
    now = time.monotonic()
    if _STEPS.path is None or now - _STEPS.last < STEP_SECONDS:
        return
    _STEPS.last = now
    fresh = _STEPS.path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps([int(step), int(total)]), encoding="utf-8")
    fresh.replace(_STEPS.path)


def perform(place: Workplace, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run a task in this process.

    Args:
        place: What this process shares with the caller.
        name: The task's name.
        function: Its function.
        arguments: The function's arguments.

    Raises:
        EffaceError: This machine does not see the folder that it should share.

    """
    try:
        if place.start is not None:
            _require_shared(place)
            if place.start.is_dir():
                os.chdir(place.start)
        _STEPS.path, _STEPS.last = place.steps_path(name), 0.0
        return function(*arguments)
    except Exception as error:
        if _is_portable(error):
            raise
        raise FailedTaskError("".join(traceback.format_exception(error)).strip()) from None
    finally:
        _STEPS.path = None


def _require_shared(place: Workplace) -> None:
    """Raise an error if the folder of the reports is not there, even after the delay of network storage."""
    notes, until = place.notes, time.monotonic() + SEEN_SECONDS
    while notes is not None and not notes.is_dir():
        if time.monotonic() > until or not notes.parent.is_dir():
            raise EffaceError(
                f"The worker on {socket.gethostname()} does not see {notes.parent}.",
                "Results are shared over this folder: it must be there under the same path on every machine.",
                "Mount it there. Without shared storage, run on each machine by itself and copy the folders together.",
            )
        list(notes.parent.iterdir())  # network storage looks again
        time.sleep(0.2)


def _is_portable(error: Exception) -> bool:
    """Whether another process can read the exception: one that it cannot would break the executor."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def end_with_parent() -> None:
    """Watch the parent of this process from a thread: when it ends, even killed, this process ends at once."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
