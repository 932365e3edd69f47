"""Environment: the machine and the versions that a result was computed with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from efface.schema import RecordModel


class Environment(RecordModel):
    """Where it was computed."""

    python: str
    torch: str
    platform: str
    cpu: str
    threads: int
    device: str = "cpu"

    @staticmethod
    def current(torch: str, threads: int, device: str = "cpu") -> Environment:
        """This machine; ``torch`` is the version string, because nothing here imports it."""
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        cpu = f"{_processor()}, {os.cpu_count()} logical"
        python = platform.python_version()
        return Environment(python=python, torch=torch, platform=system, cpu=cpu, threads=threads, device=device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux: the platform module knows what there is to know
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
