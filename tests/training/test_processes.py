"""One model over two processes: the weights of one process, one writer, and an end for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.cli import main
from efface.errors import EffaceError
from efface.training import launch
from efface.training.devices import resolve_device
from efface.training.loop import Run
from efface.training.objectives import OBJECTIVES
from efface.training.processes import ONE, join_processes
from tests.training import process_work

EXACT = 1e-5
"""Largest difference between one process and two, in float32."""
HERE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Path]:
    """What one process finds, and each of two."""
    pytest.importorskip("lightning_fabric", reason="the extra dist is not installed")
    out = tmp_path_factory.mktemp("processes")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [*words, "-m", "tests.training.process_work", str(out)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as two:  # fmt: skip
        try:
            one = process_work.work(out)
            said, _ = two.communicate(timeout=300)
        except BaseException:
            two.kill()
            raise
    assert (out / "rank1.pt").exists(), said
    assert two.returncode != 0  # the second process kills itself in the end
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    return one, first, second, out


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference of any number in two state dicts."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


CASES = [f"objective/{name}" for name in sorted(OBJECTIVES)] + [f"method/{name}" for name in process_work.METHOD_CASES]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_of_one(found, case):
    one, first, second, _ = found
    assert difference(one[case]["state"], first[case]["state"]) < EXACT
    assert difference(first[case]["state"], second[case]["state"]) == 0


@pytest.mark.parametrize("case", CASES)
def test_the_logs_say_the_same(found, case):
    one, first, _, _ = found
    logs = one[case]["log"], first[case]["log"]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    for alone, shared in zip(*logs, strict=True):
        assert shared["terms"] == pytest.approx(alone["terms"], abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_training_moved_the_weights_far_more_than_that(found, name):
    trained = found[0][f"objective/{name}"]["state"]
    fresh = process_work.start(name).state_dict()
    assert max(float((trained[key] - fresh[key]).abs().max()) for key in fresh if key.endswith("weight")) > 100 * EXACT


@pytest.mark.parametrize("size", [8, 7, 3, 1])
def test_batch_norm_has_the_statistics_of_all_rows(found, size):
    one, first, second, _ = found
    assert difference(one["norm"][size], first["norm"][size]) < EXACT
    assert difference(first["norm"][size], second["norm"][size]) == 0


def test_an_interrupted_training_resumes_with_the_same_weights(found):
    for process in found[:3]:
        assert difference(process["resume"]["whole"], process["resume"]["resumed"]) == 0


def test_only_the_first_process_writes_epochs(found):
    assert found[1]["resume"]["wrote"]
    assert not found[2]["resume"]["wrote"]


def test_a_run_folder_has_one_writer_and_its_refusal_reaches_all(found):
    _, first, second, out = found
    assert (out / "run2" / "log.jsonl").read_text() == "0\n"
    assert first["folder"][0] == out.name
    assert second["folder"][0] != out.name
    assert first["folder"][1:] == second["folder"][1:] == ["verb: none\n", f"{out / 'run2'} exists already."]
    assert [path.name for path in out.iterdir() if "partial" in path.name] == []


def test_the_end_of_a_process_ends_the_others_with_a_message(found):
    assert "Another process of this run ended" in (found[3] / "ended.txt").read_text()


def test_observations_are_those_of_one_process_bit_for_bit(found):
    one, first, second, _ = found
    for process in (first, second):
        assert process["observed"].keys() == one["observed"].keys()
        assert all((process["observed"][name] == value).all() for name, value in one["observed"].items())


def test_without_a_launcher_there_is_one_process():
    assert join_processes("cpu") is ONE
    assert Run().world is ONE
    assert ONE.spread(len, [1, 2]) == 2  # pyright: ignore
    assert ONE.agree(3) == ONE.lead(lambda: 3) == 3


@pytest.mark.parametrize("verb", ["references", "bench", "demo", "report"])
def test_other_verbs_refuse_several_processes(monkeypatch, capsys, verb):
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["efface", verb, *(["x"] if verb != "demo" else [])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"efface {verb} does not run in several processes" in capsys.readouterr().err


def test_the_other_processes_print_nothing_but_their_own_errors(monkeypatch, capsys):
    from efface.cli.output import write_lines, write_message

    for name, value in (HERE | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    write_lines(["a result"])
    write_message("progress")
    assert capsys.readouterr() == ("", "")
    write_message("an error of this process", by_all=True)
    assert "of this process" in capsys.readouterr().err


def test_each_process_gets_a_gpu_of_its_own(monkeypatch):
    for name, value in (HERE | {"RANK": "1", "LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: asked.append(str(device)))
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")


def test_more_processes_than_gpus_and_other_devices_are_refused(monkeypatch):
    pytest.importorskip("lightning_fabric", reason="the extra dist is not installed")
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EffaceError, match="cannot share a model on the device 'mps'"):
        join_processes("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EffaceError, match="2 processes on this machine, and 1 GPUs"):
        join_processes("cuda")


@pytest.mark.parametrize(("name", "value"), [("LT_STRATEGY", "fsdp"), ("LT_PRECISION", "16-mixed")])
def test_options_of_fabric_run_are_followed_or_refused(monkeypatch, name, value):
    for accepted in ("LT_CLI_USED", "LT_DEVICES"):
        monkeypatch.setenv(accepted, "1")
    launch.accept_fabric_options()
    assert not [one for one in os.environ if one.startswith("LT_")]
    monkeypatch.setenv(name, value)
    with pytest.raises(EffaceError, match=f"{value}` cannot be followed"):
        launch.accept_fabric_options()


def test_the_end_of_another_process_is_explained(monkeypatch):
    broken = RuntimeError("[pair.cc:545] Connection closed by peer [127.0.0.1]:14561")
    assert launch.explain_ended_process(broken) is None  # nobody else is there
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)
    error = launch.explain_ended_process(broken)
    assert error is not None
    assert "Another process of this run ended" in error.what
    assert launch.explain_ended_process(RuntimeError("shapes do not match")) is None


def test_a_variable_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(EffaceError, match="WORLD_SIZE of the environment is 'two'"):
        launch.count_processes()
