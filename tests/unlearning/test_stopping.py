"""Early stopping: checks against their reference implementation, when to stop, which state is returned."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from efface import api, stats
from efface.data.dataset import Data
from efface.data.split import Split, partition, select_forget_set, select_matched_valid
from efface.errors import DivergenceError, EffaceError
from efface.training import history
from efface.training.checkpoint import Checkpoint
from efface.training.history import StoppingResult, StopReason
from efface.training.loop import Run
from efface.unlearning import early_stopping
from efface.unlearning.early_stopping import StoppingMonitor, StoppingRule, StopUnlearning
from efface.unlearning.margins import OUTPUT
from tests import tiny
from tests.commands import JUDGED, call
from tests.reference import stopping as reference

CUTS = {"forget": (0, 12), "retain": (12, 40), "valid": (40, 60)}
SPACES = early_stopping.SPACES


def parts(augment=tiny.blurred):
    return tiny.parts(*tiny.images(60, seed=1), CUTS, augment)


@pytest.mark.parametrize("name", ["simclr", "moco", "clip"])
def test_scores_match_the_reference_implementation_in_both_spaces(name):
    model, served, run = tiny.recipe(name).start(0).eval(), parts(), Run(seed=3)
    found = early_stopping.compute_margin_scores(model, served, StoppingRule(views=4, tau=0.3), run)
    order = ("forget", "retain", "valid")
    with torch.no_grad():
        inner, outer = [], []
        for number in range(4):
            seen = [
                model.features(served[part].batch(served[part].ids, run.rng(f"stop {part}")).view(number))
                for part in order
            ]
            inner.append(torch.cat(seen).double().tolist())
            outer.append(torch.cat([model.project(rows) for rows in seen]).double().tolist())
        captions = None
        if name == "clip":  # what is learned of an example is which caption goes with it
            texts = [text for part in order for text in served[part].batch(served[part].ids, run.rng("any")).captions()]
            captions = model.encode_text(texts).double().tolist()
    for space, views in zip(SPACES, (inner, outer), strict=True):
        together = [value for part in order for value in found[part][space]]
        paired = captions if space == OUTPUT else None
        expected, wrong = (reference.scores(views, bank, 0.3, paired) for bank in (20, 60))
        assert together == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert together != pytest.approx(wrong, rel=1e-4, abs=1e-5)


def test_every_check_uses_the_same_views():
    model, served, run = tiny.recipe().start(0), parts(), Run(seed=3)
    first, second = (early_stopping.compute_margin_scores(model, served, StoppingRule(), run) for _ in range(2))
    assert all((first[part][space] == second[part][space]).all() for part in served for space in SPACES)
    other = early_stopping.compute_margin_scores(model, served, StoppingRule(), Run(seed=4))
    assert (first["forget"]["output"] != other["forget"]["output"]).any()


# ---- many checks ----


def test_all_checks_together_spend_no_more_than_alpha():
    spent = [early_stopping.alpha_at_check(number, 0.05) for number in range(1, 10_000)]
    assert sum(spent) < 0.05 and sum(spent) == pytest.approx(0.05, rel=1e-3) and spent[0] == 0.025
    assert all(a > b for a, b in pairwise(spent))


def test_many_checks_do_not_raise_the_error_rate():
    """Planted: the same level at each check. There is no difference to find, and there are 16 checks of noise."""
    rng = np.random.default_rng(0)

    def missed(levels: list[float]) -> float:
        wrong = 0
        for _ in range(150):
            found = [stats.delong(rng.normal(size=50), rng.normal(size=60), level) for level in levels]
            wrong += any(not low <= 0.5 <= high for _, low, high in found)
        return wrong / 150

    assert missed([1 - early_stopping.alpha_at_check(number, 0.05) for number in range(1, 17)]) <= 0.09
    assert missed([0.95] * 16) > 0.3


# ---- what checks lead to ----


def scripted(monkeypatch, forgotten, retained, *, stop=None):
    """A monitor whose k-th check sees about these AUCs; the state at each check is its number in one weight."""
    n, numbers = 400, iter(range(len(forgotten)))
    grid = (np.arange(n) + 0.5) / n

    def scripted_scores(*_):
        number = next(numbers)
        scores = {"valid": grid, "forget": grid + (forgotten[number] - 0.5), "retain": grid + (retained[number] - 0.5)}
        return {part: dict.fromkeys(SPACES, values) for part, values in scores.items()}

    monkeypatch.setattr(early_stopping, "compute_margin_scores", scripted_scores)
    model, run = tiny.linear_softmax(), Run()
    monitor = StoppingMonitor(stop or StoppingRule(), model, parts(), run)
    optimizer = dataclasses.make_dataclass("Steps", [("taken", int), ("steps", int)])
    for number in range(1, len(forgotten)):
        run.training_cost.steps += 10
        next(model.parameters()).data.fill_(number)
        try:
            monitor.on_step_end(model, optimizer(number, stop.looks if stop else 16))
        except StopUnlearning:
            break
    model, stopped = monitor.restore_best(model)
    return float(next(model.parameters()).detach().ravel()[0]), stopped, monitor


def test_the_nearest_state_is_returned_and_not_the_last(monkeypatch):
    state, stopped, _ = scripted(
        monkeypatch, [0.7, 0.6, 0.52, 0.58, 0.60], [0.7] * 5, stop=StoppingRule(looks=4, delta=0.01)
    )
    assert (state, stopped.step, stopped.taken, stopped.reason) == (2, 20, 40, StopReason.ENDED)
    assert stopped.distance == min(check.distance for check in stopped.looks[1:])


def test_it_stops_when_the_forgotten_are_shown_to_be_like_the_unseen(monkeypatch):
    state, stopped, _ = scripted(monkeypatch, [0.7, 0.6, 0.505, 0.9], [0.7] * 4, stop=StoppingRule(delta=0.1))
    assert (state, stopped.reason, stopped.reached) == (2, StopReason.MATCHED, True)


def test_no_longer_standing_out_ends_nothing_while_the_schedule_runs(monkeypatch):
    """In the middle of a schedule all margins are low for a while."""
    state, stopped, _ = scripted(
        monkeypatch, [0.7, 0.49, 0.505, 0.51], [0.7, 0.5, 0.69, 0.7], stop=StoppingRule(delta=0.1)
    )
    assert (stopped.reason, stopped.taken, state) == (StopReason.MATCHED, 20, 2)


def test_an_end_at_the_first_crossing_is_seen(monkeypatch):
    """Planted: it stops as soon as F does not stand out above V, whatever became of R."""

    def first_crossing(monitor, check):
        return StopReason.MATCHED if all(auc <= 0.5 for auc, _, _ in check.forget.values()) else None

    monkeypatch.setattr(StoppingMonitor, "verdict", first_crossing)
    with pytest.raises(AssertionError):
        test_no_longer_standing_out_ends_nothing_while_the_schedule_runs(monkeypatch)


def test_it_stops_when_they_stand_out_below_and_returns_the_state_before(monkeypatch):
    state, stopped, _ = scripted(monkeypatch, [0.7, 0.55, 0.2, 0.1], [0.7] * 4)
    assert (stopped.reason, stopped.taken, state) == (StopReason.OVER, 20, 1)


def test_a_model_that_forgot_everything_has_not_reached_the_goal(monkeypatch):
    state, stopped, _ = scripted(monkeypatch, [0.75, 0.6, 0.5], [0.75, 0.74, 0.5])
    assert state == 1 and not stopped.reached
    assert stopped.looks[2].distance > 0.2 > stopped.looks[1].distance
    assert "not reached" in history.describe_stopping(stopped)


def test_a_distance_without_the_retained_examples_is_seen(monkeypatch):
    """Planted: R always looks as before, so that the collapsed state is the best."""
    monkeypatch.setattr(early_stopping.stats, "auc", lambda *_: 0.75)
    with pytest.raises(AssertionError):
        test_a_model_that_forgot_everything_has_not_reached_the_goal(monkeypatch)


def test_if_nothing_stands_out_at_the_start_it_says_that_it_cannot_guide(monkeypatch):
    state, stopped, _ = scripted(monkeypatch, [0.5, 0.2, 0.1], [0.7] * 3)
    assert (state, stopped.reason, stopped.reached, len(stopped.looks)) == (2, StopReason.BLIND, False, 1)
    assert "could not tell when to stop" in history.describe_stopping(stopped)


def test_distance_matches_the_reference_implementation(monkeypatch):
    found = scripted(monkeypatch, [0.7, 0.62, 0.56], [0.72, 0.71, 0.60])[1]
    for check in found.looks:
        a, r, r0 = ([values[s] for s in SPACES] for values in (check.forget, check.retain, found.looks[0].retain))
        assert check.distance == pytest.approx(reference.distance([one[0] for one in a], r, r0))


def test_a_budget_stops_it(monkeypatch):
    _, stopped, _ = scripted(monkeypatch, [0.7, 0.65, 0.6, 0.55], [0.7] * 4, stop=StoppingRule(looks=100, steps=20))
    assert (stopped.reason, stopped.taken) == (StopReason.BUDGET, 20)


# ---- on real models ----


@pytest.fixture(scope="module")
def world():
    """An over-fitted tiny encoder, its data and a split with a fifth to forget."""
    data = Data.from_arrays(*tiny.images(240, seed=2))
    split = select_forget_set(partition(data, train=80, valid=60, holdout=60, test=40, seed=0), data, "@random:0.3", 0)
    recipe = tiny.recipe(epochs=60, batch_size=40)
    return api.pretrain(data, split, recipe=recipe, device="cpu"), data, split


def test_the_checks_and_the_method_get_different_halves_and_never_the_holdout(world, monkeypatch):
    start, data, split = world
    seen, monitor_class = {}, early_stopping.StoppingMonitor

    def record_monitor(stop, model, parts, run):
        seen["checks"] = set(parts["valid"].ids.tolist())
        return monitor_class(stop, model, parts, run)

    def record_inputs(method, start, data, split, device):
        seen["method"] = set(split.valid.tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(early_stopping, "StoppingMonitor", record_monitor)
    monkeypatch.setattr(early_stopping, "build_inputs", record_inputs)
    for method, shared in (("margin_matching", False), ("finetune", True)):
        with pytest.raises(KeyboardInterrupt):
            api.unlearn(start, data, split, method, device="cpu", stop=StoppingRule())
        assert (seen["checks"] & seen["method"] != set()) == shared
        assert seen["checks"] | seen["method"] == set(split.valid.tolist())
        assert not seen["checks"] & {*split.holdout.tolist(), *split.test.tolist(), *split.train.tolist()}


def test_the_unseen_are_of_the_forgotten_kind():
    data = Data.from_arrays(*tiny.images(240, seed=2))
    split = select_forget_set(partition(data, train=80, valid=60, holdout=60, test=40, seed=0), data, "@class:1", 0)
    assert set(data.y[select_matched_valid(split, data)]) == {1}


def test_the_result_is_saved_with_the_checkpoint(world, tmp_path):
    start, data, split = world
    lines: list[dict] = []
    made = api.unlearn(
        start, data, split, "gradient_ascent", device="cpu", stop={"looks": 4, "cap": 30}, epochs=2, log=lines.append
    )
    assert isinstance(made.stopped, StoppingResult) and made.method is not None
    assert made.method["stop"]["looks"] == 4  # so that a pair of models is unlearned with the same checks
    made.save(tmp_path)
    assert Checkpoint.load(tmp_path).stopped == made.stopped
    assert sum(line["phase"] == "look" for line in lines) == len(made.stopped.looks)
    assert "stop" not in api.unlearn(start, data, split, "finetune", device="cpu", epochs=1).method


def test_a_method_without_steps_is_checked_once_more(world):
    start, data, split = world
    made = api.unlearn(start, data, split, "ssd", device="cpu", stop=StoppingRule())
    assert made.stopped is not None and made.stopped.reason in (StopReason.ENDED, StopReason.BLIND)


def test_retraining_cannot_be_stopped_early(world):
    start, data, split = world
    with pytest.raises(EffaceError, match="Retraining starts from nothing"):
        api.unlearn(start, data, split, "retrain", device="cpu", stop=StoppingRule())


@pytest.mark.parametrize("checked", [True, False])
def test_a_loss_that_diverges_returns_the_best_state_before_it_or_is_an_error(world, monkeypatch, checked):
    start, data, split = world

    def broken(monitor, model, optimizer):
        if checked:
            monitor.evaluate(model)
        raise DivergenceError({"task": math.nan}, 1)

    monkeypatch.setattr(StoppingMonitor, "on_step_end", broken)
    monkeypatch.setattr(StoppingMonitor, "verdict", lambda *_: None)
    if not checked:
        with pytest.raises(DivergenceError):
            api.unlearn(start, data, split, "finetune", device="cpu", stop=StoppingRule())
        return
    made = api.unlearn(start, data, split, "finetune", device="cpu", stop=StoppingRule())
    assert made.stopped is not None and made.stopped.reason in (StopReason.DIVERGED, StopReason.BLIND)
    assert made.stopped.step == 1


def test_too_few_unseen_examples_are_an_error(world):
    start, data, split = world
    poor = Split(**{**{f.name: getattr(split, f.name) for f in dataclasses.fields(split)}, "valid": split.valid[:1]})
    with pytest.raises(EffaceError, match="too few of: valid"):
        api.unlearn(start, data, poor, "finetune", device="cpu", stop=StoppingRule())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"looks": 0}, "looks' cannot be 0.*at least 1"),
        ({"views": 3}, "3 views"),
        ({"delta": 0.6}, "delta' cannot be 0.6.*below 0.5"),
        ({"alpha": 0}, "alpha' cannot be 0.*above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(EffaceError, match=message):
        StoppingRule(**settings)


def test_from_the_command_line_to_the_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["split.train=60", "split.valid=60", "split.holdout=60", "split.test=30", "recipe.epochs=30"]
    small += [
        "recipe.batch_size=30",
        "recipe.backbone.name=resnet8",
        "recipe.backbone.width=4",
        "recipe.objective.dim=8",
    ]
    words = ["pretrain", "--data", "digits", "--out", "o", "--quiet"]
    assert call(*words, *(word for setting in small for word in ("--set", setting))) == 0
    unlearn = ["unlearn", "o", "--forget", "@random:0.4", "--method", "neggrad", "--stop", "--out", "u", "--json"]
    assert call(*unlearn, "--set", "stop.looks=4", "--set", "method.epochs=2", "--quiet") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stopped"]["unseen"] == 60 and printed["method"]["stop"]["looks"] == 4
    assert call("audit", "u", "--quiet", "--set", "watch.views=2") in JUDGED
    page = (tmp_path / "u" / "report.html").read_text(encoding="utf-8")
    meta = json.loads((tmp_path / "u" / "meta.json").read_text(encoding="utf-8"))
    assert history.describe_stopping(history.from_dict(StoppingResult, meta["stopped"])) in page
    record = json.loads((tmp_path / "u" / "record.json").read_text(encoding="utf-8"))
    assert record["checkpoints"]["subject"]["stopped"] == meta["stopped"]
