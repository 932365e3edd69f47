"""Averaged weights: their mean in float64, what is not averaged, and from which step on."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from efface.training.loop import Run
from efface.training.objectives import OBJECTIVES
from efface.unlearning.averaging import WeightAverage
from efface.unlearning.methods import MarginMatching
from tests import tiny


def parts():
    x, y = tiny.images(96, seed=1)
    return tiny.parts(x, y, {"forget": (0, 12), "retain": (12, 60), "valid": (60, 80)}, tiny.blurred)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_mean_is_that_of_all_states_that_were_added_and_a_queue_stays(name):
    """Planted: a decay that weighs the last state most; a queue of keys that is a mixture of several steps."""
    model = tiny.recipe(name).start(0)
    average, seen = WeightAverage(model), []
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.rand(value.shape, generator=rng))
        average.add()
        seen.append(copy.deepcopy(model.state_dict()))
    average.take()
    kept = {"queue", "mean", "std"}
    for key, value in model.state_dict().items():
        if key in kept or not value.is_floating_point():
            assert torch.equal(value, seen[-1][key]), key
            continue
        expected = sum(state[key].double() for state in seen) / 4
        assert torch.allclose(value.double(), expected, atol=1e-6), key


def test_nothing_added_changes_nothing():
    model = tiny.recipe("simclr").start(0)
    before = copy.deepcopy(model.state_dict())
    WeightAverage(model).take()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("share", "first"), [(0.0, 6), (0.5, 3), (0.34, 4), (0.9, 1)])
def test_a_method_averages_its_last_steps(share, first, monkeypatch):
    """Planted: an average that starts one step late, or leaves out the last state."""
    states, recipe = [], tiny.recipe("simclr", epochs=1)
    base = MarginMatching(steps=6, batch_size=24, forget_batch_size=8, line_search=False)
    given = tiny.given(base, parts(), recipe)
    original = MarginMatching.terms

    def watched(self, teacher, model, *rest):
        states.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
        return original(self, teacher, model, *rest)

    monkeypatch.setattr(MarginMatching, "terms", watched)
    last = dataclasses.replace(base, averaged=0.0).unlearn(recipe.start(0), given, Run(seed=1))
    trail = [*states, torch.cat([weight.detach().flatten() for weight in last.parameters()])]
    found = dataclasses.replace(base, averaged=share).unlearn(recipe.start(0), given, Run(seed=1))
    weights = torch.cat([weight.detach().flatten() for weight in found.parameters()])
    assert torch.allclose(weights, torch.stack(trail[first:]).mean(0), atol=1e-6)
    assert first == 6 or not torch.allclose(weights, trail[-1], atol=1e-5)


def test_the_hinge_keeps_its_last_state():
    recipe, given = tiny.recipe("simclr", epochs=1), parts()
    results = []
    for share in (0.0, 0.5):
        method = MarginMatching(steps=3, batch_size=24, forget_batch_size=8, penalty="hinge", averaged=share)
        model = method.unlearn(recipe.start(0), tiny.given(method, given, recipe), Run(seed=1))
        results.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 48])
@pytest.mark.parametrize("share", [0.0, 0.34, 0.5, 0.9, 0.99])
def test_the_checkpoint_as_received_is_never_averaged(share, steps, monkeypatch):
    """Counted: the states, and whether the first one is what the model started from."""
    seen, recipe = [], tiny.recipe("simclr", epochs=1)
    method = MarginMatching(steps=steps, averaged=share, batch_size=8, forget_batch_size=4, line_search=False)
    add = WeightAverage.add

    def watched(self):
        seen.append(torch.cat([weight.detach().flatten() for weight in self.model.parameters()]))
        add(self)

    monkeypatch.setattr(WeightAverage, "add", watched)
    model = recipe.start(0)
    before = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    method.unlearn(model, tiny.given(method, parts(), recipe), Run(seed=1))
    assert not any(torch.equal(state, before) for state in seen)
    last = round(share * steps)
    assert len(seen) == (0 if not last or steps == 1 else min(last + 1, steps))
