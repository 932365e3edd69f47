"""References and banks are trained in the precision of their original, not in what the machine that trains prefers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface import api
from efface.auditing.observers.settings import ObservationSettings
from efface.runs import bank_plan, references, train
from efface.runs.reference_bank import make_half
from efface.training import devices
from tests.desk.conftest import TINY

SHORT = TINY | {"recipe": TINY["recipe"] | {"epochs": 1}, "device": "cpu"}
WATCH = ObservationSettings(views=2, gradient=False, bank=20)


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bfloat16"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original of one precision, and two requests in the other one."""
    home = tmp_path_factory.mktemp("precision")
    train.pretrain_run(home / "original", SHORT | {"bf16": request.param})
    for before, after in (("original", "first"), ("first", "second")):
        asked = {"forget": "@random:6", "method": {"name": "finetune", "epochs": 1}, "device": "cpu"}
        train.unlearn_run(home / before, home / after, asked | {"bf16": not request.param})
    return home


def precision_of(home: Path) -> bool:
    """The original's precision."""
    import yaml

    return yaml.safe_load((home / "original" / "config.yaml").read_text())["bf16"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which precision each training of the test asks for, on a machine that prefers whichever the original is not."""
    seen, unlearn = list[bool](), api.unlearn

    def watched(*words, **named):
        seen.append(named["bf16"])
        return unlearn(*words, **named)

    monkeypatch.setattr(api, "unlearn", watched)
    return seen


@pytest.mark.parametrize("run", ["original", "first", "second"])
def test_a_bank_is_trained_as_its_original(home, tmp_path, asked, monkeypatch, run):
    wanted = precision_of(home)
    monkeypatch.setattr(devices, "prefers_bfloat16", lambda device: not wanted)
    plan = bank_plan.plan_bank(home / run, tmp_path / "bank", 2, watch=WATCH)
    assert plan.bf16 is wanted
    bank_plan.write_bank_plan(home / run, plan)
    assert bank_plan.BankPlan.load(plan.home).shared() == plan.shared()
    make_half(plan.home, 0, "cpu")
    assert asked == [wanted]


@pytest.mark.parametrize("run", ["first", "second"])
def test_references_are_trained_as_their_original(home, tmp_path, asked, monkeypatch, run):
    wanted = precision_of(home)
    monkeypatch.setattr(devices, "prefers_bfloat16", lambda device: not wanted)
    plan = references.plan_references(home / run, tmp_path / "refs", count=1)
    assert plan.bf16 is wanted
    references.write_reference_plan(home / run, plan)
    references.run_task(plan.home, plan.tasks[0].name, device="cpu")
    assert asked == [wanted]


def test_what_an_older_release_began_goes_on_as_it_was(home, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(devices, "prefers_bfloat16", lambda device: not precision_of(home))
    bank = bank_plan.plan_bank(home / "first", tmp_path / "bank", 2, watch=WATCH)
    bank_plan.write_bank_plan(home / "first", bank)
    refs = references.plan_references(home / "first", tmp_path / "refs", count=1)
    references.write_reference_plan(home / "first", refs)
    for path in (tmp_path / "bank" / "bank.json", tmp_path / "refs" / "plan.json"):
        stored = json.loads(path.read_text())
        del stored["bf16"]
        path.write_text(json.dumps(stored))
    more = bank_plan.plan_bank(home / "first", tmp_path / "bank", 4, watch=WATCH)
    assert more.bf16 is None and "bf16" not in more.shared() and more.models == 4
    bank_plan.write_bank_plan(home / "first", more)
    make_half(more.home, 0, "cpu")
    again = references.plan_references(home / "first", tmp_path / "refs", count=2)
    assert again.bf16 is None and "bf16" not in again.shared() and len(again.tasks) == 2
    references.write_reference_plan(home / "first", again)
    references.run_task(again.home, again.tasks[0].name, device="cpu")
    assert asked == [not precision_of(home)] * 2
