"""Typed requests: built once from settings, unknown settings refused, and each meta.json read once per audit."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import yaml

from efface.errors import EffaceError
from efface.runs.audit import audit_run
from efface.runs.requests import (
    AuditRequest,
    CompatibilityRequest,
    EmbedRequest,
    ForeignOptions,
    GuessRequest,
    PretrainRequest,
    RelearnRequest,
    UnlearnRequest,
)
from efface.runs.run import Progress
from efface.runs.train import pretrain_run, unlearn_run
from efface.training.checkpoint import META, Checkpoint
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import Finetune

TINY = {
    "data": {"source": "digits", "limit": 300},
    "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60},
    "recipe": {"backbone": {"width": 8, "stride": 1}, "batch_size": 20, "epochs": 1},
    "device": "cpu",
}
FORGET = {"forget": "@random:0.1", "method": {"name": "finetune", "epochs": 1}}


@pytest.mark.parametrize(
    "cls",
    [PretrainRequest, UnlearnRequest, AuditRequest, RelearnRequest, GuessRequest, EmbedRequest, CompatibilityRequest],
)
def test_an_unknown_setting_is_refused_with_the_known_ones(cls):
    with pytest.raises(EffaceError, match=r"There is no setting 'devise' here\. Did you mean 'device'\?") as refused:
        cls.from_settings({"devise": "cpu"})
    assert refused.value.why.startswith("Known: ") and "device" in refused.value.why


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (PretrainRequest, {"seed": "many"}, "The setting 'seed' cannot be 'many'"),
        (AuditRequest, {"watch": {"vews": 3}}, r"no setting 'watch\.vews'\. Did you mean 'views'"),
        (AuditRequest, {"criteria": {"delta": "wide"}}, r"The setting 'criteria\.delta' cannot be 'wide'"),
        (RelearnRequest, {"relearn": {"step": 3}}, r"no setting 'relearn\.step'"),
        (UnlearnRequest, {"forget": "@random:5", "method": "scrubb"}, "Did you mean 'scrub'"),
        (UnlearnRequest, {"method": "scrub"}, "which examples to forget"),
        (
            UnlearnRequest,
            {"forget": "@random:5", "method": {"name": "auto", "alpha": 1}},
            "chooses the settings itself",
        ),
        (UnlearnRequest, FORGET | {"stop": {"look": 3}}, r"no setting 'stop\.look'"),
        (UnlearnRequest, FORGET | {"recipe": {}}, "no setting 'recipe' here"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(cls, settings, message):
    with pytest.raises(EffaceError, match=message):
        cls.from_settings(settings)


def test_null_stands_for_the_default_and_text_may_look_like_a_number():
    assert PretrainRequest.from_settings({"split": None, "recipe": None}) == PretrainRequest()
    assert AuditRequest.from_settings({"watch": None, "goal": 2024}).goal == "2024"
    assert UnlearnRequest.from_settings({"forget": 7, "method": "finetune"}).forget == "7"
    assert RelearnRequest.from_settings({"watch": {"views": 3}}).watch.gradient is False


def test_only_a_foreign_checkpoint_has_the_settings_that_a_run_stores():
    settings = FORGET | {"data": "digits", "trust_pickle": True, "check": False}
    request = UnlearnRequest.from_settings(settings, foreign=True)
    assert request.foreign == ForeignOptions(data="digits", trust_pickle=True, check=False)
    assert request.foreign.as_settings() == {"data": "digits", "trust_pickle": True}
    with pytest.raises(EffaceError, match="no setting 'trust_pickle' here"):
        UnlearnRequest.from_settings(settings)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original, two requests one after the other, and a retrained reference for both."""
    home = tmp_path_factory.mktemp("runs")
    pretrain_run(home / "original", PretrainRequest.from_settings(TINY))
    unlearn_run(home / "original", home / "one", FORGET)
    second = {"forget": "@class:3", "method": {"name": "finetune", "epochs": 1}}
    unlearn_run(home / "one", home / "two", second)
    unlearn_run(home / "one", home / "oracle", second | {"method": "retrain", "seed": 1})
    return home


def test_a_request_object_does_what_its_settings_do(home, tmp_path):
    request = UnlearnRequest(forget="@random:0.1", method=Finetune(epochs=1))
    made = unlearn_run(home / "original", tmp_path / "again", request)
    stored, again = (yaml.safe_load((at / "config.yaml").read_text()) for at in (home / "one", tmp_path / "again"))
    assert stored == again
    assert made.meta()["parent"] == stored["parent"]
    stopped = UnlearnRequest(forget="@random:0.1", method=Finetune(epochs=1), stop=StoppingRule(looks=2), budget=3)
    unlearn_run(home / "original", tmp_path / "stopped", stopped)
    stored = yaml.safe_load((tmp_path / "stopped" / "config.yaml").read_text())
    assert (stored["stop"]["looks"], stored["budget"]) == (2, 3)
    foreign = UnlearnRequest(forget="@random:5", method=Finetune(), foreign=ForeignOptions(data="digits"))
    with pytest.raises(EffaceError, match="no setting 'data' here"):
        unlearn_run(home / "original", tmp_path / "no", foreign)


def test_an_audit_reads_each_meta_json_once(home, tmp_path, monkeypatch):
    # Only reads of the content count: sealing the record also hashes the bytes of the subject's files.
    for name in ("original", "one", "two", "oracle"):
        shutil.copytree(home / name, tmp_path / name)
    for name in ("one", "two", "oracle"):
        config = tmp_path / name / "config.yaml"
        config.write_text(config.read_text().replace(str(home), str(tmp_path)))
    reads: Counter[str] = Counter()
    read_text = Path.read_text

    def counted(self: Path, *args, **kwargs) -> str:
        if self.name == META:
            reads[self.parent.name] += 1
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", counted)
    request = AuditRequest.from_settings({"watch": {"views": 2, "gradient": False}, "device": "cpu"})
    result = audit_run(tmp_path / "two", request, oracles=[tmp_path / "oracle"])
    assert result.sequence is not None and result.sequence.verdict is not None
    assert reads == {"original": 1, "one": 1, "two": 1, "oracle": 1}


def test_a_run_takes_the_size_of_a_micro_batch_and_no_other_change_of_its_recipe(home, tmp_path):
    said: list[str] = []
    settings = {**FORGET, "device": "cpu", "recipe": {"micro_batch": 4}}
    made = unlearn_run(home / "original", tmp_path / "out", settings, progress=Progress(say=said.append))
    assert made.recipe.micro_batch == 4 and made.model.micro_batch == 4
    assert any("BatchNorm normalizes over 4 images" in one for one in said)  # a ResNet
    assert Checkpoint.load(tmp_path / "out").model.micro_batch == 4
    plain = unlearn_run(home / "original", tmp_path / "plain", {**FORGET, "device": "cpu"})
    assert plain.recipe.micro_batch is None and plain.model.digest() != made.model.digest()
    for recipe in ({"epochs": 3}, {"micro_batch": 4, "epochs": 3}):
        with pytest.raises(EffaceError, match="no setting 'recipe'"):
            UnlearnRequest.from_settings({**FORGET, "recipe": recipe})
    with pytest.raises(EffaceError, match=r"recipe\.micro_batch"):
        UnlearnRequest.from_settings({**FORGET, "recipe": {"micro_batch": 0}})


def test_a_case_is_text_whatever_yaml_makes_of_it():
    asked = AuditRequest.from_settings({"case": {"id": 17, "due": date(2026, 12, 2)}})
    assert (asked.case.id, asked.case.due, asked.case.handled_by) == ("17", "2026-12-02", "")
    with pytest.raises(EffaceError, match="case"):
        AuditRequest.from_settings({"case": {"number": 3}})
    with pytest.raises(EffaceError, match="case"):
        AuditRequest.from_settings({"case": {"id": [1]}})
