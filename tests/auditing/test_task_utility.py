"""Utility is decided on the model's own task: its head counts, and its loss has an exit code of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.auditing.evidence import Evidence
from efface.auditing.sequential import worst_exit_code
from efface.auditing.task_change import NOTED_DROP, UNSEEN, TaskChange, compare_observed, describe_worse
from efface.auditing.utility_gate import head_loss
from efface.auditing.verdict import EXIT_CODES, judge
from efface.data.dataset import Data
from efface.data.split import partition
from efface.runs.task_utility import TaskUtility, compare_tasks, measure_task
from tests import tiny
from tests.worlds import World, with_arrays

LARGE = {"forget": 400, "holdout": 600, "retain": 600, "test": 400}


def broken(world: World, observed, share: float):
    """A head that is wrong on this share of the never-trained and of the retained examples; features stay."""
    arrays = {}
    for part in ("test", "valid", "retain"):
        logits = observed.of(part, "logits").copy()
        wrong = np.arange(len(logits)) % 100 < 100 * share
        logits[wrong] = -logits[wrong]
        arrays[f"{part}__logits"] = logits
    return with_arrays(observed, **arrays)


def test_a_destroyed_head_is_lost_utility_although_its_features_are_good() -> None:
    world = World(3, classifier=True, **LARGE)
    original = world.original(projector=False)
    good = world.model("subject", {"retain": 1.0}, projector=False)
    fine = judge(Evidence(original, good))
    assert not fine.utility_lost and fine.exit_code == EXIT_CODES[fine.word]
    verdict = judge(Evidence(original, broken(world, good, 0.6)))
    assert verdict.utility_drop is not None and verdict.utility_drop < 0.05  # its neighbors are as good as before
    assert "accuracy of its own head on examples never trained on" in verdict.utility_lost
    assert verdict.exit_code == (5 if verdict.word in ("removed, utility lost", "inconclusive") else 3)
    assert "utility is lost" in verdict.sentence and "the original's" in verdict.sentence


def test_undecided_and_destroyed_is_not_merely_undecided() -> None:
    world = World(3, classifier=True, forget=12, holdout=20, retain=300, test=300)
    original = world.original(projector=False)
    subject = broken(world, world.model("subject", {"retain": 1.0}, projector=False), 0.6)
    verdict = judge(Evidence(original, subject))
    assert verdict.word == "inconclusive"
    assert verdict.exit_code == 5
    assert verdict.sentence.startswith("The model's utility is lost")


@pytest.mark.parametrize(("share", "test", "lost"), [(0.02, 400, False), (0.2, 400, True), (0.02, 15, False)])
def test_a_loss_must_be_large_and_no_chance(share: float, test: int, lost: bool) -> None:
    world = World(4, classifier=True, **{**LARGE, "test": test})
    original = world.original(projector=False)
    found, note = head_loss(compare_observed(original, broken(world, original, share)), 0.05)
    assert bool(found) == lost and "retained" in note


@pytest.mark.parametrize("kind", ["head", "pairs", "neighbors"])
@pytest.mark.parametrize("part", ["test", "retain"])
def test_a_loss_of_more_than_two_points_is_in_the_headline(kind: str, part: str) -> None:
    """Whatever the own task is, and on whichever examples: it is said, although five points are allowed."""
    world = World(5, classifier=kind == "head", captioned=kind == "pairs", **LARGE)
    original = world.model("original", dict.fromkeys(("forget", "retain", "test", "valid"), 1.0), projector=False)
    same = judge(Evidence(original, original))
    assert not same.utility_worse and "worse at its own task" not in same.sentence
    name, arrays = {"head": "logits", "pairs": "image", "neighbors": "features"}[kind], {}
    for one in ("test", "valid") if part == "test" else (part,):
        changed = original.of(one, name).copy()
        rows = np.flatnonzero(np.arange(len(changed)) % (12 if kind == "pairs" else 25) == 0)[:-1]
        changed[rows] = changed[rows + 1]  # what the model makes of an example of another class
        arrays[f"{one}__{name}"] = changed
    subject = with_arrays(original, **arrays)
    verdict = judge(Evidence(original, subject))
    where = "retained examples" if part == "retain" else "never trained on"
    assert not verdict.utility_lost and where in verdict.utility_worse and "points less" in verdict.utility_worse
    assert verdict.sentence.startswith("The model is worse at its own task than the original: ")
    assert verdict.exit_code == same.exit_code == EXIT_CODES[verdict.word]


def test_what_is_lost_is_not_also_called_worse() -> None:
    world = World(3, classifier=True, **LARGE)
    original = world.original(projector=False)
    verdict = judge(Evidence(original, broken(world, original, 0.6)))
    assert verdict.utility_lost and not verdict.utility_worse


@pytest.mark.parametrize(("count", "wrong", "said"), [(100, 2, False), (100, 3, True), (50, 1, False), (30, 1, True)])
def test_two_points_are_counted_exactly(count: int, wrong: int, said: bool) -> None:
    right = np.ones(count, dtype=bool)
    change = TaskChange.between("Accuracy", UNSEEN, right, np.arange(count) >= wrong)
    assert change.is_worse == said == (wrong / count > NOTED_DROP)
    text = describe_worse([change])
    assert bool(text) == said and ("may be chance" in text) == said  # so few wrong ones are within two errors of none


def test_worst_exit_code() -> None:
    assert worst_exit_code(4, 5) == 5 and worst_exit_code(5, 3) == 3 and worst_exit_code(0, 5, 4) == 5


def test_what_it_cost_is_measured_on_the_own_task() -> None:
    x, y = tiny.images(120)
    data = Data.from_arrays(x, y, text=tiny.captions(y))
    split, device = partition(data, seed=0), torch.device("cpu")
    words = {"cross_entropy": "its own head", "clip": "Captions", "simclr": "nearest neighbors"}
    for name, word in words.items():
        model = tiny.recipe(name).start(0)
        digest = model.digest()
        found = measure_task(model, data, split, device)
        assert found is not None and word in found.task and found.hits.keys() == {"retain", UNSEEN}
        assert model.digest() == digest and model.training
        said, lost = compare_tasks(found, found, 0.05)
        assert not lost and len(said) == 1 and "now" in said[0]
    bare = Data.from_arrays(x)
    assert measure_task(tiny.recipe("simclr").start(0), bare, partition(bare, seed=0), device) is None
    assert "not measured" in compare_tasks(None, None, 0.05)[0][0]


def test_a_model_that_was_destroyed_is_warned_of() -> None:
    x, y = tiny.images(150)
    data = Data.from_arrays(x, y)
    split, device = partition(data, test=50, seed=0), torch.device("cpu")
    model = tiny.recipe("cross_entropy").start(0)
    old = measure_task(model, data, split, device)
    assert old is not None
    right = {part: np.ones_like(hits) for part, hits in old.hits.items()}
    said, lost = compare_tasks(type(old)(old.task, right), old, 0.05)
    assert lost and "WARNING" in said[-1] and "--stop" in said[-1]


@pytest.mark.parametrize(
    ("retain", "unseen", "lost", "warned"),
    [
        (0.0, 0.0, False, 0),
        (0.02, 0.02, False, 0),
        (0.03, 0.0, False, 1),
        (0.0, 0.03, False, 1),
        (0.3, 0.0, False, 1),
        (0.3, 0.3, True, 1),
        (0, 0.3, True, 1),
    ],
)
def test_a_model_that_got_worse_by_more_than_two_points_is_warned_of(
    retain: float, unseen: float, lost: bool, warned: int
) -> None:
    before = TaskUtility("Accuracy", {name: np.ones(200, dtype=bool) for name in ("retain", UNSEEN)})
    hits = {name: np.arange(200) >= 200 * worse for name, worse in (("retain", retain), (UNSEEN, unseen))}
    said, found = compare_tasks(before, TaskUtility("Accuracy", hits), 0.05)
    assert found == lost and sum(one.startswith("WARNING") for one in said) == warned
    assert ("retained examples" in " ".join(said)) == (retain > NOTED_DROP and not lost)
