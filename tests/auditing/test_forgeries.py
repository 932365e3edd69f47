"""Forgeries of verdicts, each performed on small real models: none reads ``removed``, and an edited file is named.

Where a check can be switched off, the same forgery does read ``removed`` without it: the check is what stops it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface import api
from efface.auditing import controls, verdict
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Finding
from efface.auditing.observations import Observations
from efface.auditing.observers.batchnorm import _layers
from efface.errors import EffaceError
from efface.reporting import recheck
from efface.reporting.record import Record, record_digest
from efface.runs import artifacts, audit, audited_model, comparison, provenance, run, train
from efface.training.checkpoint import Checkpoint, content_digest
from tests import forgeries
from tests.commands import call
from tests.disguises import permute_units
from tests.forgeries import edit, judge, with_model
from tests.worlds import World


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were audited: ``lazy`` is residue, ``oracle`` is removed."""
    home = tmp_path_factory.mktemp("forged")
    forgeries.make_runs(home)
    assert judge(home / "oracle").verdict.word == "removed"
    assert judge(home / "lazy").verdict.word == "residue"
    return home


@pytest.fixture
def lazy(home: Path, tmp_path: Path) -> Path:
    """A copy of ``lazy`` to forge."""
    shutil.copytree(home / "lazy", tmp_path / "lazy")
    return tmp_path / "lazy"


# ---- what an audit reads ----


def test_observations_of_another_model_under_the_subjects_header(home: Path, lazy: Path, monkeypatch: Any):
    own, clean = (Observations.load(path / "observations.npz") for path in (lazy, home / "oracle"))
    Observations(own.model, own.split, clean.arrays, own.meta).save(lazy / "observations.npz")
    said: list[str] = []
    with monkeypatch.context() as off:
        off.setattr(audited_model, "spot_check", lambda *_: "")
        assert judge(lazy).verdict.word == "removed", "without the check it works"
    assert judge(lazy, say=said).verdict.word == "residue"
    assert any("is not used" in one and "holds numbers that the model does not give" in one for one in said)
    assert Observations.load(lazy / "observations.npz").digest == own.digest, "observed anew, and stored"


def test_half_of_the_scores_of_one_signal_is_enough_to_be_noticed(lazy: Path):
    own = Observations.load(lazy / "observations.npz")
    logits = own.of("forget", "logits").copy()
    logits[::2] = 0
    said: list[str] = []
    forgeries.forged_observations(lazy / "observations.npz", own, forget__logits=logits)
    assert judge(lazy, say=said).verdict.word == "residue"
    assert any("'forget/logits'" in one for one in said)


def test_one_array_deleted(lazy: Path):
    path = lazy / "observations.npz"
    own = Observations.load(path)
    gone = {name: None for name in own.arrays if name.endswith("logits")}
    said: list[str] = []
    forgeries.forged_observations(path, own, **{name.replace("/", "__"): None for name in gone})
    assert judge(lazy, say=said).verdict.word == "residue"
    assert any("logits' is missing" in one for one in said)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "forget/logits"}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EffaceError, match="an array or the header was changed"):
        judge(lazy)
    assert judge(lazy, recheck=True).verdict.word == "residue"


def test_the_original_as_an_audit_of_the_retrained_reference_saw_it(home: Path, lazy: Path, tmp_path: Path):
    shutil.copytree(home / "oracle", tmp_path / "oracle")
    (seen,) = (tmp_path / "oracle").glob("*-observations-*.npz")
    kept = Observations.load(seen)
    (lazy / seen.name).unlink()
    said: list[str] = []
    assert judge(lazy, tmp_path / "oracle", say=said).verdict.word == "residue"
    assert "Observing original" not in said, "it was observed for this request already"
    assert Observations.load(lazy / seen.name).digest == kept.digest, "stored with the audit that rests on it"
    forgeries.forged_observations(seen, kept, forget__logits=np.zeros_like(kept.of("forget", "logits")))
    (lazy / seen.name).unlink()
    assert judge(lazy, tmp_path / "oracle", say=said).verdict.word == "residue"
    assert said.count("Observing original") == 1
    assert Observations.load(lazy / seen.name).digest == kept.digest, "observed anew"
    said.clear()
    judge(lazy, tmp_path / "oracle", say=said, settings={"watch": forgeries.WATCH | {"views": 3}})
    assert said.count("Observing original") == 1, "in another way than that audit"


@pytest.mark.parametrize("change", ["pixels", "labels"])
def test_other_pictures_under_the_same_keys(home: Path, tmp_path: Path, change: str):
    for name in ("original", "lazy"):
        shutil.copytree(home / name, tmp_path / name)
    config = (tmp_path / "lazy" / "config.yaml").read_text()
    (tmp_path / "lazy" / "config.yaml").write_text(config.replace(str(home), str(tmp_path)))
    with np.load(home / "data.npz") as file:
        x, y = file["x"].copy(), file["y"].copy()
    opened = run.open_run(home / "lazy")
    rows = opened.split.forget
    if change == "pixels":
        x[rows] = np.random.default_rng(5).integers(0, 256, x[rows].shape)
    else:
        y[rows] = (y[rows] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, y=y)
    with pytest.raises(EffaceError, match=r"requested examples (are not the pictures|do not have the classes)"):
        judge(tmp_path / "lazy")


def test_stored_observations_of_other_pictures_are_made_anew(home: Path, lazy: Path, monkeypatch: Any):
    """Pictures of a part that no description binds: the control."""
    opened = run.open_run(lazy)
    x = opened.data.x.copy()
    x[opened.split.test[0]] = 0
    monkeypatch.setattr(comparison, "open_run", lambda *_: replace(opened, data=replace(opened.data, x=x)))
    said: list[str] = []
    judge(lazy, say=said)
    assert sum("other pictures, labels or captions" in one for one in said) == 2, "subject and original"


def test_views_edited_in_the_description(home: Path, lazy: Path):
    def blur(meta: dict[str, Any]) -> None:
        meta["recipe"]["views"]["crop"] = [0.05, 0.1]

    edit(lazy / "meta.json", blur)
    with pytest.raises(EffaceError, match=r"meta\.json was edited or damaged"):
        judge(lazy)
    edit(lazy / "meta.json", lambda meta: None, content_digest)
    with pytest.raises(EffaceError, match="describe different views"):
        judge(lazy)


def test_the_verdict_edited_in_the_record(lazy: Path, capfd: pytest.CaptureFixture[str]):
    judge(lazy)
    audit.report_run(lazy)
    whole = (lazy / "record.json").read_text(encoding="utf-8")

    def bend(record: dict[str, Any]) -> None:
        record["verdict"]["word"] = "removed"
        record["verdict"]["controls"] = [one | {"word": "passed"} for one in record["verdict"]["controls"]]

    edit(lazy / "record.json", bend)
    assert call("report", lazy) == 2
    assert "Its content does not match its own digest" in capfd.readouterr().err
    edit(lazy / "record.json", lambda record: None, record_digest)
    with pytest.raises(EffaceError, match="Its own signals and controls lead to 'residue'"):
        audit.report_run(lazy)

    def bend_signals(record: dict[str, Any]) -> None:
        for one in record["verdict"]["signals"]:
            one |= {"value": 0.5, "low": 0.45, "high": 0.55, "word": "removed"}

    edit(lazy / "record.json", bend_signals, record_digest)
    with pytest.raises(EffaceError, match="Computed again from its observations, it is 'residue'"):
        audit.report_run(lazy)
    (lazy / "record.json").write_text(whole, encoding="utf-8")
    edit_findings = json.loads((lazy / "findings.json").read_text(encoding="utf-8"))
    edit_findings[0]["value"] = 0.5
    (lazy / "findings.json").write_text(json.dumps(edit_findings), encoding="utf-8")
    with pytest.raises(EffaceError, match=r"findings\.json is not what was found"):
        audit.report_run(lazy)


def test_without_observations_the_record_is_checked_by_its_own_numbers(lazy: Path):
    judge(lazy)
    (lazy / "observations.npz").unlink()
    record = Record.load(lazy)
    assert recheck.recombine(record.verdict) == "residue"
    assert audit.report_run(lazy).exists()


def test_findings_of_other_verbs_edited(tmp_path: Path):
    seen = World(0).original()
    path = artifacts.save_extra_findings(tmp_path, "relearn-retain", seen, [Finding("relearn.retain.won", 0.2)])
    assert artifacts.read_extra_findings(tmp_path, seen).findings[0].value == 0.2
    path.write_text(path.read_text(encoding="utf-8").replace("0.2", "0.0"), encoding="utf-8")
    with pytest.raises(EffaceError, match=r"findings-relearn-retain\.json cannot be read as findings.*edited"):
        artifacts.read_extra_findings(tmp_path, seen)


# ---- oracles ----


def test_a_checkpoint_inside_a_run_is_that_run(home: Path, lazy: Path):
    with pytest.raises(EffaceError, match="it was made by finetune, from weights that had seen the examples"):
        judge(home / "lazy", lazy / "checkpoint.safetensors")
    assert judge(home / "lazy", home / "oracle" / "checkpoint.safetensors").verdict.level == "A1"


def test_a_near_copy_is_refused_and_a_claim_never_carries_the_verdict(home: Path, tmp_path: Path, monkeypatch: Any):
    state = Checkpoint.load(home / "lazy").model.state_dict()
    noise = torch.Generator().manual_seed(0)
    near = {
        name: value + 0.001 * value.std() * torch.randn(value.shape, generator=noise)
        if value.is_floating_point() and value.numel() > 1 and "running" not in name
        else value
        for name, value in state.items()
    }
    torch.save(near, tmp_path / "near.pt")
    with pytest.raises(EffaceError, match=r"its weights are within 0\.1.* % of those of the"):
        judge(home / "lazy", tmp_path / "near.pt")
    monkeypatch.setattr(provenance, "NEAREST", 0.0)
    monkeypatch.setattr(comparison, "require_no_copy", lambda *_: None)
    judged = judge(home / "lazy", tmp_path / "near.pt")
    assert judged.verdict.word == "residue" and judged.verdict.level == "A0"
    assert "never saw the forget set" not in judged.verdict.sentence
    with monkeypatch.context() as off:
        off.setattr(comparison.Comparison, "claimed", frozenset())
        assert judge(home / "lazy", tmp_path / "near.pt").verdict.word != "residue", "believed, it hides the leak"


def test_a_copy_with_its_units_in_another_order_is_a_copy(lazy: Path, tmp_path: Path, monkeypatch: Any):
    disguised = permute_units(Checkpoint.load(lazy).model, noise=0.01)
    torch.save(disguised.state_dict(), tmp_path / "copy.pt")
    with pytest.raises(EffaceError, match=r"its features are those of the original within [\d.]+ %"):
        judge(lazy, tmp_path / "copy.pt")
    monkeypatch.setattr(provenance, "NEAREST_FEATURES", 0.0)
    assert judge(lazy, tmp_path / "copy.pt").evidence.level == "A1", "by its weights it is another model"


def test_a_description_that_says_retrained(home: Path, lazy: Path):
    edit(lazy / "meta.json", lambda meta: meta.update(exact=True), content_digest)
    with pytest.raises(EffaceError, match="says that its model was retrained, but it was made by finetune"):
        judge(home / "lazy", lazy)

    def retrained(meta: dict[str, Any]) -> None:
        meta["method"] = {"name": "retrain"}

    edit(lazy / "meta.json", retrained, content_digest)
    with pytest.raises(EffaceError, match="says that its model was retrained, but it was made by finetune"):
        judge(home / "lazy", lazy)


# ---- what was dressed up ----


def _seen(monkeypatch: Any) -> None:
    """Switch off the older control, which sees these forgeries too where they blind it."""
    monkeypatch.setattr(verdict, "retain_control", lambda *_: (None, False))


def test_buffers_alone_were_changed(home: Path, tmp_path: Path, monkeypatch: Any):
    forged, noise = Checkpoint.load(home / "lazy"), torch.Generator().manual_seed(0)
    for layer in _layers(forged.model):
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean += 2 * layer.running_var.sqrt() * torch.randn(layer.running_mean.shape, generator=noise)
    folder = with_model(home / "lazy", tmp_path / "buffers", forged)
    _seen(monkeypatch)
    judged = judge(folder)
    assert judged.verdict.word == "residue" and "estimated anew" in judged.verdict.sentence
    assert all(one.word == "removed" for one in judged.verdict.signals)
    with monkeypatch.context() as off:
        off.setattr(controls, "check_statistics", lambda *_: None)
        assert judge(folder).verdict.word == "removed", "without the control it works"


def test_units_in_another_order_and_scaled_are_the_same_model(home: Path, lazy: Path, tmp_path: Path):
    """At A1: the same verdict, and the same place between the retrained model and the original."""
    made = Checkpoint.load(lazy)
    folder = with_model(lazy, tmp_path / "permuted", replace(made, model=permute_units(made.model)))
    plain, disguised = (judge(path, home / "oracle") for path in (lazy, folder))
    assert disguised.verdict.word == plain.verdict.word == "residue" and disguised.verdict.level == "A1"
    place = "relative_distance.position"
    a, b = (next(one for one in judged.findings if one.name == place) for judged in (plain, disguised))
    assert a.value > 0.9 and b.value > 0.9 and b.details["p_nearer_original"] < 0.001


def test_a_control_that_was_not_made_does_not_count_as_passed(home: Path):
    removed = judge(home / "oracle").evidence
    assert verdict.judge(removed, audit.fixed_criteria({"fixed": {"criteria": {"delta": 0.12}}})).word == "removed"
    for part in ("renewed-", "control/"):
        arrays = {n: x for n, x in removed.subject.arrays.items() if not n.startswith((part, "test/logits"))}
        less = replace(removed, subject=replace(removed.subject, arrays=arrays))
        judged = verdict.judge(less, Criteria(delta=0.12, max_utility_drop=0.9))
        assert judged.word == "inconclusive" and any(one.word == "missing" for one in judged.controls), part


def test_trained_on_the_holdout_too(home: Path, tmp_path: Path, monkeypatch: Any):
    opened = run.open_run(home / "lazy")
    split, none = opened.split, np.empty(0, np.int64)
    every = np.sort(np.concatenate([split.retain, split.forget, split.holdout]))
    all_in = replace(split, retain=every, forget=none, holdout=none)
    base = api.pretrain(opened.data, all_in, recipe=opened.checkpoint().recipe, seed=5, device="cpu")
    folder = with_model(home / "lazy", tmp_path / "cheat", base)
    _seen(monkeypatch)
    judged = judge(folder)
    assert all(one.word == "removed" for one in judged.verdict.signals), "F looks like the holdout"
    assert judged.verdict.word == "residue" and "do stand out" in judged.verdict.sentence
    named = {one.name: one for one in judged.verdict.controls}
    assert named["unseen"].word == "failed" and "the holdout itself looks trained on" in named["unseen"].note
    with monkeypatch.context() as off:
        off.setattr(controls, "check_fresh", lambda *_: None)
        assert judge(folder).verdict.word == "inconclusive"
        off.setattr(controls, "check_unseen", lambda *_: None)
        assert judge(folder).verdict.word == "removed", "without the controls it works"


def test_trained_on_everything_that_was_never_to_be_trained_on(home: Path, tmp_path: Path, monkeypatch: Any):
    """Who knows the whole split can train on all of it. Only pictures that nobody else has show that."""
    opened = run.open_run(home / "lazy")
    split, none = opened.split, np.empty(0, np.int64)
    every = np.sort(np.concatenate([split.retain, split.forget, split.holdout, split.test]))
    all_in = replace(split, retain=every, forget=none, holdout=none, test=split.valid)
    base = api.pretrain(opened.data, all_in, recipe=opened.checkpoint().recipe, seed=5, device="cpu")
    folder = with_model(home / "lazy", tmp_path / "cheat", base)
    _seen(monkeypatch)
    assert judge(folder).verdict.word == "removed", "no comparison of never-trained parts shows it"
    forgeries.write_data(tmp_path / "own.npz", seed=1)
    own = {"withheld": str(tmp_path / "own.npz")}
    judged = judge(folder, settings=own)
    control = {one.name: one for one in judged.verdict.controls}["withheld"]
    assert judged.verdict.word == "inconclusive" and control.word == "failed"
    assert "pictures that only the auditor has" in judged.verdict.sentence
    record = Record.load(folder)
    assert record.withheld is not None and (record.withheld.count, record.withheld.left_out) == (1060, 0)
    assert "own.npz" not in (folder / "record.json").read_text(), "their place is the auditor's own affair"
    said: list[str] = []
    assert judge(folder, settings=own, say=said).verdict.word == "inconclusive"
    assert not any("Observing" in one for one in said), "stored observations are used"
    assert "only the auditor" in audit.report_run(folder).read_text(encoding="utf-8")
    honest = judge(home / "oracle", settings=own, out=tmp_path / "honest")
    assert honest.verdict.word == "removed"
    assert {one.name: one.word for one in honest.verdict.controls}["withheld"] == "passed"


def test_withheld_pictures_that_others_could_know(home: Path, tmp_path: Path):
    with pytest.raises(EffaceError, match="1060 of 1060 are among the data of the run"):
        judge(home / "oracle", settings={"withheld": str(home / "data.npz")})
    with np.load(home / "data.npz") as file:
        np.savez(tmp_path / "wide.npz", x=np.zeros((30, 1, 9, 9), np.uint8))
        x = np.concatenate([file["x"][:500], np.random.default_rng(3).integers(0, 256, (19, 1, 8, 8)).astype(np.uint8)])
    with pytest.raises(EffaceError, match="are 1x9x9, and those of the run 1x8x8"):
        judge(home / "oracle", settings={"withheld": str(tmp_path / "wide.npz")})
    np.savez(tmp_path / "few.npz", x=x)
    with pytest.raises(EffaceError, match="19 withheld pictures are left, and at least 20 are needed"):
        judge(home / "oracle", settings={"withheld": str(tmp_path / "few.npz")})


# ---- criteria ----


def test_criteria_chosen_after_looking(home: Path, lazy: Path):
    chosen = {"criteria": {"delta": 0.12, "signals": ["backbone.margin"], "max_utility_drop": 0.9}}
    judged = judge(lazy, settings=chosen)
    assert judged.verdict.word != "removed"
    fixed = next(one for one in judged.verdict.controls if one.name == "fixed")
    assert fixed.word == "failed" and "signals: backbone.margin instead of the default" in fixed.note
    record = Record.load(lazy)
    assert record.fixed_criteria is not None and record.fixed_criteria.signals is None
    assert "criteria were changed after unlearning" in record.warnings[0]
    page = (lazy / "report.html").read_text(encoding="utf-8")
    assert "criteria were changed after unlearning" in page.split('id="engineer"')[0], "on page one"
    audit.report_run(lazy)
    assert judge(lazy).verdict.delta == 0.12, "without criteria, those that were fixed"


def test_criteria_fixed_with_the_request(home: Path, tmp_path: Path):
    asked = {"forget": "@random:0.5", "method": "finetune", "criteria": {"delta": 0.2}, "device": "cpu"}
    asked["method"] = {"name": "finetune", "epochs": 1, "optim": {"lr": 1e-4}}
    made = train.unlearn_run(home / "original", tmp_path / "run", asked)
    assert made.fixed["criteria"]["delta"] == 0.2
    assert audit.fixed_criteria(Checkpoint.load(home / "lazy").meta()).delta == 0.12, "inherited"


# ---- secrecy ----


def test_files_that_list_ids_are_private_and_the_original_learns_nothing(home: Path):
    for path in (home / "lazy" / "split.json", home / "lazy" / "observations.npz", home / "lazy" / "config.yaml"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list((home / "original").glob("*observations*"))


def test_a_random_draw_cannot_be_repeated_from_the_record(home: Path):
    content = json.loads((home / "lazy" / "record.json").read_text(encoding="utf-8"))
    assert content["split"]["seed"] is None
    assert all(facts["seed"] is None for facts in content["checkpoints"].values())
    assert all(str(content["config"][name]).startswith("hmac-sha256:") for name in ("seed", "forget_seed"))
