"""Trackers: each real one receives every step and no name of an example, also when a run fails."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from efface.errors import EffaceError
from efface.training import trackers
from efface.training.trackers import TRACKERS, flatten_settings, track
from tests.commands import TINY, call, refused

SETTINGS = {
    "method": {"name": "salun", "weight": 0.5},
    "seed": 3,
    "forget": "@keys:anna-1,anna-2",
    "data": {"source": "/home/anna/pictures"},
    "split": {"trained": "anna.txt"},
}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)


def steps(tracker: Any, numbers: range) -> None:
    for step in numbers:
        tracker.log({"step": step, "phase": "forget", "lr": 0.1, "terms": {"loss": step / 2, "odd": float("nan")}})


class Stop(dict[str, float]):
    """Loss terms that cannot be read."""

    def items(self) -> Any:
        raise ValueError("stop")


def read_tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"forget/loss", "lr"}
    return [(one.step, one.value) for one in found.Scalars("forget/loss")]


def test_tensorboard_has_every_step(tmp_path: Path):
    with track("tensorboard:logs", "run", SETTINGS) as tracker:
        steps(tracker, range(1, 6))
    assert read_tensorboard(tmp_path / "logs" / "run") == [(n, n / 2) for n in range(1, 6)]


def test_mlflow_has_every_step_and_the_state(tmp_path: Path):
    from mlflow.tracking import MlflowClient

    with track("mlflow:store", "run", SETTINGS) as tracker:
        steps(tracker, range(1, 131))
    with pytest.raises(ValueError, match="stop"), track("mlflow:store", "broken", {}) as tracker:
        tracker.log({"step": 1, "phase": "x", "terms": Stop()})
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("efface")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert (runs["run"].info.status, runs["broken"].info.status) == ("FINISHED", "FAILED")
    assert runs["run"].data.params == {"method.name": "salun", "method.weight": "0.5", "seed": "3"}
    values = client.get_metric_history(runs["run"].info.run_id, "forget/loss")
    assert sorted((one.step, one.value) for one in values) == [(n, n / 2) for n in range(1, 131)]


def test_wandb_offline_keeps_every_step_on_disk(tmp_path: Path):
    with track("wandb:project", "run", SETTINGS) as tracker:
        steps(tracker, range(1, 6))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history, names = read_wandb(file)
    for _ in range(100):  # its own process writes the file
        if len(history) == 5:
            break
        time.sleep(0.2)
        history, names = read_wandb(file)
    assert [(row["_step"], row["forget/loss"]) for row in history] == [(n, n / 2) for n in range(1, 6)]
    assert "method.weight" in names
    assert not any("anna" in name for name in names)


def read_wandb(path: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """The history rows, and the names and values of the settings, in W&B's own file."""
    from wandb.proto import wandb_internal_pb2 as pb

    rows, names = list[dict[str, Any]](), set[str]()
    for data in log_records(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            rows.append({one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.history.item})
        for one in [*record.config.update, *record.run.config.update]:
            names |= {one.key or ".".join(one.nested_key), one.value_json}
    return rows, names


def log_records(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of a log in LevelDB's format: 7 bytes of header (checksum, length, kind), split at blocks."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last piece
            yield whole
            whole = b""


def test_steps_only_go_up(tmp_path: Path):
    """A search starts again at 1 with each trial."""
    with track("tensorboard:logs", "run", {}) as tracker:
        steps(tracker, range(1, 4))
        steps(tracker, range(1, 4))
    assert [step for step, _ in read_tensorboard(tmp_path / "logs" / "run")] == [1, 2, 3, 4, 5, 6]


def test_no_tracker_is_told_a_name():
    flat = flatten_settings(SETTINGS)
    assert flat == {"method.name": "salun", "method.weight": 0.5, "seed": 3}


def test_the_command_line_tracks_and_the_run_is_as_without(tmp_path: Path):
    arguments = ["pretrain", "--data", "digits", *TINY, "--quiet"]
    assert call(*arguments, "--out", "plain") == 0
    assert call(*arguments, "--out", "seen", "--track", "tensorboard:logs") == 0
    digests = [json.loads((tmp_path / name / "meta.json").read_text())["digest"] for name in ("plain", "seen")]
    assert digests[0] == digests[1]
    assert list((tmp_path / "logs" / "seen").glob("events.*"))


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    def missing(module: str) -> Any:
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(trackers, "import_module", missing)
    with pytest.raises(EffaceError) as refusal, track(name, "run", {}):
        pass
    assert f"efface[{name}]" in refusal.value.remedy


def test_an_unknown_tracker_is_refused_before_anything_is_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    code = call("pretrain", "--data", "digits", *TINY, "--out", "x", "--track", "tensorbord")
    refused((code, *capfd.readouterr()), "no tracker called 'tensorbord'", "tensorboard")
    assert not (tmp_path / "x").exists()


def test_settings_may_be_any_mapping():
    class Odd(dict[str, Any]):
        pass

    nested: Mapping[str, Any] = Odd(recipe=Odd(epochs=2, views=Odd(flip=True)), none=None)
    assert flatten_settings(nested) == {"recipe.epochs": 2, "recipe.views.flip": True}
