"""Where tasks run: what can be named, and what cannot."""

from __future__ import annotations

import sys
import threading

import pytest

from efface.errors import EffaceError
from efface.tasks import Task, report_steps, run_tasks
from efface.tasks.place import TaskPlace
from efface.tasks.worker import Workplace, perform
from tests.tasks import work

PLACES = {
    "local": TaskPlace("local"),
    "dask://10.0.0.1:8786": TaskPlace("dask", "10.0.0.1:8786"),
    "dask://host:8786?GPU=1&memory=8e9": TaskPlace("dask", "host:8786", {"GPU": "1", "memory": "8e9"}),
    "slurm:gpu": TaskPlace("slurm", "gpu"),
    "slurm:gpu?time=60&mem_gb=16": TaskPlace("slurm", "gpu", {"time": "60", "mem_gb": "16"}),
}
WRONG = {
    "cloud": "Known: local, dask://HOST:PORT, slurm:PARTITION",
    "": "Known: local",
    "localhost": "Known: local",
    "local:4": "neither address nor options",
    "local?jobs=2": "neither address nor options",
    "dask": "lacks the scheduler's address",
    "dask://": "lacks the scheduler's address",
    "dask://h:1?GPU": "a resource that is no number",
    "dask://h:1?GPU=1&GPU=2": "NAME=NUMBER",
    "slurm": "lacks a partition",
    "slurm:?time=1": "lacks a partition",
    "dask://h:1?GPU=one": "a resource that is no number",
    "dask://127.0.0.1:9": "No Dask scheduler answers at 127.0.0.1:9",
    "slurm:gpu?cluster=cloud": "no cluster 'cloud'",
    "slurm:gpu?cluster=local&tme=1": "Did you mean 'time'",
    "slurm:gpu?cluster=local&gpus=many": "It is a whole number",
    "slurm:gpu": "Slurm was not found",
}


@pytest.mark.parametrize("on", PLACES)
def test_a_place_is_kind_address_and_options(on):
    assert TaskPlace.parse(on) == PLACES[on] and PLACES[on].remote == (on != "local")


@pytest.mark.parametrize("on", WRONG)
def test_wrong_places_are_refused_and_nothing_is_left(tmp_path, monkeypatch, on):
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    monkeypatch.setattr("efface.tasks.dask_cluster.CONNECT_SECONDS", 0.5)
    task = Task("a", work.add, (tmp_path, "a"))
    with pytest.raises(EffaceError) as refused:
        run_tasks([task], on=on, folder=tmp_path)
    assert WRONG[on] in str(refused.value) and refused.value.why
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_of_processes_is_refused(tmp_path):
    with pytest.raises(EffaceError, match="--jobs cannot be 0"):
        run_tasks([Task("a", work.add, (tmp_path, "a"))], jobs=0)


@pytest.mark.parametrize(("on", "module"), [("dask://h:1", "distributed"), ("slurm:gpu", "submitit")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, on, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EffaceError, match=rf"The library {module} is not installed.*efface\[{on[:4]}"):
        run_tasks([Task("a", work.add, (tmp_path, "a"))], on=on, folder=tmp_path)


def test_other_machines_need_a_folder_that_all_see(tmp_path):
    with pytest.raises(ValueError, match="a folder that all of them see"):
        run_tasks([Task("a", work.add, (tmp_path, "a"))], on="slurm:gpu")


# ---- in the process of a task ----


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("efface.tasks.worker.SEEN_SECONDS", 0.3)
    for notes in (tmp_path / "nowhere" / ".tasks-1", tmp_path / ".tasks-1"):
        ended = perform(Workplace(notes, tmp_path), "a", work.add, (tmp_path, "a"))
        assert f"does not see {notes.parent}" in str(ended.error)
    assert work.made(tmp_path) == []


def test_a_folder_that_appears_late_is_waited_for(tmp_path):
    notes = tmp_path / ".tasks-1"
    thread = threading.Timer(0.4, notes.mkdir)
    thread.start()
    ended = perform(Workplace(notes, tmp_path), "a", work.surroundings, ())
    assert ended.error is None and ended.seconds >= 0.3
    thread.join()


def test_another_version_is_refused(tmp_path):
    ended = perform(Workplace(tmp_path, tmp_path, "0.0.1"), "a", work.add, (tmp_path, "a"))
    assert "and this is 0.0.1" in str(ended.error) and work.made(tmp_path) == []


def test_relative_paths_begin_where_the_caller_is(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "caller").mkdir()
    ended = perform(Workplace(tmp_path, tmp_path / "caller"), "a", work.surroundings, ())
    assert ended.result["folder"] == str(tmp_path / "caller")


def test_steps_are_reported_twice_a_second_and_only_by_a_running_task(tmp_path):
    place = Workplace(tmp_path)
    assert place.read_steps(["a"]) == {}
    report_steps(1, 2)
    assert list(tmp_path.iterdir()) == []
    perform(place, "a", work.in_steps, (tmp_path, "a", 0.0, 50))
    assert place.read_steps(["a", "b"]) == {"a": (0, 0)}
