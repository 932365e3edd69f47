"""Runs that were trained in shards: their folders, exact deletion by the verbs, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from efface.errors import EffaceError
from efface.files import file_digest
from efface.reporting.exact_record import ExactRecord
from efface.reporting.redaction import read_key
from efface.reporting.refusals import Reason
from efface.reporting.signing import create_keys
from efface.reporting.verify import verify_bundle
from efface.runs.embed import embed_checkpoint
from efface.runs.exact_runs import shard_of
from efface.runs.train import pretrain_run, unlearn_run
from efface.training.checkpoint import Checkpoint, read_meta
from efface.training.kept_stages import STAGE_FOLDER, STAGE_INDEX
from tests.commands import JUDGED, TINY, call

SETTINGS = {
    "data": {"source": "digits", "limit": 300},
    "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60},
    "recipe": {
        "backbone": {"width": 8, "stride": 1}, "batch_size": 20, "epochs": 2, "shards": {"count": 3, "slices": 2},
    },
    "device": "cpu",
}  # fmt: skip
REQUEST = {"forget": "@random:2", "device": "cpu"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``original``, and ``deleted`` and ``retrained`` made from it."""
    here = tmp_path_factory.mktemp("shards")
    pretrain_run(here / "original", SETTINGS)
    unlearn_run(here / "original", here / "deleted", REQUEST | {"method": "shards"})
    unlearn_run(here / "original", here / "retrained", REQUEST | {"method": "retrain"})
    return here


def index(run: Path) -> list[dict]:
    return json.loads((run / STAGE_FOLDER / STAGE_INDEX).read_text())["stages"]


def test_the_run_is_that_of_a_training_without_the_examples(home):
    deleted, retrained, original = (read_meta(home / name) for name in ("deleted", "retrained", "original"))
    assert deleted["digest"] == retrained["digest"] != original["digest"]
    assert deleted["exact"] and deleted["method"] == {"name": "shards"}
    assert 0 < deleted["cost"]["steps"] < retrained["cost"]["steps"]
    kept, fresh = index(home / "deleted"), index(home / "retrained")
    assert [one["weights"] for one in kept] == [one["weights"] for one in fresh]
    assert any(one["reused"] for one in kept) and not any(one["reused"] for one in fresh)


def test_the_folder_is_its_own_and_keeps_no_stage_that_saw_them(home):
    files = {path.name for path in (home / "deleted" / STAGE_FOLDER).iterdir()}
    assert files == {f"{one['name']}.safetensors" for one in index(home / "deleted")} | {STAGE_INDEX}
    clean = {one["address"] for one in index(home / "retrained")}
    assert {one["address"] for one in index(home / "deleted")} == clean


def test_a_second_request_starts_from_the_first_one_without_the_original(home, tmp_path):
    shutil.copytree(home / "deleted", tmp_path / "first")
    again = REQUEST | {"forget_seed": 9}
    unlearn_run(tmp_path / "first", tmp_path / "second", again | {"method": "shards"})
    unlearn_run(tmp_path / "first", tmp_path / "check", again | {"method": "retrain"})
    assert read_meta(tmp_path / "second")["digest"] == read_meta(tmp_path / "check")["digest"]


def test_embeddings_are_side_by_side_or_averaged(home, tmp_path):
    whole = embed_checkpoint(home / "deleted", tmp_path / "joint.npz", {"device": "cpu"})
    mean = embed_checkpoint(home / "deleted", tmp_path / "mean.npz", {"device": "cpu", "combine": "mean"})
    assert whole.width == 3 * mean.width
    z = np.load(tmp_path / "joint.npz")["embeddings"].reshape(whole.rows, 3, -1)
    expected = (z / np.linalg.norm(z, axis=2, keepdims=True)).mean(1)
    np.testing.assert_allclose(np.load(tmp_path / "mean.npz")["embeddings"], expected, atol=1e-6)


def test_the_audit_observes_the_joint_model(home, tmp_path, capsys):
    shutil.copytree(home / "original", tmp_path / "original")
    shutil.copytree(home / "deleted", tmp_path / "deleted")
    assert call("audit", tmp_path / "deleted", "--set", "watch={views: 2, gradient: false}", "--quiet") in JUDGED
    record = json.loads((tmp_path / "deleted" / "record.json").read_text())
    parts = {one["part"]: one["changed"] for one in record["changes"]}
    assert {"shard0", "shard1", "shard2"} <= set(parts)
    assert not all(parts[f"shard{k}"] for k in range(3)), "a shard without a forgotten example is as it was"


def test_edited_or_missing_stages_are_refused(home, tmp_path):
    shutil.copytree(home / "original", tmp_path / "original")
    path = tmp_path / "original" / STAGE_FOLDER / STAGE_INDEX
    text = path.read_text()
    path.write_text(text.replace('"reused": false', '"reused": true'))
    with pytest.raises(EffaceError, match="not the one that the run was made with"):
        unlearn_run(tmp_path / "original", tmp_path / "out", REQUEST | {"method": "shards"})
    path.unlink()
    with pytest.raises(EffaceError, match="no index of kept stages"):
        unlearn_run(tmp_path / "original", tmp_path / "out", REQUEST | {"method": "shards"})
    assert not (tmp_path / "out").exists()
    unlearn_run(tmp_path / "original", tmp_path / "out", REQUEST | {"method": "retrain"})  # as the error advises


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": "finetune"}, "does not work on a checkpoint that was trained in shards"),
        ({"method": "shards", "seed": 4}, "cannot be retrained with the seed 4"),
        ({"method": "auto"}, "unlearned exactly"),
        ({"method": "shards", "budget": 20}, "unlearned exactly"),
    ],
)
def test_what_would_not_be_exact_is_refused(home, tmp_path, wrong, words):
    with pytest.raises(EffaceError, match=words):
        unlearn_run(home / "original", tmp_path / "out", REQUEST | wrong)


def test_a_single_network_has_no_shards_to_retrain(home, tmp_path):
    single = {**SETTINGS, "recipe": {**SETTINGS["recipe"], "shards": None}}
    pretrain_run(tmp_path / "single", single)
    with pytest.raises(EffaceError, match="trained in shards, and this one was not"):
        unlearn_run(tmp_path / "single", tmp_path / "out", REQUEST | {"method": "shards"})
    with pytest.raises(EffaceError, match="single network cannot be averaged"):
        embed_checkpoint(tmp_path / "single", tmp_path / "x.npz", {"device": "cpu", "combine": "mean"})
    assert Checkpoint.load(tmp_path / "single").recipe.shards is None


def test_the_option_of_the_command_line(tmp_path, capsys):
    words = ["pretrain", "--data", "digits", *TINY, "--set", "recipe.shards.slices=2", "--device", "cpu", "--quiet"]
    assert call(*words, "--out", tmp_path / "o", "--shards", "2") == 0
    assert len(index(tmp_path / "o")) == 4
    assert call(*words, "--out", tmp_path / "p", "--shards", "60") == 2
    assert "shards would begin with fewer than 2 examples" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.fixture
def copy(home, tmp_path) -> Path:
    """A copy of the original and of the run that was deleted from."""
    for name in ("original", "deleted"):
        shutil.copytree(home / name, tmp_path / name)
    return tmp_path / "deleted"


def test_an_exact_record_counts_and_names_nobody(home):
    path = home / "deleted" / "exact.json"
    record = ExactRecord.load(path)
    assert (record.kind, record.items.count, record.checks) == ("shards", 2, ())
    assert record.parts["trained_on_before"] - record.parts["trained_on_after"] == 2
    assert record.parts["stages_retrained"] + record.parts["stages_kept"] == 6
    forgotten = json.loads((home / "deleted" / "split.json").read_text())["parts"]["forget"]
    assert len(forgotten) == 2
    assert not any(f'"{key}"' in path.read_text() for key in forgotten)
    secret = read_key(home / "deleted" / "exact.key")
    assert all(record.items.contains(key, secret) for key in forgotten)
    assert not (home / "retrained" / "exact.json").exists()


def test_a_check_repeats_the_training_and_a_signature_needs_it_for_a_pass(copy, tmp_path, capsys):
    create_keys(tmp_path / "key.pem")
    key, bundle = tmp_path / "key.pub.pem", copy / "checkpoint.safetensors.intoto.jsonl"
    words = ["sign", copy, "--key", tmp_path / "key.pem", "--exact", "--quiet"]
    assert call(*words) == 0
    weights = copy / "checkpoint.safetensors"
    assert verify_bundle(bundle, key, weights, require_pass=True).reason is Reason.NOT_PASSED
    assert call("check", copy, "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and "bit for bit" in found["measured"]
    assert call(*words, "--force") == 0
    assert verify_bundle(bundle, key, weights, require_pass=True).reason is None
    assert call("export", "bom", bundle, "--key", key, "--quiet") == 0


def test_a_check_finds_weights_that_saw_the_examples(copy, capsys):
    """Planted: kept stages and weights are the original's, and every description says otherwise."""
    original, meta = copy.parent / "original", json.loads((copy / "meta.json").read_text())
    weights = {one["address"]: one["weights"] for one in index(original)}
    model, fake = Checkpoint.load(original), Checkpoint.load(copy)
    stages = index(copy)
    fresh = next(number for number, one in enumerate(stages) if not one["reused"])
    shard = shard_of(stages[fresh]["name"])
    fake.model.parts[shard].load_state_dict(model.model.parts[shard].state_dict())
    fake.save(copy)
    assert json.loads((copy / "meta.json").read_text())["digest"] != meta["digest"]
    path = copy / "exact.json"
    told = ExactRecord.load(path).model_copy(
        update={"unlearned": (fake.model.digest(), file_digest(copy / "checkpoint.safetensors"))}
    )
    told.save(path)
    assert call("check", copy, "--quiet") == 3
    assert not ExactRecord.load(path).checks[0].passed
    assert weights


def test_runs_without_the_record_are_refused_by_name(home, tmp_path, capsys):
    create_keys(tmp_path / "key.pem")
    for words in (
        ["check", home / "retrained"],
        ["sign", home / "retrained", "--exact", "--key", tmp_path / "key.pem"],
    ):
        assert call(*words, "--quiet") == 2
        assert "has no exact.json" in capsys.readouterr().err
