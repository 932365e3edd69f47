"""What a method says that it will take is what its loop takes, and what a plan of the desk states."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from efface import api
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.desk.planning import _expected_steps, _sizes_of
from efface.training.checkpoint import Checkpoint
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs, RequestSizes, count_planned_steps
from tests.tiny import images
from tests.unlearning.test_common_checks import HOME, recipe_for, small

MOST = ("purge", "contrastive_unlearning")
"""Methods that stop by a rule of their own: they take no more than they say."""
WITHOUT = {name for name in METHODS if name in ("damp", "influence", "ssd")}
"""Methods without optimizer steps."""
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, one in METHODS.items() if Needs.TARGETS not in one.needs),
    ("margin_matching", {"steps": 5}),
    ("margin_matching", {"epochs": 2}),
    ("scrub", {"epochs": 1}),
    ("scrub", {"ascent_epochs": 0}),
    ("lethevit", {"retain_epochs": 3, "forget_epochs": 0}),
    ("contrastive_unlearning", {"omega": 3, "epochs": 1}),
    ("coun", {"base": METHODS["scrub"](epochs=1)}),
]


@pytest.mark.parametrize("selector", ["@class:a", "@random:9"])
@pytest.mark.parametrize(("name", "changed"), CASES, ids=lambda one: str(one))
def test_a_method_takes_the_steps_that_its_plan_states(name, changed, selector):
    x, y = images(96, seed=1)
    data = Data(x, np.array([f"k{row:03d}" for row in range(96)]), y=y, classes=("a", "b", "c"))
    split = partition(data, valid=20, holdout=12, test=10)
    request = select_forget_set(split, data, selector, allow_duplicates=True)
    if Needs.CLASSES in METHODS[name].needs and selector != "@class:a":
        return
    method = replace(small(name), **changed)
    recipe = recipe_for(method, HOME[name], epochs=3)
    start = Checkpoint(recipe.start(0), recipe)
    run: Any = SimpleNamespace(data=data, split=split)
    sizes = _sizes_of(run, start, set(request.keys(data, "forget")))
    asked: Any = SimpleNamespace(method=method, budget=None)
    said, again = _expected_steps(asked, start, split, sizes)
    assert again == 3 * math.ceil(len(request.retain) / recipe.batch_size)
    if name == "shards":
        return  # as many as retraining everything, of which shards that nothing was forgotten from are spared
    taken = api.unlearn(start, data, request, method, device="cpu").training_cost.steps
    if name in WITHOUT:
        assert (said, taken) == (None, 0)
    elif name in MOST:
        assert said is not None and 0 < taken <= said
    else:
        assert said == taken


@pytest.mark.parametrize("forget", [1, 25, 1000])
def test_a_large_training_makes_no_plan_of_margin_matching_long(forget):
    sizes = RequestSizes(forget, 50_000, recipe_for(METHODS["margin_matching"](), "simclr", epochs=800, batch_size=256))
    assert count_planned_steps(METHODS["margin_matching"](), sizes) == 48 + forget // 8
    assert count_planned_steps(METHODS["finetune"](), sizes) == 40 * math.ceil(50_000 / 256)


def test_the_size_of_a_batch_for_whole_classes_is_that_of_the_plan():
    method = METHODS["contrastive_unlearning"]()
    one, two = (count_planned_steps(method, RequestSizes(256, 512, None, whole)) for whole in (True, False))
    assert one is not None and two is not None and one == 2 * two
