"""Tasks on a Dask scheduler and two workers, real processes on this machine, that are killed in the middle."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from efface.errors import EffaceError
from efface.tasks import Task, TaskOutcome, dask_cluster, run_tasks
from tests.tasks import work
from tests.tasks.clusters import DaskCluster, alive, start_caller, wait_until

NAMES = ["last", "slow-0", "slow-1", "slow-2", "slow-3"]


@pytest.fixture
def cluster(tmp_path_factory):
    """A cluster that a test may kill."""
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    made.begin()
    yield made
    made.end()


def test_errors_steps_and_surroundings_are_as_on_this_machine(cluster, tmp_path):
    outcomes: dict[str, TaskOutcome] = {}
    said: list[str] = []
    steps: set[tuple[int, int]] = set()
    tasks = [
        Task("failing", work.fail, ("diverged",)),
        Task("needy", work.add, (tmp_path, "needy"), needs=("failing",)),
        Task("surroundings", work.surroundings),
        Task("unreadable", work.cannot_be_sent),
        Task("slow", work.in_steps, (tmp_path, "slow", 1.5, 15), is_done=(tmp_path / "slow").exists),
        Task("there", work.add, (tmp_path, "slow"), needs=("slow",)),
    ]
    run_tasks(
        tasks,
        on=cluster.on,
        folder=tmp_path,
        say=said.append,
        over=lambda one: outcomes.update({one.task.name: one}),
        watch=lambda running: steps.update(shown for task, shown in running if task.name == "slow"),
    )
    assert "no longer a finite number at step 3" in str(outcomes["failing"].error)
    assert str(outcomes["needy"].blocked_by) == "failing"
    assert "pickle" in str(outcomes["unreadable"].error)
    found = outcomes["surroundings"].result
    assert found["threads"] == "1" and found["pid"] in {one.pid for one in cluster.parts[1:]}
    assert max(steps) > (1, 15) and outcomes["there"].result == -1
    assert len(said) == 1 and "Its dashboard: http" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "slow"]


def test_a_worker_is_killed_in_the_middle_of_a_task(cluster, tmp_path):
    tasks = work.slow_tasks(tmp_path, 4, 0.6)
    killed: list[int] = []

    def kill() -> None:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        time.sleep(0.1)
        killed.append(cluster.parts[1].pid)
        cluster.parts[1].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    assert run_tasks(tasks, on=cluster.on, folder=tmp_path) == 5
    thread.join()
    assert work.made(tmp_path) == NAMES  # nothing lost, nothing twice
    assert killed[0] in work.pids(tmp_path) and killed[0] not in work.makers(tmp_path)


def test_the_scheduler_is_killed_and_started_again(cluster, tmp_path):
    said: list[str] = []
    workers = [one.pid for one in cluster.parts[1:]]

    def kill() -> None:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        time.sleep(0.1)
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        cluster.begin()

    thread = threading.Thread(target=kill)
    thread.start()
    assert run_tasks(work.slow_tasks(tmp_path, 4, 0.6), on=cluster.on, folder=tmp_path, say=said.append) == 5
    thread.join()
    assert work.made(tmp_path) == NAMES
    assert any("The Dask scheduler ended. It is run again." in line for line in said)
    wait_until(lambda: not any(alive(pid) for pid in workers), 10)  # those of the old scheduler


def test_the_scheduler_is_killed_while_a_result_is_on_its_way(cluster, tmp_path, monkeypatch):
    from distributed import Client

    gather, killed, said = Client._gather_remote, [], []

    async def kill_first(self, *args):
        if not killed:
            killed.append(cluster.scheduler.pid)
            cluster.scheduler.kill()
            cluster.scheduler.wait()
            cluster.begin()
        return await gather(self, *args)

    monkeypatch.setattr(Client, "_gather_remote", kill_first)
    assert run_tasks(work.slow_tasks(tmp_path, 4, 0.1), on=cluster.on, folder=tmp_path, say=said.append) == 5
    assert work.made(tmp_path) == NAMES
    assert any("The Dask scheduler ended. It is run again." in line for line in said)


def test_a_client_that_closes_while_a_call_is_submitted(cluster, monkeypatch):
    made = dask_cluster.DaskExecutor(cluster.on.removeprefix("dask://"), {})
    real = made._require_scheduler
    closed: list[bool] = []

    def close_after() -> None:
        real()
        if not closed:
            closed.append(True)
            made.client.close()

    monkeypatch.setattr(made, "_require_scheduler", close_after)
    assert made.submit(abs, -1).result(20) == 1 and closed
    made.shutdown()


def test_a_scheduler_that_does_not_come_back_is_an_error(cluster, tmp_path, monkeypatch):
    def kill() -> None:
        wait_until(lambda: work.pids(tmp_path))
        monkeypatch.setattr(dask_cluster, "RESTART_SECONDS", 0.2)
        monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
        cluster.scheduler.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(EffaceError, match=r"The Dask scheduler at 127.0.0.1:\d+ is gone"):
        run_tasks(work.slow_tasks(tmp_path, 4, 0.6), on=cluster.on, folder=tmp_path)
    thread.join()
    assert not list(tmp_path.glob(".tasks-*"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_the_caller_is_stopped_and_called_again(cluster, tmp_path, sign):
    with start_caller(tmp_path, 4, 1.0, cluster.on) as caller:
        wait_until(lambda: len(work.pids(tmp_path)) == 2)
        caller.send_signal(sign)
        caller.communicate(timeout=20)
        assert run_tasks(work.slow_tasks(tmp_path, 4, 0.1), on=cluster.on, folder=tmp_path) >= 3
    assert work.made(tmp_path) == NAMES
    assert all(alive(one.pid) for one in cluster.parts)
    assert not list(tmp_path.glob(".tasks-*"))


def test_workers_with_several_threads_are_refused(tmp_path, tmp_path_factory):
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    made.begin(threads=2)
    try:
        wait_until(lambda: made.count_workers() == 2)
        with pytest.raises(EffaceError, match="runs several tasks in one process"):
            run_tasks([Task("a", work.add, (tmp_path, "a"))], on=made.on, folder=tmp_path)
    finally:
        made.end()
    assert list(tmp_path.iterdir()) == []
