"""Copies of one picture are on one side of a bank's pairs, whatever is divided, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest

from efface.auditing.reference_bank import draw_halves
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.runs.bank_plan import units_of

COUNT = 40
UNITS = ("example", "group", "class")


def data_of(copies: list[tuple[int, int]], **changed: dict[int, str]) -> Data:
    """Random pictures, of which some are copies of others; a group of two and eight classes."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (COUNT, 1, 8, 8), dtype=np.uint8)
    for first, second in copies:
        x[second] = x[first]
    group = np.array([f"p{row // 2:02d}" for row in range(COUNT)])
    for row, name in changed.get("group", {}).items():
        group[row] = name
    keys = np.array([f"k{row:02d}" for row in range(COUNT)])
    return Data(x, keys, y=np.arange(COUNT) % 8, classes=tuple("abcdefgh"), group=group)


def split_of(order: np.ndarray | None = None) -> Split:
    """A split in which everything is trained on."""
    return Split(retain=np.arange(COUNT))


COPIES = {
    "of two groups": ([(0, 2)], {}),
    "of three": ([(0, 2), (2, 4)], {}),
    "in a ring": ([(0, 2), (3, 5), (4, 6)], {}),
    "of one group": ([(0, 1)], {}),
    "without a group": ([(0, 2), (5, 7)], {2: "", 5: ""}),
    "both without": ([(0, 2)], {0: "", 2: ""}),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_on_one_side_in_every_pair_and_so_are_groups_and_classes(kind, unit):
    copies, groups = COPIES[kind]
    data = data_of(copies, group=groups)
    names = units_of(data, split_of(), unit)
    units, member = np.unique(names, return_inverse=True)
    halves = draw_halves(units.tolist(), 50, 0)[:, member]
    for first, second in copies:
        assert (halves[:, first] == halves[:, second]).all()
    kinds = {"group": data.group, "class": data.y}.get(unit)
    if kinds is not None:
        for one in np.unique(kinds):
            if one != "":
                assert len(np.unique(names[kinds == one])) == 1
    assert all(2 <= half.sum() < COUNT - 2 for half in halves)


@pytest.mark.parametrize("unit", UNITS)
def test_without_such_copies_units_are_called_as_before(unit):
    """Existing banks are extended: their draw follows from these names."""
    data = data_of([(0, 1)])
    y = data.y
    assert y is not None and data.group is not None
    y[1] = y[0]
    wanted = {
        "example": [f"copy k{0 if row == 1 else row:02d}" for row in range(COUNT)],
        "group": [f"group p{row // 2:02d}" for row in range(COUNT)],
        "class": [f"class {label}" for label in y.tolist()],
    }[unit]
    assert units_of(data, split_of(), unit).tolist() == wanted


def test_joined_units_have_the_first_name_of_a_group():
    names = units_of(data_of([(0, 2), (5, 7)], group={5: "", 2: ""}), split_of(), "group")
    assert names[[0, 1, 2, 3]].tolist() == ["group p00", "group p00", "group p00", "group p01"]
    assert names[[4, 5, 6, 7]].tolist() == ["group p02", "group p03", "group p03", "group p03"]
    assert sorted(set(names.tolist())) == [f"group p{number:02d}" for number in range(COUNT // 2)]


def test_too_few_units_are_said_to_be_joined():
    copies = [(row, row + 1) for row in range(6)]
    with pytest.raises(EffaceError, match=r"only 2 units.*several of them: they were joined, 6 less"):
        units_of(data_of(copies), split_of(), "class")
