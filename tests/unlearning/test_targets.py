"""Every example gets its own target, or there is an error: never its neighbour's."""

from __future__ import annotations

import pytest
import torch

from efface.errors import EffaceError
from efface.unlearning.targets import MarginTargets

IDS, VALID = [3, 5, 7], [10, 20, 30]


def targets(ids=None, valid=None, margins=None) -> MarginTargets:
    """Targets that tell whose they are."""
    ids, valid = torch.tensor(IDS if ids is None else ids), torch.tensor(VALID if valid is None else valid)
    own = ids / 10 if margins is None else torch.tensor(margins)
    return MarginTargets(ids, {"backbone": own}, "0" * 64, 0.1, valid, {"backbone": valid / 10})


@pytest.mark.parametrize("asked", [[3], [5], [7], [7, 3, 3], [3, 5, 7], []])
def test_rows_are_those_of_the_examples(asked):
    one = targets()
    assert one.ids[one.rows(torch.tensor(asked, dtype=torch.int64))].tolist() == asked


@pytest.mark.parametrize("asked", [[0], [4], [6], [8], [3, 4], [7, 100]])
def test_an_example_without_a_target_is_an_error(asked):
    with pytest.raises(EffaceError, match=rf"no target of 1 of {len(asked)} forgotten examples"):
        targets().rows(torch.tensor(asked))


@pytest.mark.parametrize("asked", [[0, 10], [11, 21], [10, 31], [10, 20, 25]])
def test_a_slope_over_others_is_an_error(asked):
    with pytest.raises(EffaceError, match=r"no target of \d of \d unseen examples"):
        targets().slope("backbone", torch.tensor(asked), torch.arange(len(asked)).float())


def test_a_slope_over_its_own_is_found_in_any_order():
    shown = {10: 1.0, 20: 2.0, 30: 3.0}
    for order in ([10, 20, 30], [30, 10, 20], [20, 30]):
        assert targets().slope("backbone", torch.tensor(order), torch.tensor([shown[one] for one in order])) == 1.0


@pytest.mark.parametrize("wrong", [{"ids": [7, 3, 5]}, {"ids": [3, 3, 5]}, {"valid": [10, 30, 20]}])
def test_positions_that_are_not_sorted_are_refused(wrong):
    with pytest.raises(EffaceError, match="not sorted"):
        targets(**wrong)


def test_missing_targets_are_refused():
    with pytest.raises(EffaceError, match=r"no target of 2 of 3 examples in backbone"):
        targets(margins=[float("nan"), 0.5, float("nan")])


def test_no_targets_at_all_have_no_rows():
    with pytest.raises(EffaceError, match=r"no target of 1 of 1"):
        targets(ids=[]).rows(torch.tensor([3]))
