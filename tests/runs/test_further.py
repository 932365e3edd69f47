"""The verbs relearn and canaries on run folders: what they store, and what the audit takes into the record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from efface.data.canaries import draw_coins, write_canary_plan
from efface.files import file_digest
from efface.reporting.record import Record
from efface.runs import artifacts, canaries, comparison
from tests.commands import JUDGED, call

TINY = [
    "--set", "data.limit=300", "--set", "split.train=50", "--set", "split.valid=40", "--set", "split.holdout=60",
    "--set", "split.test=50", "--set", "recipe.backbone={width: 8, stride: 1}", "--set", "recipe.batch_size=20",
    "--set", "recipe.epochs=2",
]  # fmt: skip
LOOK = ["--set", "watch.views=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plan of canaries, an original trained with it, and three runs that forget the included canaries."""
    home = tmp_path_factory.mktemp("runs")
    data = ["--data", "digits"]
    assert call("canaries", "plan", *data, *TINY[:2], "--count", 40, "--out", home / "plan", "--quiet") == 0
    planned = ["--set", f"split.canaries={home / 'plan'}"]
    assert call("pretrain", *data, "--out", home / "original", *TINY, *planned, "--quiet") == 0
    for name, method, seed in (("oracle", "retrain", 1), ("second", "retrain", 2), ("tuned", "finetune", 0)):
        words = ["--forget", home / "plan" / "included.txt", "--method", method, "--seed", seed, "--quiet"]
        assert call("unlearn", home / "original", *words, "--out", home / name) == 0
    return home


def last_line(capfd):
    return json.loads(capfd.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("on", ["retain", "forget"])
def test_relearn_only_reads_the_runs(made, capfd, on):
    weights = {run: file_digest(made / run / "checkpoint.safetensors") for run in ("original", "oracle", "tuned")}
    words = ["--oracle", made / "oracle", "--on", on, "--steps", 4, "--every", 2, *LOOK, "--json", "--quiet"]
    assert call("relearn", made / "tuned", *words) == 0
    said = last_line(capfd)
    assert said["claims"] == []
    assert f"relearn.{on}.projector.margin.steps" in said
    assert weights == {run: file_digest(made / run / "checkpoint.safetensors") for run in weights}
    content = json.loads((made / "tuned" / f"findings-relearn-{on}.json").read_text())
    curves = content["findings"][0]["details"]["curves"]
    assert set(curves) == {"subject", "oracle 1"} and curves["subject"]["steps"] == [0, 2, 4]


def test_canaries_are_guessed_and_the_audit_records_the_findings(made, capfd):
    assert call("canaries", "guess", made / "tuned", "--plan", made / "plan", *LOOK, "--json", "--quiet") == 0
    said = last_line(capfd)
    assert 0 <= said["canaries.projector.margin.right"]["value"] <= 1
    assert said["canaries.projector.margin.epsilon"]["value"] >= 0
    assert call("relearn", made / "tuned", "--steps", 2, "--every", 2, *LOOK, "--quiet") == 0
    assert call("audit", made / "tuned", *LOOK, "--quiet") in JUDGED
    record = Record.load(made / "tuned")
    names = {one.name for one in record.findings}
    assert {"canaries.projector.margin.epsilon", "relearn.retain.projector.margin.steps"} <= names
    page = (made / "tuned" / "report.html").read_text(encoding="utf-8")
    assert "Relearning" in page and "canaries" in page
    assert call("audit", made / "oracle", *LOOK, "--quiet") in JUDGED
    assert not any(one.name.startswith("canaries") for one in Record.load(made / "oracle").findings)


def test_guessing_stores_unchecked_claims_and_opens_pickles_only_on_request(made, monkeypatch):
    asked = []

    def compared(*words, **more):
        asked.append(more.pop("consent").named)
        result = comparison.build_comparison(*words, **more)
        models = {
            name: replace(one, claim="unseen" if name == "oracle 1" else "") for name, one in result.models.items()
        }
        return replace(result, models=models)

    monkeypatch.setattr(canaries, "build_comparison", compared)
    words = ["--plan", made / "plan", "--oracle", made / "oracle", *LOOK, "--quiet"]
    for trust in ([], ["--trust-pickle"]):
        assert call("canaries", "guess", made / "tuned", *words, *trust) == 0
    assert asked == [False, True]
    content = json.loads((made / "tuned" / "findings-canaries.json").read_text())
    assert [claim.endswith(": unseen") for claim in content["claims"]] == [True]


def test_findings_about_other_weights_are_left_out(made, capfd):
    assert call("canaries", "guess", made / "second", "--plan", made / "plan", *LOOK, "--quiet") == 0
    path = made / "second" / "findings-canaries.json"
    content = json.loads(path.read_text())
    other = content | {"model": "other"}
    path.write_text(json.dumps(other | {"digest": artifacts._findings_digest(other)}))
    assert call("audit", made / "second", *LOOK, "--quiet") in JUDGED
    assert not any(one.name.startswith("canaries") for one in Record.load(made / "second").findings)
    path.write_text("{")
    assert call("audit", made / "second", *LOOK, "--quiet") == 2
    assert "cannot be read as a file of findings" in capfd.readouterr().err


def test_wrong_input_is_exit_code_2(made, tmp_path, capfd):
    write_canary_plan(tmp_path / "other", draw_coins([f"k{i}" for i in range(20)]), data="e" * 64)
    cases = {
        ("canaries", "guess", made / "tuned", "--plan", tmp_path / "other"): "made for other data",
        ("canaries", "guess", made / "tuned", "--plan", tmp_path / "none"): "There is no",
        ("canaries", "guess", made / "original", "--plan", made / "plan"): "it is an original",
        ("canaries", "plan", "--data", "digits", "--out", tmp_path / "p"): "how many canaries",
        ("canaries", "plan", "--data", "digits", "--count", "20", "--out", made / "plan"): "never drawn again",
        ("relearn", made / "tuned", "--steps", "1", "--every", "3"): "cannot be observed every",
        ("relearn", made / "tuned", "--on", "valid"): "valid",
        ("relearn", made / "tuned", "--set", "relearn.step=3"): "step",
    }
    for words, said in cases.items():
        assert call(*words) == 2, words
        assert said in capfd.readouterr().err
