"""Heads at 100 000 rows of 512 numbers: seconds of a request that deletes 1, 10 or 1000 rows; equality to refitting.

    python -m benchmarks.heads [--rows 100000] [--width 512]

Results in benchmarks/results/heads.json. Embeddings are drawn at random; the time is that of the whole request, files
and record included, and not of starting Python. ``cpu``: seconds of the processor, which other work does not delay.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, machine, summary, write_json
from efface.runs.heads import HeadSettings, check_head, delete_rows, fit_head

REQUESTS = {1: 5, 10: 5, 1000: 3}
"""Rows per request to the number of requests."""


def write_embeddings(path: Path, rows: int, width: int) -> list[str]:
    """Write embeddings of ten overlapping classes; returns their keys."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, rows)
    features = rng.normal(size=(rows, width)).astype(np.float32)
    features[:, :10] += 1.5 * np.eye(10, dtype=np.float32)[labels]
    keys = np.array([f"images/{row:06d}.jpg" for row in range(rows)])
    np.savez(path, embeddings=features, keys=keys, labels=labels.astype(str))
    return keys.tolist()


def measure(kind: str, embeddings: Path, keys: list[str], folder: Path) -> dict[str, Any]:
    """Fit a head, and time requests to it."""
    began = time.perf_counter()
    fit_head(embeddings, folder, HeadSettings(kind))
    found: dict[str, Any] = {"fit": time.perf_counter() - began}
    left = list(np.random.default_rng(1).permutation(keys))
    for count, requests in REQUESTS.items():
        times, busy = list[float](), list[float]()
        for _ in range(requests):
            gone, left = left[:count], left[count:]
            began, worked = time.perf_counter(), time.process_time()
            delete_rows(folder, gone)
            times.append(time.perf_counter() - began)
            busy.append(time.process_time() - worked)
        found[str(count)] = summary(times) | {"cpu": summary(busy)}
    began = time.perf_counter()
    check = check_head(folder)
    return found | {"check": time.perf_counter() - began, "equal": check.passed, "measured": check.measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    asked = parser.parse_args()
    result: dict[str, Any] = {"rows": asked.rows, "width": asked.width, **machine()}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vectors.npz"
        keys = write_embeddings(path, asked.rows, asked.width)
        for kind in ("ridge", "knn"):
            result[kind] = measure(kind, path, keys, Path(scratch) / kind)
            print(kind, result[kind], flush=True)
    write_json(RESULTS / "heads.json", result)


if __name__ == "__main__":
    main()
