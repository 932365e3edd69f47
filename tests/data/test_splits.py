"""Splits: disjoint parts, drawn by key, and a holdout with the same mix as the forget set."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.dataset import Data
from efface.data.matching import ENOUGH, FEWEST_OF_GROUP, find_companions
from efface.data.split import SPLIT_PARTS, Split, merge_requests, partition, select_forget_set
from efface.errors import EffaceError
from tests.pictures import made, raises


def keys(data: Data, split: Split, part: str) -> set[str]:
    return set(data.keys[getattr(split, part)].tolist())


def test_default_sizes_without_and_with_an_official_test_part():
    assert partition(made()).sizes() == {
        "forget": 0,
        "retain": 140,
        "valid": 20,
        "holdout": 20,
        "spare": 0,
        "test": 20,
    }
    data = made(300, tested=100)
    split = partition(data)
    assert split.sizes() == {"forget": 0, "retain": 160, "valid": 20, "holdout": 20, "spare": 0, "test": 100}
    assert data.official is not None and set(data.official[split.test]) == {"test"}
    for part in ("retain", "valid", "holdout"):
        assert set(data.official[getattr(split, part)]) == {"train"}


def test_counts_and_fractions():
    sizes = partition(made(tested=80), train=50, valid=10, holdout=0.25, test=0.5).sizes()
    assert sizes == {"forget": 0, "retain": 50, "valid": 10, "holdout": 30, "spare": 0, "test": 40}
    assert partition(made(), train=1, valid=1, holdout=1, test=1).sizes()["retain"] == 1
    assert partition(made(), train=0.5, valid=0, holdout=0, test=0).sizes()["retain"] == 100
    assert partition(made(), train=1.0, valid=0, holdout=0, test=0).sizes()["retain"] == 200
    assert partition(made(tested=80), test=1.0).sizes()["test"] == 80
    assert partition(made(), valid=20.0).sizes()["valid"] == 20  # a count from YAML may have a decimal point


def test_sizes_that_do_not_fit():
    data = made(tested=80)
    raises(
        lambda: partition(data, train=100),
        "120 official training examples",
        "holdout 12, valid 12, train 100.",
        "split.train",
    )
    raises(lambda: partition(data, valid=60, holdout=60), "120 official", "train 1 or more")
    raises(lambda: partition(data, train=0), "too few")
    raises(lambda: partition(data, test=81), "split.test asks for 81", "80")
    raises(lambda: partition(data, valid=121), "split.valid asks for 121", "120")
    for size in (-1, -0.5, 1.5, float("nan"), True):
        raises(lambda size=size: partition(data, holdout=size), "split.holdout cannot be", "fraction")


def test_parts_are_stratified():
    data = made(1000, classes=5)
    split = partition(data, train=333, valid=100, holdout=50, test=20)
    for part, each in (("retain", 333 / 5), ("valid", 20), ("holdout", 10), ("test", 4)):
        assert data.y is not None
        assert np.abs(np.bincount(data.y[getattr(split, part)], minlength=5) - each).max() <= 1


def test_a_larger_train_moves_no_other_part():
    data = made()
    small, large = partition(data, train=30), partition(data, train=90)
    assert keys(data, small, "retain") < keys(data, large, "retain")
    for part in ("valid", "holdout", "test"):
        assert keys(data, small, part) == keys(data, large, part)


def test_more_data_moves_few_keys():
    data = made(220)
    before = partition(data.take(range(200)), valid=0.2)
    after = partition(data, valid=0.2)
    assert len(keys(data, before, "valid") & keys(data, after, "valid")) > 25  # of 40; by chance 8


def test_seeds_draw_other_parts():
    data = made()
    assert partition(data, seed=0).digest(data) != partition(data, seed=1).digest(data)
    assert partition(data, seed=0).digest(data) == partition(data, seed=0).digest(data)


@given(
    n=st.integers(20, 60),
    classes=st.integers(0, 5),
    tested=st.sampled_from([0, 8]),
    sizes=st.tuples(*[st.one_of(st.integers(0, 5), st.floats(0, 0.2))] * 3),
    selector=st.sampled_from(["@random:3", "@random:0.3", "@class:1", "@keys", "file"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_and_do_not_depend_on_row_order(n, classes, tested, sizes, selector, seed):
    data = made(n, classes, tested)
    mixed = data.take(np.random.default_rng(seed).permutation(n))
    valid, holdout, test = sizes
    results = []
    for one in (data, mixed):
        split = partition(one, valid=valid, holdout=holdout, test=test, seed=seed)
        split.check(n)
        kept = split.retain
        if selector in ("@keys", "file"):
            listed = sorted(one.keys[kept].tolist())[::4][: len(kept) - 1]
            what = "@keys:" + ",".join(listed)
        else:
            what = selector
        try:
            after = select_forget_set(split, one, what, seed)
        except EffaceError as error:
            results.append(str(error))
            continue
        after.check(n)
        assert set(after.train) == set(split.train)
        assert len(after.forget) and len(after.retain)
        assert set(after.holdout) | set(after.spare) == set(split.holdout)
        results.append((after.digest(one), after.sizes(), after.provenance))
    assert results[0] == results[1]


def test_a_split_that_overlaps_or_exceeds_the_data_is_refused():
    rows = np.arange
    raises(lambda: Split(forget=rows(3), test=rows(2, 5)).check(5), "forget and test share 1")
    raises(lambda: Split(forget=rows(3)).check(2), "position 2", "2 examples")
    raises(lambda: Split(forget=np.array([-1])).check(2), "position -1")
    raises(lambda: Split(retain=np.array([1, 0])).check(2), "retain are not sorted")
    raises(lambda: Split(retain=np.array([1, 1])).check(2), "retain are not sorted")


def test_a_split_is_stored_by_key_and_found_again_in_another_order():
    data = made(group=[f"g{i % 7}" for i in range(200)])
    split = select_forget_set(partition(data), data, "@group:g3", seed=5)
    stored = json.loads(json.dumps(split.to_dict(data)))
    mixed = data.take(np.random.default_rng(0).permutation(200))
    found = Split.from_dict(mixed, stored)
    assert found.digest(mixed) == split.digest(data) and found.provenance == split.provenance
    for part in SPLIT_PARTS:
        assert keys(mixed, found, part) == keys(data, split, part)
    digests = {split.digest(data)}
    for part in ("forget", "retain", "valid", "holdout", "spare", "test"):
        changed = {**stored, "parts": {**stored["parts"], part: stored["parts"][part][1:]}}
        digests.add(Split.from_dict(data, changed).digest(data))
    assert len(digests) == 7


def test_stored_splits_that_do_not_fit():
    data = made()
    stored = partition(data).to_dict(data)
    raises(
        lambda: Split.from_dict(data.take(range(100)), stored),
        "does not fit",
        "ids are not in",
        "same source",
    )
    raises(lambda: Split.from_dict(data, {"provenance": {}}), "not a stored split", "forget, retain")
    stored["parts"]["test"] = stored["parts"]["test"] + stored["parts"]["retain"][:2]
    raises(lambda: Split.from_dict(data, stored), "retain and test share 2")


def test_a_class_is_matched_with_all_holdout_examples_of_that_class():
    data = made(1000, classes=5)
    split = partition(data, holdout=0.3)
    after = select_forget_set(split, data, "@class:2")
    assert data.y is not None
    assert after.holdout.tolist() == split.holdout[data.y[split.holdout] == 2].tolist()
    assert set(after.spare) == set(split.holdout) - set(after.holdout)
    assert after.provenance["matched"] == "class" and after.provenance["warnings"] == []


def request(data, split, counts):
    """Build a selector of ``counts[label]`` training examples of each class."""
    rows = [split.retain[data.y[split.retain] == label][:count] for label, count in counts.items()]
    return "@keys:" + ",".join(data.keys[np.concatenate(rows)].tolist())


@pytest.mark.parametrize("counts", [{0: 30, 1: 10}, {0: 1, 1: 1, 2: 1}, {2: 80, 3: 20, 4: 10}, {1: 1}, {3: 200}])
def test_the_holdout_has_the_mix_of_the_forgotten(counts):
    data = made(2000, classes=5)
    split = partition(data, holdout=0.2)  # 80 of each class
    after = select_forget_set(split, data, request(data, split, counts))
    assert data.y is not None and after.provenance["warnings"] == []
    got = np.bincount(data.y[after.holdout], minlength=5)
    wanted = np.array([counts.get(label, 0) for label in range(5)])
    assert np.abs(got / got.sum() - wanted / wanted.sum()).sum() / 2 <= 0.05
    assert got.max() == 80  # as much of the pool as the mix allows
    assert (got[wanted == 0] == 0).all()


def test_too_few_of_a_class_is_a_warning_that_says_which():
    y = np.array([0] * 900 + [1] * 100)
    data = made(1000, y=y, classes=2)
    split = partition(data, train=0.5, holdout=0.3)
    few = split.holdout[y[split.holdout] == 1][3:]
    thin = dataclasses.replace(split, holdout=np.setdiff1d(split.holdout, few))  # three of class 1 remain
    after = select_forget_set(thin, data, request(data, thin, {0: 40, 1: 40}))
    assert np.bincount(y[after.holdout]).tolist() == [40, 3]
    assert any("'1' (3)" in warning and "too few" in warning for warning in after.provenance["warnings"])
    none = dataclasses.replace(split, holdout=split.holdout[y[split.holdout] == 0])
    after = select_forget_set(none, data, request(data, none, {0: 40, 1: 40}))
    assert set(y[after.holdout]) == {0} and any("'1' (0)" in one for one in after.provenance["warnings"])
    raises(lambda: select_forget_set(none, data, "@class:1"), "None of the 270 holdout", "larger split.holdout")


def test_a_rare_class_does_not_shrink_the_holdout():
    y = np.array([0] * 990 + [1] * 10)
    data = made(1000, y=y, classes=2)
    split = partition(data, train=0.4, holdout=0.4)
    after = select_forget_set(split, data, request(data, split, {0: 200, 1: 4}))
    assert len(after.holdout) > 2 * ENOUGH and after.provenance["warnings"] == []


def grouped(unseen, *, labelled=True):
    """Data of 400 in which 12 training examples and ``unseen`` of the 40 in the holdout are of the group 'me'."""
    data = made(400, classes=4)
    split = partition(data)
    group = np.full(400, "rest")
    group[[*split.retain[:12], *split.holdout[:unseen]]] = "me"
    data = dataclasses.replace(data, group=group)
    return (data if labelled else dataclasses.replace(data, y=None, classes=())), split


@pytest.mark.parametrize("unseen", [0, 1, 5, FEWEST_OF_GROUP - 1])
def test_few_unseen_examples_of_a_group_do_not_shrink_the_holdout(unseen):
    data, split = grouped(unseen)
    after = select_forget_set(split, data, "@group:me")
    assert data.group is not None and after.provenance["matched"] != "group"
    assert len(after.holdout) >= min(FEWEST_OF_GROUP, 40 - unseen)
    assert not (data.group[after.holdout] == "me").any()
    assert find_companions(data, after.forget, after.spare).tolist() == split.holdout[:unseen].tolist()
    (said,) = (one for one in after.provenance["warnings"] if "of the forgotten group" in one)
    assert f"has {unseen or 'no'} example" in said and ("by class, not by group" in said or "neither" in said)
    assert ("reported apart" in said) == bool(unseen)


def test_enough_unseen_examples_of_a_group_are_the_holdout():
    data, split = grouped(FEWEST_OF_GROUP)
    after = select_forget_set(split, data, "@group:me")
    assert after.provenance["matched"] == "group" and after.holdout.tolist() == split.holdout[:FEWEST_OF_GROUP].tolist()


def test_groups_without_labels_are_compared_with_all_others_and_that_is_said():
    data, split = grouped(3, labelled=False)
    after = select_forget_set(split, data, "@group:me")
    assert after.provenance["matched"] is None and len(after.holdout) == 37
    assert any("neither by group nor by class" in one for one in after.provenance["warnings"])


def test_a_group_of_classes_that_the_holdout_lacks_is_compared_with_all_others():
    data, split = grouped(2)
    y = data.y.copy()
    y[split.holdout] = np.where(y[split.holdout] == 0, 1, y[split.holdout])
    rows = split.retain[y[split.retain] == 0][:6]
    group = np.full(400, "rest")
    group[rows] = "me"
    data = dataclasses.replace(data, y=y, group=group)
    after = select_forget_set(split, data, "@group:me")
    assert after.provenance["matched"] is None and len(after.holdout) == 40
    assert any("and 0 of its classes" in one and "neither" in one for one in after.provenance["warnings"])


def test_a_holdout_of_the_group_alone_is_used_and_that_is_said():
    data, split = grouped(40)
    few = dataclasses.replace(split, holdout=split.holdout[:4])
    after = select_forget_set(few, data, "@group:me")
    assert after.holdout.tolist() == few.holdout.tolist()
    assert any("no others" in one for one in after.provenance["warnings"])


def test_all_requests_together_are_matched_as_groups_too():
    data, split = grouped(5)
    group = data.group.copy()
    group[split.retain[20:25]] = "you"
    data = dataclasses.replace(data, group=group)
    both = merge_requests(select_forget_set(select_forget_set(split, data, "@group:me"), data, "@group:you"), data)
    assert both.provenance["by_group"] and not (data.group[both.holdout] == "me").any()


def test_nothing_to_match_by_is_a_warning():
    data = made(classes=0)
    split = partition(data)
    after = select_forget_set(split, data, f"@keys:{data.keys[split.retain[0]]}")
    assert after.holdout.tolist() == split.holdout.tolist() and after.provenance["matched"] is None
    assert any("neither labels nor groups" in one for one in after.provenance["warnings"])
    bare = partition(data, holdout=0)
    assert any("cannot be audited" in one for one in select_forget_set(bare, data, "@random:3").provenance["warnings"])
