"""The demo, made small: its table, its reports, and resuming after an interruption."""

from __future__ import annotations

import json

import pytest

from efface.errors import EffaceError
from efface.runs import audit, demo
from efface.runs.run import Progress


@pytest.fixture
def small(monkeypatch):
    """The digits regime with a few images and epochs."""
    regime = demo.REGIMES["digits"]
    monkeypatch.setitem(
        demo.REGIMES,
        "digits",
        regime
        | {
            "split": {"train": 60, "valid": 60, "holdout": 100, "test": 60},
            "recipe": regime["recipe"] | {"epochs": 2, "batch_size": 20, "backbone": {"width": 8, "stride": 1}},
        },
    )
    monkeypatch.setattr(demo, "DEMO_BANK", {"models": 8, "share": 0.5})
    monkeypatch.setattr(demo, "REHEARSED", dict.fromkeys(demo.DEMO_METHODS, 5))


def test_it_shows_a_row_for_each_model_and_writes_its_reports(small, tmp_path):
    said = []
    shown = demo.run_demo("digits", tmp_path / "d", device="cpu", progress=Progress(say=said.append))
    assert [said.count(f"Observing {name}") for name in ("original", "retrained", *demo.DEMO_METHODS)] == [1, 1, 1, 1]
    assert [row.model for row in shown.rows] == ["original", "retrained", *demo.DEMO_METHODS]
    assert all(set(row.membership) == {"backbone.margin", "projector.margin", "learned"} for row in shown.rows)
    for method in ("retrained", *demo.DEMO_METHODS):
        assert (tmp_path / "d" / method / "report.html").exists()
    text = "\n".join(shown.lines())
    assert "margin_matching" in text and "validated:" in text
    assert str(tmp_path / "d" / "finetune" / "report.html") in text
    assert json.loads((tmp_path / "d" / demo.DONE).read_text())["rows"][0]["model"] == "original"
    with pytest.raises(EffaceError, match="exists already"):
        demo.run_demo("digits", tmp_path / "d", device="cpu")


def test_an_interrupted_demo_resumes(small, tmp_path, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(audit, "audit_run", cut)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo("digits", tmp_path / "d", device="cpu")
    made = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*") if path.suffix in (".npz", ".safetensors")
    }
    assert len(made) > 4 + 6 + 2 * 6
    said = []
    demo.run_demo("digits", tmp_path / "d", device="cpu", progress=Progress(say=said.append))
    assert "original: kept from before" in said
    kept = {path for path, when in made.items() if path.stat().st_mtime_ns == when}
    assert {path.name for path in made.keys() - kept} <= {"bank.npz", "identity.npz"}  # written again with the plans


def test_force_starts_again_but_deletes_only_folders_of_a_demo(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(EffaceError, match="not the folder of a demo"):
        demo.run_demo("digits", tmp_path / "mine", device="cpu", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_unknown_demo_is_an_error(tmp_path):
    with pytest.raises(EffaceError, match="Did you mean 'digits'"):
        demo.run_demo("digit", tmp_path / "d")
