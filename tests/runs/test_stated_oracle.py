"""A foreign checkpoint as a retrained reference: it must have the same architecture, and is recorded as unchecked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import EffaceError
from efface.interop.consent import Consent
from efface.reporting.record import Record
from efface.runs import comparison
from efface.runs.audit import audit_run, report_run
from efface.runs.relearn import relearn_run
from efface.runs.run import open_run
from tests.adoption import moco_file, trained, unlearn

WATCH = {"watch": {"views": 2, "gradient": False}, "device": "cpu"}


def another(path: Path, folder: Path, seed: int = 0, noise: float | None = None) -> Path:
    """A copy of the file with other weights: as from a second training run, or its own with a little noise."""
    content = torch.load(path, weights_only=True)
    for name, value in content["state_dict"].items():
        if value.is_floating_point() and "running" not in name:
            drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + len(name)))
            if noise is not None:
                value += noise * value.std() * drawn if value.numel() > 1 else 0
            elif value.ndim > 1:
                value.copy_(value.std() * drawn)
    folder.mkdir()
    torch.save(content, folder / path.name)
    return folder / path.name


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A foreign checkpoint, and the run that was made from it."""
    path = moco_file(trained("moco", queue=24), tmp_path)
    unlearn(path, pictures, tmp_path / "out")
    return path, tmp_path / "out"


def audit(run: Path, *oracles: Path, **more: Any) -> Any:
    return audit_run(run, WATCH | more, oracles=oracles)


def test_it_does_not_raise_the_level_and_the_record_says_that_nobody_checked_it(run: tuple[Path, Path], tmp_path: Path):
    path, out = run
    oracles = [another(path, tmp_path / "a"), another(path, tmp_path / "b", 100)]
    judged = audit(out, *oracles)
    assert judged.verdict.level == "A0", "a statement is no evidence"
    assert judged.evidence.level == "A1", "it is measured all the same"
    assert any(one.name == "claimed" and "only stated" in one.note for one in judged.verdict.controls)
    record = Record.load(out)
    facts = record.checkpoints["oracle 1"]
    assert facts.claim == comparison.UNCHECKED_CLAIM and "not checked" in facts.claim and facts.exact
    assert facts.file == str(oracles[0]) and record.checkpoints["original"].claim == ""
    assert sum("not checked" in warning for warning in record.warnings) == 2
    assert "oracle" not in record.cost
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "stated by the user, not checked" in page
    assert len(list(out.glob("*-observations-*.npz"))) == 3, "two oracles and the original"
    report_run(out)
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_it_is_observed_with_the_views_of_the_audited_run(run: tuple[Path, Path], tmp_path: Path):
    path, out = run
    subject = open_run(out)
    found = comparison._foreign_oracle(another(path, tmp_path / "a"), subject, {}, Consent())
    assert found.load().recipe == subject.checkpoint().recipe


def test_the_original_cannot_be_its_own_reference(run: tuple[Path, Path]):
    path, out = run
    for role, file in (("original", path), ("subject", out / "foreign" / path.name)):
        with pytest.raises(EffaceError, match=f"retrained reference: its weights are those of the {role} itself"):
            audit(out, file)


@pytest.mark.parametrize("noise", [0.001, 0.1])
def test_a_near_copy_is_no_reference(run: tuple[Path, Path], tmp_path: Path, noise: float):
    path, out = run
    with pytest.raises(EffaceError, match=r"its weights are within [\d.e-]+ % of those of the original"):
        audit(out, another(path, tmp_path / "near", noise=noise))


def test_another_architecture_is_refused(run: tuple[Path, Path], tmp_path: Path):
    _, out = run
    (tmp_path / "small").mkdir()
    model = trained("moco", queue=24, hidden=10)
    with pytest.raises(EffaceError, match="is not one that the objective 'moco' can have"):
        audit(out, moco_file(model, tmp_path / "small"))


def test_a_pickle_is_opened_only_on_request(run: tuple[Path, Path], tmp_path: Path):
    path, out = run
    oracle = another(path, tmp_path / "a")
    torch.save(torch.load(oracle, weights_only=True) | {"best": tmp_path}, oracle)
    with pytest.raises(EffaceError, match="pathlib"):
        audit(out, oracle)
    assert audit(out, oracle, trust_pickle=True).evidence.level == "A1"
    assert "trust_pickle" not in (out / "config.yaml").read_text()


def test_relearning_with_one_needs_the_same_trust_and_is_recorded_as_unchecked(run: tuple[Path, Path], tmp_path: Path):
    path, out = run
    oracle = another(path, tmp_path / "a")
    torch.save(torch.load(oracle, weights_only=True) | {"best": tmp_path}, oracle)
    settings = WATCH | {"relearn": {"steps": 1, "every": 1}}
    with pytest.raises(EffaceError, match="pathlib"):
        relearn_run(out, settings, oracles=[oracle])
    kept = relearn_run(out, settings | {"trust_pickle": True}, oracles=[oracle])
    assert kept.as_dict()["claims"] == [f"oracle 1, {oracle}: {comparison.UNCHECKED_CLAIM}"]
    audit(out)
    record = Record.load(out)
    assert "oracle 1" not in record.checkpoints
    assert f"findings-relearn-retain.json: oracle 1, {oracle}: {comparison.UNCHECKED_CLAIM}" in record.warnings
