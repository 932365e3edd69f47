"""Consent to unpickle is given on the command line for a file; what a run folder says about it is never believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from efface.data.canaries import draw_coins, write_canary_plan
from efface.files import file_digest
from tests.adoption import SPLIT, moco_file, trained
from tests.commands import JUDGED, call, refused
from tests.hostile import MARK, Bomb

LOOK = ["--set", "watch={views: 2, gradient: false}", "--device", "cpu", "--quiet"]


def with_entry(path: Path, value: object) -> Path:
    """The checkpoint with one more entry, which is of a class."""
    torch.save(torch.load(path, weights_only=False) | {"best": value}, path)
    return path


@pytest.fixture(scope="module")
def received(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose original asks for a harmless class, made with consent."""
    home = tmp_path_factory.mktemp("received")
    path = with_entry(moco_file(trained("moco", queue=24), home), home)
    words = ["--data", pictures, "--forget", "@random:12", "--method", "finetune", "--set", "method.epochs=1"]
    words += ["--set", f"split={json.dumps(SPLIT)}", "--device", "cpu", "--out", home / "out", "--quiet"]
    assert call("unlearn", path, *words) == 2
    assert call("unlearn", path, *words, "--trust-pickle", "0" * 64) == 2
    assert call("unlearn", path, *words, "--trust-pickle", file_digest(path)) == 0
    return path, home / "out"


def changed(run: Path, **settings: object) -> None:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings, sort_keys=False))


def words_of(verb: str, run: Path, out: Path) -> list[object]:
    plan = out.parent / "plan"
    return {
        "audit": ["audit", run, *LOOK],
        "relearn": ["relearn", run, "--steps", 1, "--every", 1, *LOOK],
        "guess": ["canaries", "guess", run, "--plan", plan, *LOOK],
        "compat": ["compat", out.parent / "moco.pth.tar", run, "--device", "cpu", "--quiet"],
        "embed": ["embed", run, "--out", out / "e.npz", "--device", "cpu", "--quiet"],
        "further": ["unlearn", run, "--forget", "@random:3", "--method", "finetune", "--out", out, "--quiet"],
        "retrain": ["unlearn", run, "--forget", "@random:3", "--method", "retrain", "--out", out, "--quiet"],
        "references": ["references", run, "--out", out, "--dry-run", "--quiet"],
        "inspect": ["inspect", run],
        "report": ["report", run],
    }[verb]


def test_the_run_stores_the_fact_and_the_digest_only(received):
    path, run = received
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert stored["unpickled"] == {path.name: file_digest(path)}
    assert not {"trust_pickle", "trusted"} & stored.keys()


@pytest.mark.parametrize(
    "verb",
    ["audit", "relearn", "guess", "compat", "embed", "further", "retrain", "references", "inspect", "report"],
)
def test_no_verb_believes_a_run_folder(efface, received, tmp_path, verb):
    _, home = received
    run = Path(shutil.copytree(home, tmp_path / "run"))
    evil = moco_file(trained("moco", queue=24), tmp_path)
    with_entry(evil, Bomb(tmp_path))
    (tmp_path / MARK).unlink(missing_ok=True)
    write_canary_plan(tmp_path / "plan", draw_coins([f"k{i}" for i in range(20)]))
    changed(run, **{"from": str(evil), "trust_pickle": True, "trusted": [file_digest(evil)]}, unpickled=True)
    answer = efface(*words_of(verb, run, tmp_path / "made"))
    assert not (tmp_path / MARK).exists()
    assert "Traceback" not in answer[2]
    if verb in ("audit", "relearn", "guess"):
        refused(answer, str(evil), f"--trust-pickle {file_digest(evil)}", str(run / "config.yaml"))
    if verb == "compat":
        refused(answer, str(evil), "--trust-pickle")


def test_an_original_is_opened_only_with_its_own_digest(efface, received, tmp_path):
    path, run = received
    own = file_digest(path)
    refused(efface("audit", run, *LOOK), own)
    refused(efface("audit", run, *LOOK, "--trust-pickle"), own)  # it was not named on the command line
    refused(efface("audit", run, *LOOK, "--trust-pickle", "1" * 64), own)
    refused(efface("audit", run, *LOOK, "--trust-pickle", "123"), "123")
    assert efface("audit", "--trust-pickle", own, run, *LOOK)[0] in JUDGED
    assert efface("audit", "--trust-pickle", "--original", path, run, *LOOK)[0] in JUDGED
    settings = tmp_path / "c.yaml"
    settings.write_text("trust_pickle: true")
    refused(efface("audit", run, *LOOK, "--config", settings), str(settings), "trust_pickle")


def test_consent_for_an_oracle_is_none_for_the_original(efface, received, tmp_path):
    path, run = received
    other = with_entry(moco_file(trained("moco", queue=24, hidden=12), tmp_path), tmp_path)
    refused(efface("audit", run, "--oracle", other, "--trust-pickle", *LOOK), str(path), file_digest(path))


def test_runs_that_were_moved_together_find_each_other(efface, made, received, tmp_path):
    home = tmp_path / "moved"
    home.mkdir()
    for name, new in (("original", "first"), ("tuned", "tuned"), ("oracle", "oracle")):
        shutil.copytree(made / name, home / new)
        if new != "first":
            changed(home / new, **{"from": str(tmp_path / "gone" / name)})
    assert efface("audit", home / "tuned", *LOOK)[0] in JUDGED
    record = json.loads((home / "tuned" / "record.json").read_text())
    assert record["checkpoints"]["original"]["file"].startswith(str(home / "first"))
    (home / "first").rename(tmp_path / "elsewhere")
    refused(efface("audit", home / "tuned", *LOOK), str(tmp_path / "gone"), "--original")
    path, run = received
    shutil.copytree(run, home / "out")
    shutil.copy(path, home)
    changed(home / "out", **{"from": f"/gone/{path.name}"})
    assert efface("audit", home / "out", *LOOK, "--trust-pickle", file_digest(path))[0] in JUDGED
    record = json.loads((home / "out" / "record.json").read_text())
    assert record["checkpoints"]["original"]["file"] == str(home / path.name)


@pytest.mark.parametrize("verb", ["audit", "embed", "further", "relearn"])
def test_a_circular_lineage_is_refused_with_its_chain(efface, made, tmp_path, verb):
    for name in ("original", "tuned"):
        shutil.copytree(made / name, tmp_path / name)
    changed(tmp_path / "tuned", **{"from": str(tmp_path / "original")})
    changed(tmp_path / "original", **{"from": str(tmp_path / "tuned")})
    answer = efface(*words_of(verb, tmp_path / "tuned", tmp_path / "out"))
    refused(answer, "circle", f"{tmp_path / 'tuned'} was made from {tmp_path / 'original'} was made from")
