"""Tasks in real processes of this machine: one killed, one interrupted, the caller killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from efface.errors import DivergenceError, EffaceError
from efface.tasks import Task, TaskOutcome, WorkerDiedError, run_tasks
from efface.tasks.worker import FailedTaskError
from tests.tasks import work
from tests.tasks.clusters import PYTHON, alive, start_caller, wait_until


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """One run of tasks of many kinds: what was said, and the outcomes."""
    folder, said, outcomes = tmp_path_factory.mktemp("tasks"), [], {}
    (folder / "there").write_text("there")
    tasks = [
        Task("second", work.add, (folder, "second"), needs=("first", "there"), is_done=(folder / "second").exists),
        Task("first", work.add, (folder, "first"), is_done=(folder / "first").exists),
        Task("there", work.add, (folder, "there"), is_done=(folder / "there").exists),
        Task("once", work.die, (folder, "once", 1), is_done=(folder / "once").exists),
        Task("always", work.die, (folder, "always", 9), is_done=(folder / "always").exists),
        Task("blocked", work.add, (folder, "blocked"), needs=("always",)),
        Task("blocked too", work.add, (folder, "blocked too"), needs=("blocked",)),
        Task("after", work.add, (folder, "after"), after=("always",)),
        *(Task(kind, work.fail, (kind,)) for kind in ("efface", "diverged", "local class", "key")),
        Task("absent", work.surroundings, is_done=lambda: False),
        Task("surroundings", work.surroundings),
        Task("unreadable", work.cannot_be_sent),
    ]

    def over(outcome: TaskOutcome) -> None:
        outcomes[outcome.task.name] = outcome

    count = run_tasks(tasks, jobs=2, say=said.append, over=over)
    return folder, said, outcomes, count


def test_tasks_run_in_order_and_finished_ones_are_not_run(first):
    folder, _, outcomes, count = first
    assert work.made(folder) == ["after", "first", "once", "second"]
    assert list(outcomes).index("first") < list(outcomes).index("second")
    assert "there" not in outcomes and count == len(outcomes) - 2
    assert outcomes["second"].result > 0 and not outcomes["second"].failed and outcomes["second"].seconds >= 0


def test_a_killed_process_fails_only_its_own_task_which_is_run_once_more(first):
    folder, said, outcomes, _ = first
    assert len(list(folder.glob("once.*.death"))) == 2 and not outcomes["once"].failed
    assert len(list(folder.glob("always.*.death"))) == 2
    assert isinstance(outcomes["always"].error, WorkerDiedError) and "signal 9" in str(outcomes["always"].error)
    assert sorted(said) == [
        f"{n}: The process of the task ended with signal 9. It is run again." for n in ("always", "once")
    ]


def test_what_needs_a_failed_task_is_not_run(first):
    _, _, outcomes, _ = first
    assert str(outcomes["blocked"].blocked_by) == "always" and str(outcomes["blocked too"].blocked_by) == "blocked"
    assert not outcomes["after"].failed


def test_errors_arrive_as_they_were_raised(first):
    _, _, outcomes, _ = first
    assert isinstance(outcomes["efface"].error, EffaceError) and outcomes["efface"].error.remedy == "Do not."
    assert isinstance(outcomes["diverged"].error, DivergenceError) and outcomes["diverged"].error.step == 3
    assert isinstance(outcomes["key"].error, KeyError)
    assert isinstance(outcomes["local class"].error, FailedTaskError) and "OddError: odd" in str(
        outcomes["local class"].error
    )


def test_a_result_that_cannot_be_sent_fails_its_task(first):
    assert "pickle" in str(first[2]["unreadable"].error)


def test_a_task_whose_result_does_not_appear_has_failed(first):
    _, _, outcomes, _ = first
    assert "result is not there" in str(outcomes["absent"].error)


def test_a_process_has_one_thread_ignores_interrupts_and_does_not_import_torch(first):
    found = first[2]["surroundings"].result
    assert found["pid"] != os.getpid() and found["threads"] == "1" and found["interrupts"] and not found["torch"]
    assert not alive(found["pid"])


@pytest.mark.parametrize("before", [None, "7"])
def test_the_environment_of_the_caller_is_as_before(monkeypatch, before):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if before:
        monkeypatch.setenv("OMP_NUM_THREADS", before)
    assert run_tasks([Task("a", work.surroundings)], jobs=1) == 1
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_failures_are_said_and_the_first_is_raised_after_the_others_have_ended(tmp_path):
    said: list[str] = []
    tasks = [
        Task("bad", work.fail, ("efface",), label="the bad one"),
        Task("needy", work.add, (tmp_path, "needy"), needs=("bad",)),
        Task("worse", work.fail, ("key",)),
        Task("good", work.add, (tmp_path, "good")),
    ]
    with pytest.raises(EffaceError, match="It went wrong"):
        run_tasks(tasks, on="local", jobs=1, say=said.append)
    shown = [re.sub(r", \d+ s", "", line) for line in said]
    assert shown == [
        "1/4 the bad one, failed: It went wrong. Because. Do not.",
        "2/4 needy: not run, because the bad one failed",
        "3/4 worse, failed: 'key'",
        "4/4 good",
    ]
    assert work.made(tmp_path) == ["good"]


def test_the_steps_of_running_tasks_are_shown(tmp_path):
    seen: dict[str, set[tuple[int, int]]] = {}

    def watch(running):
        for task, steps in running:
            seen.setdefault(task.name, set()).add(steps)

    slow = Task("slow", work.in_steps, (tmp_path, "slow", 2.0, 20))
    assert run_tasks([slow], jobs=1, watch=watch) == 1
    reported = sorted(seen["slow"] - {(0, 0)})
    assert len(reported) >= 2 and all(total == 20 for _, total in reported)


def test_nothing_to_do_starts_nothing():
    assert run_tasks([Task("there", work.fail, ("key",), is_done=lambda: True)]) == 0
    assert run_tasks([]) == 0


def test_a_script_without_a_main_guard_is_told_what_it_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from efface.tasks import Task, run_tasks\ndef f(): ...\nrun_tasks([Task('a', f)], jobs=1)\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | PYTHON, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "current process has finished its bootstrapping phase" in done.stderr
    assert "AttributeError" not in done.stderr
    assert 'A script that runs tasks needs `if __name__ == "__main__":`' in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_caller_that_is_stopped_leaves_no_process_and_the_same_call_finishes(tmp_path, monkeypatch, sign):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with start_caller(tmp_path, 4, 1.5, settings={"TMPDIR": str(temporary)}) as caller:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        time.sleep(0.1)
        if sign == signal.SIGINT:
            os.killpg(caller.pid, sign)  # as a terminal does: to all processes at once
        else:
            caller.kill()
        wait_until(lambda: not any(alive(pid) for pid in work.pids(tmp_path)), 10)
        _, said = caller.communicate(timeout=10)
    assert caller.returncode != 0
    if sign == signal.SIGINT:
        assert said.count("Traceback") == 1, said  # the caller's own, none of a worker
    assert "last" not in work.made(tmp_path)
    assert bool(list(temporary.iterdir())) == (sign == signal.SIGKILL)
    run_tasks(work.slow_tasks(tmp_path, 4, 0.0), jobs=2)
    assert list(temporary.iterdir()) == []
    assert work.made(tmp_path) == ["last", "slow-0", "slow-1", "slow-2", "slow-3"]
