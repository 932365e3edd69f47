"""The search over methods: order and strength of trials, the budget, and the result if none reached the goal."""

from __future__ import annotations

import dataclasses

import pytest

from efface import api
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.errors import DivergenceError, EffaceError
from efface.training import history
from efface.training.checkpoint import Checkpoint
from efface.training.history import SearchHistory, StoppingCheck, StoppingResult, StopReason
from efface.training.loop import Run
from efface.unlearning import search
from efface.unlearning.early_stopping import StoppingRule
from tests import tiny


@pytest.fixture(scope="module")
def world():
    """An encoder that was not trained, its data and split; 200 steps of retraining in 100 epochs."""
    data = Data.from_arrays(*tiny.images(240, seed=2))
    split = select_forget_set(partition(data, train=80, valid=60, holdout=60, test=40, seed=0), data, "@random:0.5", 0)
    recipe = tiny.recipe(epochs=100, batch_size=20)
    return Checkpoint(recipe.start(0), recipe), data, split


def ended(reason: StopReason, distance: float, reached: bool = False, taken: int = 10) -> StoppingResult:
    """The result of a trial; a blind one has a single check."""
    start = StoppingCheck(0, {"backbone": (0.7, 0.6, 0.8)}, {"backbone": 0.7}, 0.2)
    found = (
        ()
        if reason is StopReason.BLIND
        else (StoppingCheck(taken, {"backbone": (0.6, 0.5, 0.7)}, {"backbone": 0.7}, distance),)
    )
    return StoppingResult(reason, reached, taken, taken, 30, 0.05, (start, *found))


def search_with(monkeypatch, world, budget, answers):
    """Search with trials that end as ``answers`` say; the result, and (method, rate, budget, epochs) of each trial."""
    start, data, split = world
    tried, left = [], iter(answers)

    def fake_unlearn(stop, method, start, data, split, run, *, halve):
        tried.append((type(method).__name__, method.optim.lr, stop.steps, method.epochs))
        answer = next(left)
        run.training_cost.steps += 10 if answer is None else answer.taken
        if answer is None:
            raise DivergenceError({"task": float("nan")}, 10)
        return start.model, answer

    monkeypatch.setattr(search, "unlearn_with_early_stopping", fake_unlearn)
    return search.search_methods(start, data, split, budget, StoppingRule(), Run()), tried


def test_the_first_that_reaches_the_goal_is_taken_and_no_other_is_tried(monkeypatch, world):
    found, tried = search_with(monkeypatch, world, 400, [ended(StopReason.MATCHED, 0.02, True)])
    assert [name for name, *_ in tried] == ["MarginMatching"]
    assert found.search.reached_goal and found.search.chosen == 0 and found.training_cost.steps == 10
    assert (
        history.describe_search(found.search)
        == "margin_matching met the bar on unseen examples (one trial, 10 of at most 400 steps)."
    )


@pytest.mark.parametrize(
    ("kind", "count", "first"),
    [
        ("class", None, "AlignmentCalibration"),
        ("group", None, "AlignmentCalibration"),
        ("group", 1, "MarginMatching"),
        ("listed", None, "MarginMatching"),
        ("memorized", None, "MarginMatching"),
    ],
)
def test_if_a_class_or_a_large_group_is_forgotten_alignment_calibration_comes_first(
    kind, count, first, monkeypatch, world
):
    """Planted: a list of ids, whose holdout is matched by class as well; a person's single picture."""
    start, data, split = world
    provenance = split.provenance | {"matched": "class", "resolved": {"kind": kind, "names": {"a": 1}}}
    asked = dataclasses.replace(split, forget=split.forget[:count], provenance=provenance)
    _, tried = search_with(monkeypatch, (start, data, asked), 400, [ended(StopReason.MATCHED, 0.02, True)])
    assert [name for name, *_ in tried] == [first]


def test_too_far_is_tried_again_at_half_the_rate_and_too_little_at_twice(monkeypatch, world):
    answers = [
        ended(StopReason.OVER, 0.1),
        ended(StopReason.OVER, 0.1),
        ended(StopReason.ENDED, 0.1),
        ended(StopReason.MATCHED, 0, True),
    ]
    found, tried = search_with(monkeypatch, world, 400, answers)
    names, rates = [name for name, *_ in tried], [rate for _, rate, *_ in tried]
    assert names == ["MarginMatching"] * 2 + ["AlignmentCalibration"] * 2
    assert rates[1] == rates[0] / 2 and rates[3] == rates[2] * 2
    assert found.search.chosen == 3


def test_if_nothing_reaches_the_goal_the_nearest_is_returned_and_that_is_said(monkeypatch, world):
    answers = [ended(StopReason.ENDED, d) for d in (0.12, 0.11, 0.07, 0.09, *[0.2] * 6)]
    found, tried = search_with(monkeypatch, world, 400, answers)
    assert len(tried) == 10 and tried[-1][0] == "Finetune"
    assert found.search.chosen == 2 and not found.search.reached_goal
    assert history.describe_search(found.search).startswith(
        "Nothing met the bar on unseen examples within 100 of at most 400 steps"
    )


def test_a_trial_that_reached_the_goal_wins_over_a_nearer_one_that_did_not():
    trials = [
        history.Trial({"name": str(i)}, one)
        for i, one in enumerate([ended(StopReason.ENDED, 0.01), ended(StopReason.OVER, 0.04, True)])
    ]
    assert history.find_best_trial(trials) == 1


def test_all_trials_together_stay_within_the_budget(monkeypatch, world):
    answers = [
        ended(StopReason.ENDED, 0.1, taken=40),
        ended(StopReason.ENDED, 0.1, taken=17),
        ended(StopReason.ENDED, 0.1),
    ]
    found, tried = search_with(monkeypatch, world, 60, answers)
    assert [steps for *_, steps, _ in tried] == [60, 20] and found.search.taken == 57
    assert [epochs for *_, epochs in tried] == [30, 10]  # two steps per pass: schedules are completed


def test_a_trial_that_diverges_is_counted_and_skipped(monkeypatch, world):
    found, tried = search_with(monkeypatch, world, 400, [None, ended(StopReason.MATCHED, 0.0, True)])
    assert found.training_cost.steps == 20 and found.search.trials[0].stopped.reached
    assert [name for name, *_ in tried] == ["MarginMatching"] * 2 and tried[1][1] == tried[0][1] / 2


def test_if_checks_have_nothing_to_measure_the_first_runs_unguided_and_that_is_said(monkeypatch, world):
    found, tried = search_with(monkeypatch, world, 400, [ended(StopReason.BLIND, 0.0)])
    assert len(tried) == 1 and not found.search.reached_goal
    assert "Nothing could be chosen by unseen examples" in history.describe_search(found.search)
    assert history.describe_trial(1, found.search.trials[0]).endswith("unguided")


def test_what_does_not_fit_the_checkpoint_is_not_tried(monkeypatch, world):
    _start, data, split = world
    recipe = dataclasses.replace(tiny.recipe("cross_entropy"), epochs=100, batch_size=20)
    classifier = Checkpoint(recipe.start(0), recipe)
    _, tried = search_with(monkeypatch, (classifier, data, split), 400, [ended(StopReason.ENDED, 0.1)] * 20)
    assert "AlignmentCalibration" not in [name for name, *_ in tried]


@pytest.mark.parametrize(("budget", "steps"), [("5%", 10), ("12.5 %", 25), ("40", 40), (30, 30), (None, 40)], ids=str)
def test_budgets(world, budget, steps):
    start, _, split = world
    assert search.count_retraining_steps(start, split) == 200
    assert search.resolve_budget(budget, start, split) == steps


@pytest.mark.parametrize("budget", ["much", "-5%", "0", "0.5", "nan", "inf", "0%", "5 percent"])
def test_impossible_budgets_are_refused(world, budget):
    start, _, split = world
    with pytest.raises(EffaceError, match="is not a number of steps"):
        search.resolve_budget(budget, start, split)


def test_a_share_of_an_unknown_training_is_an_error(world):
    start, _, split = world
    foreign = dataclasses.replace(start, trained=False)
    for budget in (None, "5%"):
        with pytest.raises(EffaceError, match="nothing says how this checkpoint was trained"):
            search.resolve_budget(budget, foreign, split)
    assert search.resolve_budget("40", foreign, split) == 40


def test_settings_together_with_auto_are_an_error(world):
    start, data, split = world
    with pytest.raises(EffaceError, match=r"chooses the settings itself.*hold"):
        api.unlearn(start, data, split, "auto", device="cpu", hold=1.0)


def test_end_to_end_the_result_says_what_was_tried(tmp_path):
    data = Data.from_arrays(*tiny.images(240, seed=2))
    split = select_forget_set(partition(data, train=80, valid=60, holdout=60, test=40, seed=0), data, "@random:0.3", 0)
    start = api.pretrain(data, split, recipe=tiny.recipe(epochs=60, batch_size=40), device="cpu")
    lines: list[dict] = []
    made = api.unlearn(start, data, split, "auto", device="cpu", budget=16, log=lines.append)
    assert isinstance(made.search, SearchHistory) and made.method is not None
    assert made.training_cost.steps == made.search.taken <= 16
    assert made.search.trials[made.search.chosen].stopped == made.stopped
    assert made.method["name"] == made.search.trials[made.search.chosen].method["name"]
    assert {line["trial"] for line in lines} == set(range(1, len(made.search.trials) + 1))
    made.save(tmp_path)
    assert Checkpoint.load(tmp_path).search == made.search
