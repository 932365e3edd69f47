"""Unseen examples of the forgotten groups are observed and reported apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Evidence
from efface.auditing.observations import COMPANIONS, Observations
from efface.auditing.observers.observe import observe_model
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.observers.spot_check import spot_check
from efface.data.dataset import Data
from efface.data.split import Split, partition, select_forget_set
from tests import tiny

WATCH = ObservationSettings(views=2, gradient=False, batch_size=32)


@pytest.fixture(scope="module")
def made() -> tuple[Data, Split]:
    x, y = tiny.images(240)
    data = Data.from_arrays(x, y)
    split = partition(data, holdout=0.2, valid=0.2, test=0.2)
    group = np.full(240, "rest")
    group[[*split.retain[:10], *split.holdout[:4], *split.test[:3]]] = "me"
    data = dataclasses.replace(data, group=group)
    return data, select_forget_set(split, data, "@group:me")


def test_they_are_observed_apart(made: tuple[Data, Split]) -> None:
    data, split = made
    recipe = tiny.recipe("simclr")
    seen = observe_model(recipe.start(0), data, split, recipe.views, WATCH)
    keys = {part: set(seen.of(part, "keys")) for part in (COMPANIONS, "holdout", "forget")}
    assert data.group is not None and split.provenance["matched"] == "class"
    assert keys[COMPANIONS] == set(
        data.keys[[*split.spare, *split.test]][data.group[[*split.spare, *split.test]] == "me"]
    )
    assert len(keys[COMPANIONS]) == 7 and not keys[COMPANIONS] & (keys["holdout"] | keys["forget"])
    drawn = select_forget_set(partition(data, holdout=0.2, valid=0.2, test=0.2), data, "@random:10")
    assert not observe_model(recipe.start(0), data, drawn, recipe.views, WATCH).count(COMPANIONS)


def test_stored_ones_are_checked_like_all_others(made: tuple[Data, Split]) -> None:
    data, split = made
    recipe = tiny.recipe("simclr")
    model = recipe.start(0)
    seen = observe_model(model, data, split, recipe.views, WATCH)
    assert spot_check(seen, model, data, split, recipe.views, WATCH) == ""
    name = f"{COMPANIONS}/backbone.margin"
    forged = Observations(
        seen.model, seen.split, {**seen.arrays, name: seen.of(COMPANIONS, "backbone.margin") + 3}, seen.meta
    )
    assert name in spot_check(forged, model, data, split, recipe.views, WATCH)
    rest = {key: value for key, value in seen.arrays.items() if not key.startswith(COMPANIONS)}
    gone = Observations(seen.model, seen.split, rest, seen.meta)
    assert spot_check(gone, model, data, split, recipe.views, WATCH)


def scored(count: int, companions: float, forget: float, model: str) -> Observations:
    """Margins around 0 in the holdout, and around these values in the companions and in F."""
    rng = np.random.default_rng(len(model))
    sizes = {"forget": (30, forget), "holdout": (40, 0.0), COMPANIONS: (count, companions)}
    arrays: dict[str, np.ndarray] = {}
    for part, (number, mean) in sizes.items():
        arrays[f"{part}/keys"] = np.array([f"{part}{row}" for row in range(number)])
        arrays[f"{part}/backbone.margin"] = rng.normal(mean, 1, number).astype(np.float32)
    return Observations(model, "split", arrays, {"spaces": ["backbone"]})


def findings(original: Observations, subject: Observations) -> dict:
    return {one.name: one for one in AUDITS["companions"]().findings(Evidence(original, subject))}


def test_a_group_that_stands_out_and_memorized_examples_are_told_apart() -> None:
    found = findings(scored(20, 3.0, 3.0, "original"), scored(20, 0.0, 3.0, "subject"))
    alone, apart = (found[f"companions.backbone.margin.{name}"] for name in ("auc", "forget.auc"))
    assert alone.original > 0.95 and abs(alone.value - 0.5) < 0.2  # the group stood out in the original only
    assert apart.value > 0.95 and abs(apart.original - 0.5) < 0.2  # the pictures themselves do in the subject
    assert alone.n == (20, 40) and apart.n == (30, 20)
    assert alone.interval[0] < alone.value < alone.interval[1]


def test_a_single_one_is_too_few_and_none_is_no_finding() -> None:
    (one,) = findings(scored(1, 0, 0, "original"), scored(1, 0, 0, "subject")).values()
    assert one.value is None and "too few" in one.note
    assert not findings(scored(0, 0, 0, "original"), scored(0, 0, 0, "subject"))
