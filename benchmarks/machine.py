"""What the speed benchmarks, the experiments and the pages share: the machine, a summary of timings, result files."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import efface
from efface.files import hold_lock
from efface.reporting.environment import Environment

RESULTS = Path(__file__).parent / "results"
"""Where the speed and memory benchmarks write."""


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum and number of some timings."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def machine() -> dict[str, Any]:
    """The command, the processor and the versions that a result was measured with."""
    here = Environment.current(torch.__version__, torch.get_num_threads())
    return {
        "command": command(),
        "efface": efface.__version__,
        "cpu": here.cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def command() -> str:
    """The command line of this process, with absolute paths cut to their names: no home folder is published."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec else Path(sys.argv[0]).stem
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python -m", module, *words])


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 1, hide: Path | None = None) -> None:
    """Write a JSON file, and its folder where there is none.

    Args:
        path: The file.
        value: What it is to hold.
        indent: Spaces per level; None writes one line.
        hide: A folder of this machine whose path is cut from the text.

    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if hide is not None:
        text = text.replace(f"{hide}/", "").replace(f" {hide}", "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def add_row(path: Path, about: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> None:
    """Measure one row of a resumable result and write it at once, unless a row with the same ``about`` is there.

    Several processes may write to one file, each its own rows.
    """

    def is_there(rows: Sequence[Mapping[str, Any]]) -> bool:
        return any(all(row[key] == value for key, value in about.items()) for row in rows)

    def read() -> list[dict[str, Any]]:
        return read_json(path)["rows"] if path.exists() else []

    if is_there(read()):
        return
    row = {**about, **measure()}
    print(row, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(path):
        rows = read()  # others may have written while this one was measured
        if not is_there(rows):
            write_json(path, {"machine": machine(), "rows": [*rows, row]})
