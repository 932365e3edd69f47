"""Describe the machine and the software versions that a result was computed with."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
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
    packages: str = ""
    """SHA-256 of the installed packages, as ``pip list --format=freeze | LC_ALL=C sort`` prints them; empty where it
    was not recorded."""

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
        return Environment(
            python=platform.python_version(),
            torch=torch,
            platform=system,
            cpu=cpu,
            threads=threads,
            device=device,
            packages=_packages(),
        )


def _packages() -> str:
    """Digest of the installed packages, one ``name==version`` on each line."""
    described = [one.metadata for one in metadata.distributions()]  # each use of it parses a file
    found = sorted({f"{one['Name']}=={one['Version']}" for one in described})
    return hashlib.sha256("".join(f"{one}\n" for one in found).encode()).hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux: fall back to the platform module
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")
