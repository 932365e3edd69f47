"""TODO docstring."""

from __future__ import annotations

import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import efface
from efface.reporting.environment import Environment


def summary(values: list[float]) -> dict[str, Any]:
    """Median, least, most and n."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def named(argument: str) -> str:
    """A path elsewhere on this machine by its name alone, all else as it is."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    here = Environment.current(torch.__version__, torch.get_num_threads())
    return {
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(named, sys.argv[1:])]),
        "efface": efface.__version__,
        "cpu": here.cpu,
        **versions,
    }
