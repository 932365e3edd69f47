"""The line search: the share against trying all of them; what is measured; what is scaled and what stays."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from efface.training.loop import Run, frozen_copy
from efface.training.objectives import OBJECTIVES
from efface.unlearning.line_search import (
    HEAD_SHARES,
    MeasuredRows,
    find_head_share,
    find_share,
    search_head,
    take_share,
)
from efface.unlearning.margins import Embeddings
from efface.unlearning.methods import MarginMatching, ReferenceMatching
from tests import tiny
from tests.reference import line_search as reference
from tests.unlearning.test_reference_matching import targets_for

CUTS = {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)}
SPACES = ("backbone", "output")


def parts(cuts=CUTS):
    x, y = tiny.images(96, seed=1)
    return tiny.parts(x, y, cuts, tiny.blurred)


@pytest.mark.parametrize(
    ("before", "after"),
    [((0.2, 0.5), (0.1, 0.12)), ((0.2, 0.5), (-0.05, -0.2)), ((0.1, 0.1), (0.3, -0.4)), ((0.5, 0.5), (0.4, 0.45))],
)
@pytest.mark.parametrize("luck", [0.0, 0.011, 1.0])
def test_the_share_is_the_best_of_all_that_are_tried(before, after, luck):
    found = find_share(*(dict(zip(SPACES, given, strict=True)) for given in (before, after, (1.0, 4.0))), luck)
    assert found == pytest.approx(reference.best_share(before, after, (1.0, 4.0), luck), abs=1e-4)


def test_one_example_by_itself_says_little_and_a_change_of_nothing_says_nothing():
    """Planted: a share by the distance alone, which would move an example to the mean of all unseen ones."""
    before, after, weights = {"output": 0.5}, {"output": 0.25}, {"output": 4.0}
    assert find_share(before, after, weights, 1 / 1000 + 1 / 1000) > 1.45
    assert find_share(before, after, weights, 1 / 1 + 1 / 1000) == pytest.approx(1.0588, abs=1e-4)
    assert find_share(before, before, weights, 0.0) == 1.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_weights_and_statistics_are_scaled_and_a_queue_stays(name):
    start, model = (tiny.recipe(name).start(seed) for seed in (1, 0))
    for number, one in enumerate((start, model)):
        one.train()
        one.objective.loss(one, parts()["retain"].batch(torch.arange(12, 40), torch.Generator().manual_seed(number)))
    first, last = (copy.deepcopy(dict(one.state_dict())) for one in (start, model))
    take_share(model, start, 0.7)
    scaled = 0
    for key, value in model.state_dict().items():
        if key == "queue" or not value.is_floating_point():
            assert torch.equal(value, last[key])
            continue
        expected = [
            reference.between(a, b, 0.7)
            for a, b in zip(first[key].flatten().tolist(), last[key].flatten().tolist(), strict=True)
        ]
        assert value.flatten().tolist() == pytest.approx(expected, abs=1e-5), key
        scaled += 1
    assert scaled == sum(value.is_floating_point() for key, value in last.items() if key != "queue")


def test_a_variance_stays_above_zero_where_the_change_is_gone_beyond():
    """Planted: a variance that fell to a tenth, so that half as far again is below 0."""
    start, model = (tiny.recipe("simclr").start(0) for _ in range(2))
    norms = [[one for one in net.modules() if isinstance(one, torch.nn.BatchNorm2d)] for net in (start, model)]
    for old, new in zip(*norms, strict=True):
        old.running_var.fill_(1.0)
        new.running_var.fill_(0.1)
    take_share(model, start, 1.5)
    assert all(one.running_var.min() == pytest.approx(0.05) for one in norms[1])


def test_both_models_see_the_same_views_of_all_examples():
    found = parts()
    model = tiny.recipe("simclr").start(0).eval()
    rows = MeasuredRows(found["forget"], found["valid"], Run(seed=3))
    first, second = (rows.margins(shown, 0.1) for shown in rows.embed(model, frozen_copy(model)))
    (again,) = (rows.margins(shown, 0.1) for shown in rows.embed(model))
    assert sorted(rows.ids.unique().tolist()) == list(range(12)) and len(rows.ids) == 200 and len(rows) == 220
    for space in SPACES:
        f, v = first[space]
        for others in (second, again):
            assert torch.equal(f, others[space][0]) and torch.equal(v, others[space][1])
        assert len(f) == 200 and len(v) == 20


@pytest.mark.parametrize(("many", "rows"), [(1, 200), (3, 200), (40, 400)])
def test_few_examples_are_shown_in_more_views(many, rows):
    found = parts({"forget": (0, many), "retain": (40, 60), "valid": (60, 80)})
    model = tiny.recipe("simclr").start(0).eval()
    measured = MeasuredRows(found["forget"], found["valid"], Run(seed=3))
    (shown,) = measured.embed(model)
    f, _ = measured.margins(shown, 0.1)["output"]
    assert len(f) == rows
    assert f.std() > 0, "all views of an example would be one"


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((0.5, 0.3, 0.1, -0.1, -0.3), 1.125),
        ((0.5, 0.4, 0.35, 0.3, 0.2), 1.5),
        ((-0.2, -0.3, -0.4, -0.5, -0.6), 0.5),
        ((0.1, -0.1, -0.2, -0.1, 0.1), 0.625),
        ((0.2, 0.2, 0.2, 0.2, 0.2), 1.0),
        ((0.0, 0.2, 0.3, 0.0, -0.3), 1.25),
        ((0.2, -0.1, 0.1, 0.2, 0.3), 0.875),
    ],
)
def test_the_share_of_the_head_is_where_the_distance_is_closest_to_0(distances, expected):
    """Planted: the lowest distance, which would push the forgotten below the unseen."""
    found = find_head_share(HEAD_SHARES, distances)
    assert found == pytest.approx(expected, abs=1e-3)
    assert abs(reference.on_lines(found, HEAD_SHARES, distances)) == pytest.approx(
        reference.least_on_lines(HEAD_SHARES, distances), abs=1e-3
    )


def test_the_head_alone_is_moved_and_every_share_is_tried_from_the_same_ends():
    """Planted: each try starting from where the one before it ended, and statistics that are scaled twice."""
    start, end = (tiny.recipe("simclr").start(seed) for seed in (1, 0))
    for number, one in enumerate((start, end)):
        one.train()
        one.objective.loss(one, parts()["retain"].batch(torch.arange(12, 40), torch.Generator().manual_seed(number)))
    model, tried = frozen_copy(end), []

    def measure() -> float:
        tried.append(copy.deepcopy(model.head.state_dict()))
        return 1.1 - HEAD_SHARES[len(tried) - 1]

    assert search_head(model.head, start.head, end.head, measure) == pytest.approx(1.1, abs=1e-3)
    first, last = start.head.state_dict(), end.head.state_dict()
    for share, found in (*zip(HEAD_SHARES, tried, strict=True), (1.1, model.head.state_dict())):
        for name, value in found.items():
            if value.is_floating_point() and "running_var" not in name:
                expected = reference.between(first[name].double(), last[name].double(), share)
                assert torch.allclose(value.double(), expected, atol=2e-3), (share, name)
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), end.backbone.parameters(), strict=True))


def test_a_distance_is_measured_as_the_steps_see_it():
    """In expectation both are the same number; here from the same rows."""
    found = parts()
    model = tiny.recipe("simclr").start(0).eval()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        f = Embeddings.of(model, found["forget"].batch(torch.arange(12), rng))
        v = Embeddings.of(model, found["valid"].batch(torch.arange(60, 80), rng))
        margins = (f + v).margins(20, 0.1)["output"]
    shown, unseen, spread, ids = margins[:12], margins[12:], margins[12:].std(), torch.arange(12)
    gap = MarginMatching().distances(None, None)["output"]
    assert gap.measure(ids, shown, unseen, spread) == pytest.approx(float((shown.mean() - unseen.mean()) / spread))
    assert float(gap.running.total) == 0, "a measurement is no step"
    targets = targets_for(range(12), {space: torch.linspace(-1, 2, 12) for space in SPACES})
    errors = ReferenceMatching().distance("output", targets, 0.5)
    expected = [float(s - unseen.mean() - m) for s, m in zip(shown, errors.expected, strict=True)]
    assert errors.measure(ids, shown, unseen, spread) == pytest.approx(sum(expected) / 12 / float(spread), abs=1e-5)


def differences(model, start, part):
    """What a part of the model changed by, in one row."""
    pairs = zip(getattr(model, part).parameters(), getattr(start, part).parameters(), strict=True)
    return torch.cat([(a - b).flatten() for a, b in pairs])


@pytest.mark.parametrize("settings", [{}, {"output": 0.0}])
def test_a_method_takes_the_shares_of_its_change_that_it_found(settings):
    """Planted: three steps at a small rate, far too few; the search takes half as much again."""
    shares = []

    def log(record):
        if record["phase"] == "line search":
            shares.append(record["terms"])

    recipe, found = tiny.recipe("simclr", epochs=1), parts()
    base = MarginMatching(steps=3, batch_size=24, forget_batch_size=8, **settings)
    given = tiny.given(base, found, recipe)
    with_it, without = (
        dataclasses.replace(base, line_search=on).unlearn(recipe.start(0), given, Run(seed=1, log=log))
        for on in (True, False)
    )
    assert len(shares) == 1
    start = recipe.start(0)
    for part, share in (("backbone", shares[0]["share"]), ("head", shares[0]["head"])):
        taken, whole = differences(with_it, start, part), differences(without, start, part)
        assert whole.abs().max() > 0
        assert torch.allclose(taken, share * whole, atol=1e-6)
    if settings:
        assert shares[0]["head"] == shares[0]["share"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 1), ({"penalty": "hinge"}, 0), ({"backbone": 0.0, "output": 0.0}, 0), ({"line_search": False}, 0)],
)
def test_the_hinge_and_a_method_without_spaces_search_nothing(settings, expected):
    recipe, log = tiny.recipe("simclr", epochs=1), []
    method = MarginMatching(steps=1, batch_size=24, forget_batch_size=8, **settings)
    method.unlearn(recipe.start(0), tiny.given(method, parts(), recipe), Run(log=log.append))
    assert [row["phase"] for row in log].count("line search") == expected
