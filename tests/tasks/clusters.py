"""Processes that tests start, watch and kill: a Dask scheduler with workers, and callers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON: dict[str, str] = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(met: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


def start(*words: object, folder: Path = ROOT, settings: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a Python module in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | PYTHON | (settings or {}),
        start_new_session=True,
    )


def start_caller(
    folder: Path, count: int, seconds: float, on: str = "local", settings: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Run slow tasks from a process of its own."""
    return start("tests.tasks.work", folder, count, seconds, on, settings=settings)


class DaskCluster:
    """A scheduler and two workers on this machine, each a process of its own.

    Args:
        folder: Where they keep their files.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.parts: list[subprocess.Popen[str]] = []

    @property
    def on(self) -> str:
        """The cluster as the value of ``--on``."""
        return f"dask://127.0.0.1:{self.port}"

    @property
    def scheduler(self) -> subprocess.Popen[str]:
        """The process of the scheduler."""
        return self.parts[0]

    def begin(self, threads: int = 1) -> None:
        """Start the scheduler and the workers; they find each other by themselves."""
        common = {"DASK_DISTRIBUTED__COMM__RETRY__COUNT": "3", "DASK_LOGGING__DISTRIBUTED": "error"}
        words = ("--host", "127.0.0.1", "--port", self.port, "--no-dashboard")
        self.parts.append(start("distributed.cli.dask_scheduler", *words, folder=self.folder, settings=common))
        for _ in range(2):
            words = (f"tcp://127.0.0.1:{self.port}", "--nthreads", threads, "--no-nanny", "--no-dashboard")
            self.parts.append(start("distributed.cli.dask_worker", *words, folder=self.folder, settings=common))

    def count_workers(self) -> int:
        """Number of workers that the scheduler knows."""
        from distributed import Client

        with Client(f"127.0.0.1:{self.port}", timeout=20, set_as_default=False) as client:
            return len(client.scheduler_info()["workers"])

    def end(self) -> None:
        """Kill all of it."""
        for one in self.parts:
            one.kill()
            one.communicate()
        self.parts.clear()
