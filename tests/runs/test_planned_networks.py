"""References and banks of a network that the user's own code builds are refused before any of them is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface import config
from efface.auditing.observers.settings import ObservationSettings
from efface.errors import EffaceError
from efface.runs.bank_plan import BankPlan
from efface.runs.reference_bank import make_bank
from efface.runs.references import ReferencePlan, ReferenceTask, run_all_tasks
from efface.training.networks import own_module
from efface.training.objectives import CHOICES
from tests.training.test_random_start import NAME, NOT_RANDOM, recipe_of


@pytest.mark.parametrize("kind", NOT_RANDOM)
@pytest.mark.parametrize("what", ["references", "bank"])
def test_models_of_weights_that_are_not_new_are_not_made(what, kind, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(own_module, "_allowed", {NAME})
    recipe = json.loads(json.dumps(config.dump(recipe_of(kind), CHOICES)))
    watch = json.loads(json.dumps(config.dump(ObservationSettings())))
    bank = BankPlan(tmp_path, "digits", recipe, "o" * 64, "s" * 64, 0, "example", 1.0, watch, 2)
    task = ReferenceTask("out-1000", "out", 1000)
    plan = ReferencePlan(tmp_path, "digits", recipe, {}, "p" * 64, "s" * 64, 0, (task,))
    with pytest.raises(EffaceError, match=NOT_RANDOM[kind]):
        _ = make_bank(bank) if what == "bank" else run_all_tasks(plan)
    assert not any(tmp_path.iterdir())
