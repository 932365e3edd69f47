"""The same bench on this machine, on a Dask cluster and in a queue of jobs: the same results, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from efface.bench.grid import build_grid
from efface.bench.runner import run_bench
from efface.bench.worker import read_outcome
from tests.bench.test_bench import GRID, journal
from tests.tasks.clusters import DaskCluster

SMALL: dict[str, Any] = GRID | {
    "seeds": {"selection": [], "reporting": [10]},
    "oracles": {"selection": 0, "reporting": 1},
    "methods": {"neggrad": {"epochs": 1}},
}


def untimed(value: Any) -> Any:
    """Everything but the times, which no two runs share."""
    if isinstance(value, dict):
        time = {"value", "note"} if "seconds" in str(value.get("name", "")) else set()
        return {key: untimed(one) for key, one in value.items() if key not in {"created", "seconds"} | time}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def outcomes(home: Path) -> dict[str, Any]:
    """The outcome of every task, without its time."""
    made = {
        path.relative_to(home).parent.as_posix(): read_outcome(path.parent) for path in home.glob("*/*/outcome.json")
    }
    return {name: untimed(one) for name, one in made.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The bench, run by processes of this machine."""
    home = tmp_path_factory.mktemp("local")
    run_bench(build_grid(SMALL), home)
    return home


@pytest.mark.parametrize("kind", ["dask", "slurm"])
def test_results_are_identical_wherever_the_tasks_run(here, tmp_path, tmp_path_factory, kind):
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    try:
        if kind == "dask":
            cluster.begin()
        on = cluster.on if kind == "dask" else "slurm:any?cluster=local"
        result = run_bench(build_grid(SMALL), tmp_path, on=on)
    finally:
        cluster.end()
    files = [untimed(json.loads((home / "results.json").read_text(encoding="utf-8"))) for home in (here, tmp_path)]
    assert files[0] == files[1]
    assert outcomes(here) == outcomes(tmp_path) and len(outcomes(here)) == 7
    assert journal(here) == journal(tmp_path) and set(journal(here).values()) == {1}
    assert (result.made, result.failed) == (7, {})
    assert {path.name for path in here.iterdir()} == {path.name for path in tmp_path.iterdir()}


def test_a_scheduler_that_is_killed_changes_nothing(here, tmp_path):
    from research import killed_benches  # it reads this module

    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    found = killed_benches.run_round("dask", "scheduler", grid, tmp_path / "bench", here, at=1)
    assert found["in time"] and found["exit"] == 0, (tmp_path / "bench.log").read_text(encoding="utf-8")
    assert (found["lost"], found["twice"], found["same results"], found["left"]) == (0, 0, True, [])
