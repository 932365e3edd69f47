"""Utility is decided on the model's own task: its head counts, and its loss has an exit code of its own."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from efface.auditing.evidence import Evidence
from efface.auditing.sequential import worst_exit_code
from efface.auditing.task_change import (
    NOTED_DROP,
    RETAINED,
    UNSEEN,
    TaskChange,
    compare_observed,
    describe_undecided,
    describe_worse,
)
from efface.auditing.utility_gate import head_loss
from efface.auditing.verdict import EXIT_CODES, judge
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.runs import task_utility
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
    assert re.search(r"accuracy of its own head on \d+ examples never trained on", verdict.utility_lost)
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
    original = world.model(
        "original", dict.fromkeys(("forget", "retain", "test", "valid", "holdout"), 1.0), projector=False
    )
    same = judge(Evidence(original, original))
    assert not same.utility_worse and "worse at its own task" not in same.sentence and not same.utility_undecided
    name, arrays = {"head": "logits", "pairs": "image", "neighbors": "features"}[kind], {}
    for one in ("test", "valid", "holdout") if part == "test" else (part,):
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


@pytest.mark.parametrize("kind", ["neighbors", "pairs"])
@pytest.mark.parametrize(("count", "wrong", "lost"), [(55, 3, False), (400, 40, True)])
def test_a_few_neighbors_or_pairs_less_are_chance(kind: str, count: int, wrong: int, lost: bool) -> None:
    """Three of 55 are more than five points, and less than two standard errors; forty of four hundred are more."""
    sizes = {**LARGE, "test": count, "valid": 0}
    world = World(6, classifier=kind == "neighbors", captioned=kind == "pairs", **sizes)
    original = world.model("original", dict.fromkeys(("forget", "retain", "test"), 3.0), projector=False)
    name = {"pairs": "image", "neighbors": "features"}[kind]
    changed = original.of("test", name).copy()
    for there in range(wrong):  # mistaken for an example of another class
        here = 3 * there % (count - 1)
        changed[here] = original.of("test", name)[here + 1]
    verdict = judge(Evidence(original, with_arrays(original, **{f"test__{name}": changed})))
    assert bool(verdict.utility_lost) == lost


def test_what_is_lost_is_not_also_called_worse() -> None:
    world = World(3, classifier=True, **LARGE)
    original = world.original(projector=False)
    verdict = judge(Evidence(original, broken(world, original, 0.6)))
    assert verdict.utility_lost and not verdict.utility_worse and not verdict.utility_undecided


@pytest.mark.parametrize(("count", "wrong", "said"), [(100, 2, False), (100, 3, True), (50, 1, False), (30, 1, True)])
def test_two_points_are_counted_exactly(count: int, wrong: int, said: bool) -> None:
    right = np.ones(count, dtype=bool)
    change = TaskChange.between("Accuracy", UNSEEN, right, np.arange(count) >= wrong)
    assert change.is_noted == said == (wrong / count > NOTED_DROP)
    assert f"on {count} examples never trained on" in describe_undecided([change])
    assert not change.is_worse and not describe_worse([change])  # three wrong answers are what a coin gives in 1 of 8


@pytest.mark.parametrize(
    ("worsened", "improved", "count", "worse"),
    [(5, 0, 100, True), (4, 0, 100, False), (20, 13, 261, False), (20, 9, 261, True), (20, 9, 2000, False)],
)
def test_whether_a_loss_is_chance_is_told_by_the_answers_that_changed(
    worsened: int, improved: int, count: int, worse: bool
) -> None:
    """The exact test of McNemar: 1/32, 1/16, 0.148 and 0.031; less than two points are not worth a word."""
    before = np.arange(count) >= improved
    after = np.arange(count) < count - worsened
    change = TaskChange.between("Accuracy", UNSEEN, before, after)
    assert (change.worsened, change.improved, change.count) == (worsened, improved, count)
    assert change.is_worse == worse == bool(describe_worse([change]))
    assert bool(describe_undecided([change])) == (count < 2000 and not worse)


@pytest.mark.parametrize(("count", "told"), [(20, False), (100, False), (200, True), (2000, True)])
def test_few_examples_that_all_stayed_as_they_were_exclude_no_loss(count: int, told: bool) -> None:
    right = np.arange(count) % 3 > 0
    change = TaskChange.between("Accuracy", UNSEEN, right, right)
    assert change.drop == change.error == 0 and change.is_undecided == (not told)
    assert change.interval[1] == -change.interval[0] > 0
    assert ("0.0 points less" in describe_undecided([change])) == (not told)


def test_the_interval_of_a_loss_holds_it_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(1)
    for count, worse, better in ((40, 0.05, 0.05), (175, 0.08, 0.05), (300, 0.01, 0.1)):
        changes = drawn.choice((1, 0, -1), size=(2000, count), p=(worse, 1 - worse - better, better))
        ends = np.array([TaskChange.between("Accuracy", UNSEEN, one > 0, one < 0).interval for one in changes])
        held = np.mean((ends[:, 0] <= worse - better) & (worse - better <= ends[:, 1]))
        assert 0.935 <= held <= 0.99


def test_a_loss_of_shares_is_told_by_their_size() -> None:
    """Recall in both directions can be halved: many small gains do not outweigh a few whole losses."""
    before, after = np.full(300, 0.5), np.full(300, 0.5)
    after[:20], after[20:44] = 0.0, 0.6
    change = TaskChange.between("recall", UNSEEN, before, after)
    assert (change.worsened, change.improved) == (20, 24) and change.drop > NOTED_DROP
    assert change.is_worse and change.drop > 2 * change.error
    same = TaskChange.between("recall", UNSEEN, before, np.where(np.arange(300) < 20, 0.0, 0.53))
    assert not same.is_noted and same.chance > 0.05


def test_a_small_set_seldom_alarms() -> None:
    """Where answers change at random and the model is as good as before, one set in twenty at most is called worse."""
    drawn = np.random.default_rng(0)
    for count in (20, 60, 261):
        changes = drawn.choice((-1, 0, 1), size=(2000, count), p=(0.1, 0.8, 0.1))
        found = [TaskChange.between("Accuracy", UNSEEN, one < 0, one > 0) for one in changes]
        share = np.mean([one.is_worse for one in found])
        assert share <= 0.06
        assert np.mean([one.is_noted for one in found]) > 3 * share


def test_a_class_that_was_forgotten_as_a_whole_is_no_loss() -> None:
    """A model that answers none of its examples any more does what it was asked to."""
    x, y = tiny.images(240)
    data = Data.from_arrays(x, y, keys=[f"k{n}" for n in range(len(y))])
    split = select_forget_set(partition(data, seed=0), data, f"@class:{data.classes[0]}")
    model = tiny.recipe("cross_entropy").start(0)
    found = measure_task(model, data, split, torch.device("cpu"))
    others = np.concatenate([split.test, split.valid])
    assert (
        found is not None
        and data.y is not None
        and len(found.hits[UNSEEN]) == int((data.y[others] != 0).sum()) < len(others)
    )
    world = World(7, classifier=True, **LARGE)
    original = world.original(projector=False)
    gone, logits = original.of("retain", "labels") != 0, {}
    kept = {f"retain__{name}": original.of("retain", name)[gone] for name in ("labels", "logits", "keys", "features")}
    for part in ("test", "valid", "holdout"):
        logits[f"{part}__logits"] = original.of(part, "logits").copy()
        logits[f"{part}__logits"][:, 0] = -100
    before = with_arrays(original, **kept)
    changes = {one.part: one for one in compare_observed(before, with_arrays(before, **logits))}
    assert changes[UNSEEN].drop <= 0 and changes[UNSEEN].count == sum(
        int((original.of(part, "labels") != 0).sum()) for part in ("test", "valid", "holdout")
    )


@pytest.mark.parametrize("name", ["cross_entropy", "clip", "simclr"])
def test_everything_that_was_never_trained_on_is_asked_but_the_holdout(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is in no part of the split; of very many, a sample that depends on the keys alone."""
    x, y = tiny.images(200)
    data = Data.from_arrays(x, y, text=tiny.captions(y), keys=[f"k{n}" for n in range(200)])
    split = partition(data, train=80, valid=20, holdout=30, test=20, seed=0)
    split = select_forget_set(split, data, "@keys:" + ",".join(data.keys[split.retain[:5]].tolist()))
    model, device = tiny.recipe(name).start(0), torch.device("cpu")
    found = measure_task(model, data, split, device)
    assert found is not None and {part: len(hits) for part, hits in found.hits.items()} == {RETAINED: 75, UNSEEN: 90}
    said, _ = compare_tasks(found, found, 0.05)
    assert "(90 examples)" in said[0] and "(75 examples)" in said[0]
    monkeypatch.setitem(task_utility.MEASURED, UNSEEN, 40)
    few = measure_task(model, data, split, device)
    order = np.random.default_rng(1).permutation(200)
    moved, at = data.take(order), np.argsort(order)
    again = replace(
        split, **{part: np.sort(at[getattr(split, part)]) for part in ("retain", "forget", "holdout", "spare")}
    )
    other = measure_task(model, moved, again, device)
    assert few is not None and other is not None and len(few.hits[UNSEEN]) == len(other.hits[UNSEEN]) == 40
    assert few.hits[UNSEEN].sum() == other.hits[UNSEEN].sum()


@pytest.mark.parametrize("name", ["cross_entropy", "clip", "simclr"])
def test_a_loss_on_examples_outside_the_parts_is_warned_of(name: str) -> None:
    """Each kind of model, measured by itself: what is worse on many examples is said, and how many they are."""
    x, y = tiny.images(300)
    data = Data.from_arrays(x, y, text=tiny.captions(y))
    split = partition(data, train=60, valid=8, holdout=8, test=8, seed=0)
    found = measure_task(tiny.recipe(name).start(0), data, split, torch.device("cpu"))
    assert found is not None and len(found.hits[UNSEEN]) == 232
    right = {part: np.ones_like(hits) for part, hits in found.hits.items()}
    worse = right | {UNSEEN: np.arange(232) >= 8}
    said, lost = compare_tasks(replace(found, hits=right), replace(found, hits=worse), 0.05)
    assert not lost and said[-1].startswith("WARNING") and "points less on 232 examples never trained on" in said[-1]
    chance = right | {UNSEEN: np.arange(232) % 29 != 0}
    said, lost = compare_tasks(
        replace(found, hits=right | {UNSEEN: np.arange(232) % 77 != 1}), replace(found, hits=chance), 0.05
    )
    assert not lost and said[-1].startswith("There are too few examples to tell") and "WARNING" not in " ".join(said)


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
        assert not lost and "now" in said[0] and "WARNING" not in " ".join(said)
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
    assert ("retained examples" in " ".join(said)) == (retain >= NOTED_DROP and not lost)
