"""Relearning: the original is untouched, the steps equal a reference implementation, and a figure shows the curves."""

import json

import numpy as np
import pytest
import torch

import efface
from efface import stats
from efface.auditing import signals
from efface.auditing.audits import AUDITS
from efface.auditing.audits.relearn import Relearn, RelearnCurve
from efface.auditing.evidence import Evidence, RelearnedCopies
from efface.auditing.observers.relearn import RelearnPart, RelearnSettings, relearn_model
from efface.errors import EffaceError
from efface.reporting.figures import curves
from efface.training.optim import Optim, Schedule
from tests import tiny
from tests.reference import relearn as reference
from tests.worlds import World, by_name

WATCH = efface.ObservationSettings(views=3, gradient=False)


@pytest.fixture(scope="module")
def world():
    x, y = tiny.images(200, seed=4)
    data = efface.Data.from_arrays(x, y, classes=("a", "b", "c"), name="tiny")
    split = efface.split(data, forget="@random:20", seed=0, train=80, valid=30, holdout=50, test=30)
    return data, split, efface.pretrain(data, split, recipe=tiny.recipe("moco"), device="cpu")


@pytest.mark.parametrize("on", list(RelearnPart))
def test_the_model_is_left_bit_identical_and_the_same_seed_gives_the_same_snapshots(world, on):
    data, split, start = world
    start.model.train()
    modes = [module.training for module in start.model.modules()]
    digest, state = start.model.digest(), torch.get_rng_state()
    asked = RelearnSettings(on=on, steps=4, every=2, batch_size=16)
    one, other = (relearn_model(start, data, split, asked, WATCH, seed=3) for _ in range(2))
    assert start.model.digest() == digest and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in start.model.modules()] == modes
    assert [step for step, _ in one] == [0, 2, 4]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
    first, last = one[0][1], one[-1][1]
    assert first.model == digest and last.model != digest
    assert {name.split("/")[0] for name in first.arrays} == {"forget", "holdout"}
    whole = efface.observe(start, data, split, WATCH, device="cpu")
    assert all(np.array_equal(first.arrays[name], whole.arrays[name]) for name in first.arrays)


def test_what_it_is_trained_on_is_what_was_asked(world):
    data, split, start = world
    optim = Optim(lr=0.05, schedule=Schedule.CONSTANT)
    ends = {}
    for on in RelearnPart:
        snapshots = relearn_model(start, data, split, RelearnSettings(on=on, steps=3, every=3, optim=optim), WATCH)
        ends[on] = snapshots[-1][1].model
    assert ends[RelearnPart.RETAIN] != ends[RelearnPart.FORGET]
    blank = data.x.copy()
    blank[split.forget] = 0
    changed = efface.Data.from_arrays(blank, data.y, keys=data.keys, classes=("a", "b", "c"), name="tiny")
    asked = RelearnSettings(steps=3, every=3, optim=optim)
    assert relearn_model(start, changed, split, asked, WATCH)[-1][1].model == ends[RelearnPart.RETAIN]


def test_steps_that_cannot_be_are_refused(world):
    data, split, start = world
    for steps, every in ((0, 1), (10, 0), (5, 10)):
        with pytest.raises(EffaceError, match="cannot be"):
            RelearnSettings(steps=steps, every=every)
    nobody = efface.Split(retain=split.train, valid=split.valid, holdout=split.holdout, test=split.test)
    with pytest.raises(EffaceError, match="nothing to relearn on"):
        relearn_model(start, data, nobody, RelearnSettings(on=RelearnPart.FORGET), WATCH)


@pytest.mark.parametrize(
    ("original", "aucs"),
    [(0.8, [0.5, 0.55, 0.66, 0.7]), (0.8, [0.5, 0.5]), (0.52, [0.5, 0.9]), (0.7, [0.6, 0.64, 0.65]), (0.5, [0.6, 0.7])],
)
def test_the_steps_equal_the_reference_implementation(original, aucs):
    steps = tuple(10 * i for i in range(len(aucs)))
    expected = reference.returned(original, list(zip(steps, aucs, strict=True)), 0.05)
    assert RelearnCurve(steps, tuple(aucs), original).returned(0.05) == expected


def evidence(gains, oracles=2):
    """A subject whose forget gain follows ``gains``, and oracles that never regain anything."""
    w = World(0, hardness=0.3, forget=300, holdout=400)
    original = w.original()
    snapshots = tuple((10 * i, w.model(f"u{i}", {"retain": 1.0, "forget": g})) for i, g in enumerate(gains))
    named = {f"oracle {i + 1}": tuple((s, w.oracle(f"{i}-{s}")) for s, _ in snapshots) for i in range(oracles)}
    references = tuple(found[0][1] for found in named.values())
    return Evidence(
        original, snapshots[0][1], references, relearned=(RelearnedCopies("retain", {"subject": snapshots, **named}),)
    )


@pytest.mark.parametrize("oracles", [0, 1, 2])
def test_a_signal_that_returns_on_retained_examples_shows(oracles):
    whole = evidence((0.0, 0.2, 0.6, 1.0), oracles)
    found = by_name(AUDITS["relearn"]().findings(whole))
    steps = found["relearn.retain.backbone.margin.steps"]
    assert steps.value == 20 and steps.oracle is None
    assert "subject lost" in steps.note and steps.note.count("never") == oracles
    assert found["relearn.retain.backbone.margin.regained"].value > 0.1
    json.dumps(steps.details)
    curve = steps.details["curves"]["subject"]
    last = whole.relearned[0].snapshots["subject"][-1][1]
    if oracles < 2:
        sides = [signals.scores(last, part, "backbone.margin").tolist() for part in ("forget", "holdout")]
        assert curve["auc"][-1] == pytest.approx(reference.auc(*sides))
    else:
        parts = [
            signals.calibrated_scores(last, whole.oracles, part, "backbone.margin") for part in ("forget", "holdout")
        ]
        assert curve["auc"][-1] == pytest.approx(stats.auc(*parts))


def test_the_figure_shows_every_curve_once():
    drawn = curves.draw_relearning(AUDITS["relearn"]().findings(evidence((0.0, 0.5, 1.0))))
    assert drawn is not None and len(drawn.plots) == 2
    for plot in drawn.plots:
        assert str(plot.svg).count('class="line oracle"') == 2 and str(plot.svg).count('class="line subject"') == 1
        assert "subject 0." in plot.note
    assert curves.draw_relearning([]) is None


def test_nothing_lost_is_nothing_regained_and_no_snapshots_no_findings():
    found = by_name(Relearn().findings(evidence((1.0, 1.0))))
    steps = found["relearn.retain.backbone.margin.steps"]
    assert steps.value is None and "nothing to regain" in steps.note
    plain = evidence((0.0,))
    assert Relearn().findings(Evidence(plain.original, plain.subject, plain.oracles)) == []


def test_the_looser_the_threshold_of_loss_the_fewer_have_steps():
    whole = evidence((0.0, 1.0))
    assert by_name(Relearn(least=0.9).findings(whole))["relearn.retain.backbone.margin.steps"].value is None
