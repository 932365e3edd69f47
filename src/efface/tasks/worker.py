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
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from efface._version import __version__
from efface.errors import EffaceError
from efface.files import disk_errors

STEP_SECONDS = 0.5
"""Time between two reports of a task's steps."""
SEEN_SECONDS = 30.0
"""Time that shared storage may take until a machine sees what another one wrote."""


class WorkerDiedError(EffaceError):
    """The process that ran a task ended before the task did."""


class LostTaskError(EffaceError):
    """What ran a task can no longer say how it ended; it may have ended well."""


class FailedTaskError(RuntimeError):
    """The text of an exception: in place of one that cannot be sent between processes, or its traceback there."""


@dataclass(frozen=True)
class Workplace:
    """What the processes that run tasks share with the one that called.

    Args:
        notes: A folder for the reports of steps, made by the caller.
        start: The caller's working directory, if the process may be on another machine; relative paths begin there.
        version: The caller's version of efface.

    """

    notes: Path
    start: Path | None = None
    version: str = __version__

    def steps_path(self, name: str) -> Path:
        """The file with the steps of a task."""
        return self.notes / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"

    def read_steps(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """The ``(step, steps in total)`` that tasks reported last, 0 for what is unknown; only of those that began."""
        paths, begun = {name: self.steps_path(name) for name in names}, set(self.notes.iterdir())
        return {
            name: (int(step), int(total))
            for name, path in paths.items()
            if path in begun
            for step, total in [json.loads(path.read_text(encoding="utf-8"))]
        }


@dataclass(frozen=True, eq=False)
class Performed:
    """How the call of a task ended."""

    result: Any = None
    error: Exception | None = None
    seconds: float = 0.0


@dataclass(eq=False)
class _StepFile:
    """The report of the task that this process is running."""

    path: Path | None = None
    last: float = 0.0

    def write(self, step: int, total: int) -> None:
        """Write the report at once; a caller that is gone reads none."""
        if self.path is not None:
            fresh = self.path.with_suffix(f".{os.getpid()}")
            with suppress(FileNotFoundError):
                fresh.write_text(json.dumps([int(step), int(total)]), encoding="utf-8")
                fresh.replace(self.path)
            self.last = time.monotonic()


_STEPS = _StepFile()
_ONE_AT_A_TIME = threading.Lock()


def report_steps(step: int, total: int = 0) -> None:
    """Report how far the running task is; without effect outside of a task, or twice within half a second.

    Args:
        step: Number of the current step.
        total: Number of steps; 0 if that is unknown.

    """
    if time.monotonic() - _STEPS.last >= STEP_SECONDS:
        _STEPS.write(step, total)


def perform(place: Workplace, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Performed:
    """Run a task in this process, one at a time, and catch its error.

    Args:
        place: What this process shares with the caller.
        name: The task's name.
        function: Its function.
        arguments: The function's arguments.

    """
    with _ONE_AT_A_TIME:
        began = time.monotonic()
        try:
            if place.start is not None:
                _require_shared(place)
                if place.start.is_dir():
                    os.chdir(place.start)
            _STEPS.path = place.steps_path(name)
            _STEPS.write(0, 0)
            with disk_errors(place.notes.parent):  # a full disk or a missing right is no bug
                result = function(*arguments)
            pickle.dumps(result)  # a result that cannot be sent is an error of the task, not of its process
            return Performed(result, seconds=time.monotonic() - began)
        except Exception as error:
            return Performed(error=_portable(error), seconds=time.monotonic() - began)
        finally:
            _STEPS.path = None


def _require_shared(place: Workplace) -> None:
    """Raise an error if this is another version, or does not see the folder after the delay of network storage."""
    host, notes = socket.gethostname(), place.notes
    if place.version != __version__:
        raise EffaceError(
            f"The worker on {host} has efface {__version__}, and this is {place.version}.",
            "Different versions do not make the same models.",
            "Install the same version on every machine.",
        )
    if not notes.parent.is_dir() or not wait_until_seen(notes):
        raise EffaceError(
            f"The worker on {host} does not see {notes.parent}.",
            "Results are shared over this folder: it must be there under the same path on every machine.",
            "Mount it there. Without shared storage, run on each machine by itself and copy the folders together.",
        )


def wait_until_seen(path: Path) -> bool:
    """Wait until this machine sees what another one has written: network storage may take a while to show it.

    Returns:
        Whether it is there.

    """
    until = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until or not path.parent.is_dir():
            return False
        list(path.parent.iterdir())  # the storage is asked again
        time.sleep(0.2)
    return True


def _portable(error: Exception) -> Exception:
    """The exception if another process can read it, else its text; with its traceback, unless it is the user's."""
    trace = "".join(traceback.format_exception(error)).strip()
    if not _is_portable(error):
        return FailedTaskError(trace)
    if not isinstance(error, EffaceError):
        error.add_note(f"In the process of the task:\n{trace}")
    return error


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


def call_attended(caller: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that ends when another process of this machine does, even if that is killed.

    Args:
        caller: The ID of the other process.
        function: The function.
        arguments: Its arguments.

    """
    threading.Thread(target=_exit_with_process, args=(caller,), daemon=True).start()
    return function(*arguments)


def _exit_with_process(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone, or gone and its number in other hands
        if hasattr(os, "pidfd_open"):
            wait([os.pidfd_open(pid)])
        else:
            while True:
                os.kill(pid, 0)
                time.sleep(STEP_SECONDS)
    os._exit(1)
