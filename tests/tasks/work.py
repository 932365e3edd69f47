"""Functions that the tests of tasks run in other processes, and a caller that can be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from efface.errors import DivergenceError, EffaceError
from efface.files import hold_lock, write_text
from efface.tasks import Task, report_steps, run_tasks


def add(folder: Path, name: str, seconds: float = 0.0) -> int:
    """Write a result once, and note who did it."""
    with hold_lock(folder / name):
        if (folder / name).exists():
            return -1
        time.sleep(seconds)
        with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"made": name, "pid": os.getpid()}) + "\n")
        write_text(folder / name, name)
    return os.getpid()


def in_steps(folder: Path, name: str, seconds: float, steps: int) -> int:
    """Report steps, then write a result."""
    for step in range(steps):
        report_steps(step + 1, steps)
        time.sleep(seconds / steps)
    return add(folder, name)


def slowly(folder: Path, name: str, seconds: float) -> int:
    """Note that the task has begun and by whom, then do it slowly."""
    (folder / f"{name}.{os.getpid()}.begun").touch()
    return add(folder, name, seconds)


def die(folder: Path, name: str, times: int) -> int:
    """Be killed the first ``times`` times."""
    (folder / f"{name}.{time.monotonic_ns()}.death").touch()
    if len(list(folder.glob(f"{name}.*.death"))) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(folder, name)


def fail(kind: str) -> None:
    """Raise an error of some kind."""
    if kind == "efface":
        raise EffaceError("It went wrong.", "Because.", "Do not.")
    if kind == "diverged":
        raise DivergenceError({"loss": float("nan")}, 3)
    if kind == "local class":

        class OddError(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("odd")

        raise OddError(1, 2)
    raise KeyError(kind)


def cannot_be_sent() -> Any:
    """Return what no other process can read."""
    return threading.Lock()


def surroundings() -> dict[str, Any]:
    """What a task finds in its process."""
    return {
        "pid": os.getpid(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "interrupts": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "torch": "torch" in sys.modules,
        "main": threading.current_thread() is threading.main_thread(),
        "folder": str(Path.cwd()),
    }


def made(folder: Path) -> list[str]:
    """The results that were made, once for each time."""
    path = folder / "journal.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return sorted(json.loads(line)["made"] for line in lines)


def makers(folder: Path) -> set[int]:
    """The processes that made the results."""
    lines = (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["pid"] for line in lines}


def pids(folder: Path) -> list[int]:
    """The processes that began slow tasks."""
    return sorted({int(path.name.split(".")[1]) for path in folder.glob("*.begun")})


def slow_tasks(folder: Path, count: int, seconds: float) -> list[Task]:
    """Slow tasks; the last needs all others."""
    names = [f"slow-{number}" for number in range(count)]
    tasks = [Task(n, slowly, (folder, n, seconds), is_done=(folder / n).exists) for n in names]
    return [*tasks, Task("last", add, (folder, "last"), needs=tuple(names), is_done=(folder / "last").exists)]


if __name__ == "__main__":  # folder, count, seconds, on: a caller that a test interrupts or kills
    home = Path(sys.argv[1])
    run_tasks(slow_tasks(home, int(sys.argv[2]), float(sys.argv[3])), on=sys.argv[4], jobs=2, folder=home)
