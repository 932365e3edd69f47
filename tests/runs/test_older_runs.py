"""Run folders written before the packages were rearranged still open, audit, report and unlearn further.

``run_of_0.1.0.zip``: a tiny MoCo of 60 digits, a fine-tuned run, a retrained one, and the tuned run's record, as
efface 0.1.0 wrote them. Their ``config.yaml`` names the original as ``OLD/original``.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from efface.reporting.record import Record
from efface.runs import audit, run, train
from efface.training.checkpoint import Checkpoint

ARCHIVE = Path(__file__).parent / "run_of_0.1.0.zip"
DIGESTS = {
    "original": "eed100063736bb21083e45aea0aadfc6956bdbf09837b3b98879d2582327dfd9",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked runs, their paths put right."""
    home = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(home)
    for path in [*home.glob("*/config.yaml"), home / "tuned" / "record.json"]:
        path.write_text(path.read_text(encoding="utf-8").replace("OLD/", f"{home}/"), encoding="utf-8")
    return home


FITTED = "encodermi_v"
"""An attack that an optimizer fits: on another processor it ranks a few of its 400 pairs otherwise."""


def test_the_archive_is_small():
    assert ARCHIVE.stat().st_size < 200_000


def test_weights_load_with_the_digest_they_had(old):
    for name in ("original", "tuned", "oracle"):
        meta = json.loads((old / name / "meta.json").read_text(encoding="utf-8"))
        model = Checkpoint.load(old / name).model
        assert model.digest() == meta["digest"] == DIGESTS.get(name, meta["digest"])
        assert any(key.startswith("twin.backbone.") for key in model.state_dict())
        assert not any("momentum_encoder" in key for key in model.state_dict())


def test_the_stored_record_is_read_and_reported(old):
    record = Record.load(old / "tuned")
    assert record.verdict is not None and record.request.selector == "@random:10"
    assert audit.report_run(old / "tuned").exists()


def test_an_old_run_is_audited_again_with_the_numbers_it_had(old):
    before = json.loads((old / "tuned" / "findings.json").read_text(encoding="utf-8"))
    result = audit.audit_run(old / "tuned", {"device": "cpu"}, oracles=[old / "oracle"])
    then = {one["name"]: one["value"] for one in before}
    now = {one.name: one.value for one in result.findings}
    assert now.keys() >= then.keys()
    for name, value in then.items():
        close = 4 / 400 if FITTED in name else 1e-6
        assert now[name] == (value if value is None else pytest.approx(value, abs=close)), name


def test_an_old_run_unlearns_further(old, tmp_path):
    made = train.unlearn_run(old / "tuned", tmp_path / "second", {"forget": "@random:5", "method": "finetune"})
    assert made.parent == run.open_run(old / "tuned").checkpoint().model.digest()
    assert len(run.open_run(tmp_path / "second").split.earlier) == 10
