"""What overrules what is in use: the network's own task first, its neighbors only where it has no such task."""

from __future__ import annotations

import numpy as np
import pytest

from efface.interop.assumptions import VariantTrial, judge_assumption
from efface.interop.fit_measures import Fit

IMAGES = 200
OTHER = "shorter side, center (bicubic)"


def fit(head: float | None, votes: float, drift: float | None = None) -> Fit:
    """A network whose head and whose neighbors are right on these shares of the images, the first ones."""
    right = None if head is None else np.arange(IMAGES) < round(head * IMAGES)
    return Fit(right, np.arange(IMAGES) < round(votes * IMAGES), np.zeros(IMAGES), drift, right)


def judge(used: Fit, other: Fit) -> str:
    """The word for what is in use, against one alternative."""
    return judge_assumption("pictures", "bilinear", used, [VariantTrial(OTHER, "--set data.x=1", other)]).word


@pytest.mark.parametrize("drift", [None, 0.01])
@pytest.mark.parametrize("head", [0.98, 0.85, 0.8])
def test_two_preparations_that_both_fit_are_no_reason_to_refuse(head: float, drift: float | None) -> None:
    """A handed-back classifier whose neighbors prefer another resampling: its own answers are as good in both."""
    assert judge(fit(head, 0.8, drift), fit(head, 0.95, drift)) == "passed"
    assert judge(fit(head, 0.8, drift), fit(head + 0.01, 0.95, drift)) == "passed"


def test_neighbors_decide_where_there_is_no_head_or_it_does_not_answer() -> None:
    assert judge(fit(None, 0.8), fit(None, 0.95)) == "failed"  # an encoder
    assert judge(fit(0.3, 0.8), fit(0.3, 0.95)) == "failed"  # a head that is not trained, or answers for other classes
    assert judge(fit(0.3, 0.8, drift=0.01), fit(0.3, 0.95, drift=0.01)) == "undecided"  # the first layer says it fits
    assert judge(fit(None, 0.8), fit(None, 0.805)) == "passed"


def test_neighbors_that_the_first_layer_does_not_confirm_refuse_nothing() -> None:
    """An encoder that was trained on crops sees more in a squashed picture than in the square that it is shown."""
    assert judge(fit(None, 0.449, drift=0.107), fit(None, 0.531, drift=0.0998)) == "undecided"
    assert judge(fit(None, 0.45, drift=2.0), fit(None, 0.53, drift=0.001)) == "failed"
    better, fitting = fit(None, 0.9, drift=1.9), fit(None, 0.5, drift=0.001)
    trials = [VariantTrial(OTHER, "--set data.x=1", better), VariantTrial("third", "--set data.x=2", fitting)]
    found = judge_assumption("pictures", "bilinear", fit(None, 0.45, drift=2.0), trials)
    assert found.word == "failed" and "data.x=2" in found.remedy  # the first layer tells what the neighbors cannot


def test_a_head_that_answers_more_right_always_decides() -> None:
    assert judge(fit(0.8, 0.8), fit(0.9, 0.8)) == "failed"
    assert judge(fit(0.9, 0.8, drift=0.01), fit(0.97, 0.6, drift=0.01)) == "failed"
