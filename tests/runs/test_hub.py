"""Push and pull: what leaves the house names nobody, and what comes back is what was pushed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest

import efface
from efface.errors import EffaceError
from efface.runs import hub, train
from efface.runs.audit import audit_run
from efface.training.checkpoint import Checkpoint, content_digest
from tests.commands import call, refused

SETTINGS = {
    "data": {"source": "digits", "limit": 300},
    "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60},
    "recipe": {"backbone": {"width": 8, "stride": 1}, "batch_size": 20, "epochs": 2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    train.pretrain_run(home / "original", SETTINGS)
    train.unlearn_run(home / "original", home / "run", {"forget": "@class:3", "method": "finetune"})
    audit_run(home / "run", {"watch": {"views": 2, "gradient": False}})
    return home


def forgotten(run: Path) -> list[str]:
    return json.loads((run / "split.json").read_text(encoding="utf-8"))["parts"]["forget"]


def test_a_pushed_model_comes_back_with_the_same_weights(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")
    folder = efface.hub.pull(f"file:{tmp_path / 'shared'}", tmp_path / "pulled")
    loaded, own = Checkpoint.load(folder), Checkpoint.load(home / "run")
    assert loaded.model.digest() == own.model.digest()
    assert loaded.recipe == own.recipe
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_that_could_name_an_example_is_pushed(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")
    names = sorted(path.name for path in (tmp_path / "shared").rglob("*"))
    assert names == ["README.md", "checkpoint.safetensors", "meta.json"]
    keys = forgotten(home / "run")
    meta = json.loads((home / "run" / "meta.json").read_text(encoding="utf-8"))
    secrets = [meta["split"], meta["identity"], *meta["fixed"]["pictures"].values(), "@class", str(home)]
    for name in ("README.md", "meta.json"):
        text = (tmp_path / "shared" / name).read_text(encoding="utf-8")
        assert not [one for one in (*keys, *secrets) if len(one) > 3 and one in text]
    shared = json.loads((tmp_path / "shared" / "meta.json").read_text(encoding="utf-8"))
    assert {key for key in meta if meta[key] != shared[key]} == {"split", "identity", "fixed", "content_digest"}


def test_the_card_states_the_verdict_and_what_is_not_covered(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")
    card = huggingface_hub.ModelCard.load(tmp_path / "shared" / "README.md")
    data: Any = card.data
    assert data.library_name == "efface"
    assert data.tags == ["efface", "simclr", "machine-unlearning"]
    record = json.loads((home / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["verdict"]["sentence"] in card.text
    assert f"{len(forgotten(home / 'run'))} training examples were unlearned with the method `finetune`" in card.text
    assert "backups" in card.text


def test_an_original_is_pushed_without_a_verdict(home: Path, tmp_path: Path):
    hub.push(home / "original", f"file:{tmp_path / 'shared'}")
    card = huggingface_hub.ModelCard.load(tmp_path / "shared" / "README.md")
    assert "No audit" in card.text
    assert "machine-unlearning" not in (card.data.to_dict())["tags"]


def test_record_and_report_go_along_if_asked_for(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}", with_record=True)
    folder = hub.pull(f"file:{tmp_path / 'shared'}", tmp_path / "pulled")
    for name in hub.WITH_RECORD:
        assert (folder / name).read_bytes() == (home / "run" / name).read_bytes()
    assert not (folder / "items.key").exists()
    with pytest.raises(EffaceError, match="no record"):
        hub.push(home / "original", f"file:{tmp_path / 'other'}", with_record=True)


def test_a_second_push_replaces_the_first_and_nothing_else(home: Path, tmp_path: Path):
    target = tmp_path / "shared"
    hub.push(home / "run", f"file:{target}", with_record=True)
    hub.push(home / "run", f"file:{target}")
    assert not (target / "record.json").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"x")
    with pytest.raises(EffaceError, match="holds something else"):
        hub.push(home / "run", f"file:{tmp_path / 'photos'}")
    assert (tmp_path / "photos" / "one.png").read_bytes() == b"x"


def test_the_hub_gets_what_a_folder_would(home: Path, tmp_path: Path):
    """The interface of ``HfApi`` is the real one; only the network is not there."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.upload_folder.side_effect = lambda **given: shutil.copytree(given["folder_path"], tmp_path / "uploaded")
    assert hub.push(home / "run", "me/encoder", api=api) == "https://huggingface.co/me/encoder"
    api.create_repo.assert_called_once_with("me/encoder", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "me/encoder"
    card = (tmp_path / "uploaded" / "README.md").read_text(encoding="utf-8")
    assert "# encoder\n" in card
    assert 'pull("me/encoder"' in card


def test_pull_from_the_hub_checks_what_comes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")

    def download(repo_id: str, *, revision: str | None, local_dir: str, token: str | None) -> str:
        shutil.copytree(tmp_path / "shared", local_dir)
        (Path(local_dir) / ".cache").mkdir()
        return local_dir

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert min(path.name for path in hub.pull("me/encoder", tmp_path / "a").iterdir()) == "README.md"
    weights = (tmp_path / "shared" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "shared" / "checkpoint.safetensors").write_bytes(weights[:-4] + b"\0\0\0\0")
    with pytest.raises(EffaceError, match="not the ones"):
        hub.pull("me/encoder", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def offline(*args: Any, **kwargs: Any) -> Any:
    raise ConnectionError("no route to host\nmore")


def test_without_a_network_it_says_what_to_do(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.side_effect = offline
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for attempt in (lambda: hub.push(home / "run", "me/x", api=api), lambda: hub.pull("me/x", tmp_path / "x")):
        with pytest.raises(EffaceError) as refusal:
            attempt()
        assert refusal.value.why == "It says: no route to host"
        assert "file:DIR" in refusal.value.remedy
    assert not list(tmp_path.iterdir())


def test_another_model_than_the_audited_one_is_not_pushed(home: Path, tmp_path: Path):
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    shutil.copyfile(home / "original" / "checkpoint.safetensors", run / "checkpoint.safetensors")
    with pytest.raises(EffaceError, match="not the file that was audited"):
        hub.push(run, f"file:{tmp_path / 'shared'}")
    assert not (tmp_path / "shared").exists()


def test_a_record_with_bare_ids_is_not_pushed(home: Path, tmp_path: Path):
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    audit_run(run, {"watch": {"views": 2, "gradient": False}}, plain_ids=True, original=home / "original")
    with pytest.raises(EffaceError, match="bare ids"):
        hub.push(run, f"file:{tmp_path / 'shared'}")


def test_links_in_a_pushed_folder_are_refused(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")
    (tmp_path / "shared" / "more").symlink_to(tmp_path)
    with pytest.raises(EffaceError, match="is a link"):
        hub.pull(f"file:{tmp_path / 'shared'}", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_an_edited_description_is_refused(home: Path, tmp_path: Path):
    hub.push(home / "run", f"file:{tmp_path / 'shared'}")
    path = tmp_path / "shared" / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta["exact"] = True
    path.write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(EffaceError):
        hub.pull(f"file:{tmp_path / 'shared'}", tmp_path / "pulled")
    assert content_digest(meta) != meta["content_digest"]


def test_the_verbs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert call("push", home / "run", "file:shared") == 0
    assert call("pull", "file:shared", "--out", "pulled") == 0
    assert call("embed", "pulled/checkpoint.safetensors", "--data", "digits", "--out", "vectors.npz", "--quiet") == 0
    capfd.readouterr()
    refused((call("pull", "file:shared", "--out", "pulled"), *capfd.readouterr()), "exists already")
    refused((call("pull", "file:nowhere", "--out", "x"), *capfd.readouterr()), "no pushed model at nowhere")
    refused((call("push", "nowhere", "file:x"), *capfd.readouterr()), "no checkpoint at nowhere")
