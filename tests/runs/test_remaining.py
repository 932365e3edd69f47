"""The remaining time is that of what is left, from what was done so far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efface.runs.remaining import RemainingTime, count_rows, format_left, watch_tasks
from efface.tasks import Task, run_tasks


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00 left"), (59.9, "0:59 left"), (3600, "1:00:00 left")])
def test_a_time_is_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert format_left(seconds) == text


def test_the_time_of_the_rest() -> None:
    said: list[str] = []
    left = RemainingTime(said.append, "Embedding", 200, "images", clock=iter([5.0, 5.0, 15.0, 45.0]).__next__)
    for done in (0, 50, 200):
        left(done)
    assert said == [
        "Embedding: 0 of 200 images",
        "Embedding: 50 of 200 images, 0:30 left",
        "Embedding: 200 of 200 images, 0:00 left",
    ]


def test_rows_are_passed_on_and_counted() -> None:
    said: list[str] = []
    parts = [np.zeros((3, 2)), np.ones((1, 2))]
    assert [len(one) for one in count_rows(parts, 4, said.append)] == [3, 1]
    assert said[-1].startswith("Embedding: 4 of 4 images")


def test_tasks_count_with_their_steps(tmp_path: Path) -> None:
    tasks = [Task(str(number), print, (), is_done=(tmp_path / str(number)).exists) for number in range(4)]
    (tmp_path / "3").touch()  # was done before, and does not count
    said: list[str] = []
    watch = watch_tasks(tasks, said.append, "models")
    watch([])
    (tmp_path / "0").touch()
    watch([(tasks[1], (50, 100)), (tasks[2], (0, 0))])
    assert said[0] == "Running: 0 of 3 models"
    assert said[1].startswith("Running: 1 of 3 models, 0:00 left")


def _make(path: Path) -> None:
    path.touch()


def test_tasks_in_processes_are_watched(tmp_path: Path) -> None:
    tasks = [Task(name, _make, (tmp_path / name,), is_done=(tmp_path / name).exists) for name in ("a", "b")]
    said: list[str] = []
    assert run_tasks(tasks, jobs=1, watch=watch_tasks(tasks, said.append, "models")) == 2
    assert said[-1].startswith("Running: 2 of 2 models")
