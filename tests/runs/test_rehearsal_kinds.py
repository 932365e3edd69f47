"""The sets of retained examples that stand for a request: disjoint while they last, then again with other ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from efface.data.dataset import Data
from efface.data.split import partition
from efface.errors import EffaceError
from efface.runs.rehearsal_kinds import ROUNDS, draw_sets

DATA = Data.from_arrays(np.zeros((100, 1, 2, 2), dtype=np.uint8), np.arange(100) % 2, classes=["a", "b"])
SPLIT = partition(DATA, train=60, valid=10, holdout=20, test=10)


def test_sets_are_disjoint_while_the_retained_last():
    sets = draw_sets(DATA, SPLIT, "random", 12, 5, seed=0)
    assert [len(one) for one in sets] == [12] * 5
    assert len(np.unique(np.concatenate(sets))) == 60 and set(np.concatenate(sets)) <= set(SPLIT.retain)


def test_then_each_comes_again_with_others_and_never_twice_in_a_set():
    sets = draw_sets(DATA, SPLIT, "random", 12, 1000, seed=0)
    assert len(sets) == 5 * ROUNDS
    counts = np.bincount(np.concatenate(sets), minlength=100)[SPLIT.retain]
    assert set(counts) == {ROUNDS}, "each as often as any other"
    assert all(len(np.unique(one)) == 12 for one in sets)
    assert len({tuple(one) for one in sets}) == len(sets), "planted: the same sets in every round"


def test_more_requests_begin_with_those_that_fewer_have():
    few, many = (draw_sets(DATA, SPLIT, "random", 7, count, seed=3) for count in (4, 30))
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))


def test_sets_that_are_a_large_part_of_the_retained_do_not_come_again():
    assert len(draw_sets(DATA, SPLIT, "random", 30, 40, seed=0)) == 2
    assert len(draw_sets(DATA, SPLIT, "random", 61, 40, seed=0)) == 0


def test_classes_come_once_and_groups_need_groups():
    assert len(draw_sets(DATA, SPLIT, "class", 30, 40, seed=0)) == 2
    with pytest.raises(EffaceError, match="no group"):
        draw_sets(DATA, SPLIT, "group", 5, 40, seed=0)


def test_a_request_for_several_people_is_rehearsed_with_as_many_others():
    people = np.array([f"person-{number // 3:02d}" for number in range(99)] + [""])
    data = dataclasses.replace(DATA, group=people)
    split = dataclasses.replace(SPLIT, retain=np.arange(100), valid=SPLIT.valid[:0], holdout=SPLIT.holdout[:0],
                                test=SPLIT.test[:0])  # fmt: skip
    assert draw_sets(data, split, "group", 12, 40, seed=0) == [], "no single person has so many"
    sets = draw_sets(data, split, "group", 12, 40, seed=0, units=4)
    assert len(sets) == 33 // 4 and {len(one) for one in sets} == {12}
    assert len(np.unique(np.concatenate(sets))) == 12 * len(sets), "everybody at most once"
    assert all(np.unique(people[one], return_counts=True)[1].tolist() == [3] * 4 for one in sets)
