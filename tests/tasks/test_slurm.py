"""Tasks as jobs of submitit, on its local executor: a process for each job on this machine, without Slurm."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from efface.errors import EffaceError
from efface.tasks import Task, TaskOutcome, run_tasks
from tests.tasks import work
from tests.tasks.clusters import PYTHON, alive, start_caller, wait_until

ON = "slurm:any?cluster=local"


@pytest.fixture(autouse=True)
def results_are_there_at_once(monkeypatch):
    """Do not wait as long for the result of a killed job as network storage needs; jobs find the package of tests."""
    from submitit.core.core import Job

    monkeypatch.setattr(Job, "_results_timeout_s", 0.5)
    monkeypatch.setenv("PYTHONPATH", PYTHON["PYTHONPATH"])


def test_errors_deaths_and_surroundings_are_as_on_this_machine(tmp_path):
    outcomes: dict[str, TaskOutcome] = {}
    said: list[str] = []
    tasks = [
        Task("failing", work.fail, ("diverged",)),
        Task("needy", work.add, (tmp_path, "needy"), needs=("failing",)),
        Task("surroundings", work.surroundings),
        Task("unreadable", work.cannot_be_sent),
        Task("once", work.die, (tmp_path, "once", 1), is_done=(tmp_path / "once").exists),
    ]
    run_tasks(tasks, on=ON, folder=tmp_path, say=said.append, over=lambda one: outcomes.update({one.task.name: one}))
    assert "no longer a finite number at step 3" in str(outcomes["failing"].error)
    assert str(outcomes["needy"].blocked_by) == "failing"
    assert "pickle" in str(outcomes["unreadable"].error)
    found = outcomes["surroundings"].result
    assert found["pid"] != os.getpid() and found["threads"] == "1" and not found["torch"]
    assert [line.partition(":")[0] for line in said] == ["once"] and "It is run again." in said[0]
    assert work.made(tmp_path) == ["once"]
    assert not list(tmp_path.glob(".tasks-*"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_the_caller_is_stopped_and_called_again(tmp_path, sign):
    with start_caller(tmp_path, 2, 1.5, ON) as caller:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        caller.send_signal(sign)
        caller.communicate(timeout=20)
    run_tasks(work.slow_tasks(tmp_path, 2, 0.0), on=ON, jobs=2, folder=tmp_path)
    assert work.made(tmp_path) == ["last", "slow-0", "slow-1"]  # nothing lost, nothing twice
    wait_until(lambda: not any(alive(pid) for pid in work.pids(tmp_path)), 10)
    assert not list(tmp_path.glob(".tasks-*"))


def test_long_jobs_on_this_machine_end_with_a_caller_that_is_killed(tmp_path):
    with start_caller(tmp_path, 2, 300.0, ON) as caller:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        caller.kill()
        caller.communicate(timeout=20)
    wait_until(lambda: not any(alive(pid) for pid in work.pids(tmp_path)), 10)
    assert work.made(tmp_path) == []


def test_a_job_is_killed_in_the_middle(tmp_path):
    def kill() -> None:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        time.sleep(0.1)
        os.kill(work.pids(tmp_path)[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    assert run_tasks(work.slow_tasks(tmp_path, 2, 0.8), on=ON, folder=tmp_path) == 3
    thread.join()
    assert work.made(tmp_path) == ["last", "slow-0", "slow-1"]


def test_an_option_that_slurm_lacks_is_refused(tmp_path):
    with pytest.raises(EffaceError, match="no option of --on"):
        run_tasks([Task("a", work.add, (tmp_path, "a"))], on=f"{ON}&queue=long", folder=tmp_path)
