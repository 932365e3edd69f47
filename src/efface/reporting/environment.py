"""Describe the machine and the software versions that a result was computed with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from efface.schema import RecordModel


class Environment(RecordModel):
    """The machine and the software versions of a computation."""

    python: str
    torch: str
    platform: str
    cpu: str
    threads: int
    device: str = "cpu"

    @staticmethod
    def current(torch: str, threads: int, device: str = "cpu") -> Environment:
        """Describe this machine.

        Args:
            torch: Version of PyTorch, passed as a string because this package does not import torch.
            threads: Number of threads of the computation.
            device: Device of the computation.

        """
        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        cpu = f"{_processor()}, {os.cpu_count()} logical"
        python = platform.python_version()
        return Environment(python=python, torch=torch, platform=system, cpu=cpu, threads=threads, device=device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux: fall back to the platform module
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")
