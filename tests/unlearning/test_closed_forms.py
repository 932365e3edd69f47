"""Methods without training (ssd, influence) against reference implementations and known answers; planted bugs."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from efface import api
from efface.data.dataset import Data
from efface.errors import EffaceError
from efface.training.batch import LossOutput
from efface.training.gradients import flatten_parts, unflatten_vector
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives import CrossEntropy
from efface.training.optim import Optim
from efface.unlearning.methods import Finetune, Influence, Ssd
from efface.unlearning.methods import ssd as module
from efface.unlearning.methods.ssd import ImportanceReference
from tests import tiny
from tests.reference import gradients as gradients_reference
from tests.reference import influence as influence_reference
from tests.reference import ssd as ssd_reference
from tests.unlearning.test_methods import CUTS, rows, unlearn, weights


@pytest.fixture
def world():
    x, y = tiny.images(48)
    return tiny.parts(x, y, CUTS), (x.reshape(48, -1) / 255.0).astype(np.float64), y


def vector(model):
    return flatten_parts(model, model.trainable_parameters()).detach().double().numpy()


# ssd


def test_ssd_on_two_weights_by_hand():
    """f = w·x, w = (2, 3); F: x = (1, 0), so I_F = (2f, 0)² = (16, 0); R: x = (0.2, 1), I_R = (1.36, 6.8)²."""
    pixels = np.array([255, 0, 51, 255], dtype=np.uint8).reshape(2, 1, 1, 2)
    parts = tiny.parts(pixels, np.array([0, 1]), {"forget": (0, 1), "retain": (1, 2)})

    def after(**fields):
        head = nn.Linear(2, 1, bias=False)
        head.weight.data = torch.tensor([[2.0, 3.0]])
        model = Model(nn.Flatten(), head, CrossEntropy(), torch.zeros(1), torch.ones(1))
        method = Ssd(loss_free=True, forget_batch_size=1, **fields)
        return method.unlearn(model, tiny.given(method, parts), Run()).head.weight[0].tolist()

    assert after(alpha=5.0) == pytest.approx([2 * 1.8496 / 16, 3.0])
    assert after(alpha=5.0, strength=3.0) == pytest.approx([2 * 3 * 1.8496 / 16, 3.0])
    assert after(alpha=5.0, strength=100.0) == pytest.approx([2.0, 3.0]), "weights never grow"
    assert after(alpha=10.0) == [2.0, 3.0]
    data = (1.8496 + 16) / 2
    assert after(alpha=1.5, against=ImportanceReference.DATA) == pytest.approx([2 * data / 16, 3.0])


@pytest.mark.parametrize("loss_free", [False, True])
def test_ssd_matches_the_reference_implementation(world, loss_free):
    """9 forgotten in groups of 5 and 4; each batch of R gives two squares, of its halves."""
    parts, _, _ = world
    fields = {"alpha": 1.2, "strength": 0.9, "loss_free": loss_free, "batch_size": 5, "forget_batch_size": 5}
    run, start = Run(seed=7), weights(tiny.linear_softmax())
    forget = rows(parts["forget"], 5, run.rng("forget"))
    whole = list(rows(parts["retain"], 10, run.rng("retain")))
    retain = [(x[part], y[part]) for x, y in whole for part in np.array_split(np.arange(len(x)), 2)]
    if loss_free:
        squares = [ssd_reference.outputs_squared(*start, [x for x, _ in groups]) for groups in (forget, retain)]
    else:
        squares = [gradients_reference.squares(*start, groups) for groups in (forget, retain)]
    before = [*start[0].ravel(), *start[1]]
    ours = vector(unlearn(Ssd(**fields), parts))

    def reference(alpha, strength):
        return ssd_reference.dampened(before, *squares, alpha, strength)

    np.testing.assert_allclose(ours, reference(1.2, 0.9), rtol=1e-3, atol=1e-6)
    assert 0.05 < np.mean(ours != np.array(before, dtype=np.float32)) < 0.95
    for bug in (reference(0.9, 1.2), ssd_reference.dampened(before, *squares[::-1], 1.2, 0.9)):
        assert not np.allclose(ours, bug, rtol=1e-3, atol=1e-6)


def test_ssd_compares_squares_that_as_many_examples_share():
    """F and R drawn alike, at a minimum: their importances agree, though one has 4 examples and the other 400."""
    x, y = tiny.images(404, seed=2)
    parts = tiny.parts(x, np.roll(y, 1) * (x[:, 0, 0, 0] > 75), {"forget": (0, 4), "retain": (4, 404)})
    tuned = Finetune(epochs=100, batch_size=400, optim=Optim(lr=0.5, weight_decay=0.0))
    model = tuned.unlearn(tiny.linear_softmax(), tiny.given(tuned, parts), Run())
    method = Ssd(batch_size=46)
    forget, others = method.importances(model, tiny.given(method, parts), Run())
    assert 0.2 < float(forget.mean() / others.mean()) < 5
    planted = next(parts["retain"].ordered_batches(400))
    slope = flatten_parts(
        model,
        torch.autograd.grad(model.objective.loss(model, planted).per_example.mean(), model.trainable_parameters()),
    )
    assert float(forget.mean() / slope.square().mean()) > 50, "planted: 4 against 400 in one square"


def test_ssd_compares_with_all_of_r_and_members_of_r_are_hardly_dampened():
    """Planted: a reference of a few rows of each batch. Four of R in F's place share its distribution."""
    x, y = tiny.images(404, seed=2)
    cuts = {"forget": (0, 4), "retain": (4, 404)}
    parts = tiny.parts(x, np.roll(y, 1) * (x[:, 0, 0, 0] > 75), cuts)
    shares = {}
    for slices in (1, 256):
        log = []
        method = Ssd(batch_size=46, slices=slices)
        method.unlearn(tiny.linear_softmax(), tiny.given(method, parts), Run(log=log.append))
        shares[slices] = log[-1]["terms"]["share"]
    assert shares[256] < 0.02 < shares[1]


def test_ssd_reads_every_example_of_r_once_and_no_more_squares_than_it_may(monkeypatch):
    x, y = tiny.images(104, seed=2)
    parts, seen = tiny.parts(x, y, {"forget": (0, 4), "retain": (4, 104)}), []
    whole = module.squared_gradients

    def counting(model, batches, values, most=None):
        shown = (seen.append(batch.ids) or batch for batch in batches)
        return whole(model, shown, values, most)

    monkeypatch.setattr(module, "squared_gradients", counting)
    for slices, expected in ((256, 100), (3, 25)):
        seen.clear()
        method = Ssd(batch_size=21, slices=slices)
        method.importances(tiny.linear_softmax(), tiny.given(method, parts), Run())
        of_retain = torch.cat(seen[1:])
        assert len(of_retain) == expected and len(of_retain.unique()) == expected


def test_ssd_against_all_data_is_the_same_as_text_and_as_an_enumeration(world):
    """Planted: text that is compared by identity with a member of an enumeration."""
    parts, _, _ = world
    digests = {unlearn(Ssd(against=value, alpha=1.2), parts).digest() for value in ("data", ImportanceReference.DATA)}
    assert len(digests) == 1 and unlearn(Ssd(alpha=1.2), parts).digest() not in digests


def test_ssd_with_an_infinite_alpha_leaves_the_model_as_it_is(world):
    parts, _, _ = world
    assert unlearn(Ssd(alpha=np.inf), parts).digest() == tiny.linear_softmax().digest()


# influence


@dataclasses.dataclass(frozen=True)
class Squared:
    """½ (f(x) - y)²: with a penalty, ridge regression."""

    needs_labels: ClassVar[bool] = True

    def loss(self, model, batch):
        return LossOutput((model(batch.view(0))[:, 0] - batch.y.float()).square() / 2)


@pytest.mark.parametrize("count", [1, 5])
def test_influence_on_ridge_regression_is_retraining(count):
    """Leave-one-out and leave-five-out, with a penalty of |R| damping; batches of R of unequal sizes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 1, 2, 2)).astype(np.uint8)
    x, y = pixels.reshape(40, 4) / 255.0, rng.integers(0, 9, 40)
    penalty = (40 - count) * 0.05
    whole, left = influence_reference.ridge(x, y, penalty), influence_reference.ridge(x[count:], y[count:], penalty)
    head = nn.Linear(4, 1, bias=False)
    parts = tiny.parts(pixels, y, {"forget": (0, count), "retain": (count, 40)})

    def after(**fields):
        head.weight.data = torch.tensor(whole[None], dtype=torch.float32)
        model = Model(nn.Flatten(), head, Squared(), torch.zeros(1), torch.ones(1))  # pyright: ignore
        method = Influence(
            **{"damping": 0.05, "batch_size": 16, "forget_batch_size": 2, "hessian_batches": 99} | fields
        )
        return method.unlearn(model, tiny.given(method, parts), Run()).head.weight[0].detach().double().numpy()

    assert np.abs(whole - left).max() > 0.01
    np.testing.assert_allclose(after(), left, atol=2e-5)
    np.testing.assert_allclose(after(scale=0.5), (whole + left) / 2, atol=2e-5)
    np.testing.assert_array_equal(after(scale=0.0), whole.astype(np.float32))
    for bug in (
        {"scale": -1.0},
        {"damping": 0.5},
        {"iterations": 1},
        {"scale": 1 / count} if count > 1 else {"scale": 2},
    ):
        assert np.abs(after(**bug) - left).max() > 1e-3, bug


def test_influence_matches_the_reference_implementation_on_a_classifier(world):
    parts, x, y = world
    start = weights(tiny.linear_softmax())
    move = influence_reference.step(*start, (x[:9], y[:9]), (x[9:39], y[9:39]), 0.1)
    ours = vector(unlearn(Influence(damping=0.1, iterations=60, hessian_batches=99, batch_size=8), parts))
    before = np.concatenate([start[0].ravel(), start[1]])
    np.testing.assert_allclose(ours - before, move, atol=1e-5)
    of_forget = influence_reference.step(*start, (x[:9], y[:9]), (x[:9], y[:9]), 0.1)
    assert np.abs(of_forget - move).max() > 1e-3


def test_influence_raises_the_damping_where_the_loss_is_not_convex():
    recipe, method, records = tiny.recipe("simclr"), Influence(iterations=5), []
    x, y = tiny.images(48)
    parts = tiny.parts(x, y, {"forget": (0, 12), "retain": (12, 48)}, recipe.views)
    model = method.unlearn(recipe.start(3), tiny.given(method, parts, recipe), Run(log=records.append))
    found = [record["terms"] for record in records if record["phase"] == "not_convex"]
    assert found and all(terms["curvature"] <= 0 for terms in found)
    dampings = [terms["damping"] for terms in found] + [records[-1]["terms"]["damping"]]
    assert all(later >= 3 * earlier for earlier, later in pairwise(dampings))
    assert records[-2]["phase"] == "conjugate_gradient" and records[-2]["terms"]["residual"] < 1
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("fields", [{"damping": 0.0}, {"damping": -1.0}, {"iterations": 0}])
def test_influence_refuses_impossible_settings(fields):
    with pytest.raises(EffaceError, match=r"Influence\.(damping|iterations)' cannot be"):
        Influence(**fields)


def test_influence_by_default_spends_no_more_on_curvature_than_it_may():
    """A twentieth of 60 epochs of 4 batches is 12: with two iterations of three passes, H comes from two batches."""
    recipe, method, run = tiny.recipe("cross_entropy", epochs=60), Influence(iterations=2, damping=100.0), Run()
    x, y = tiny.images(72)
    parts = tiny.parts(x, y, {"forget": (0, 8), "retain": (8, 72)}, recipe.views)
    method.unlearn(recipe.start(3), tiny.given(method, parts, recipe), run)
    assert run.training_cost.examples == (8 + 16) + 2 * 2 * 16


# what closed forms leave behind


@pytest.mark.parametrize("method", [Ssd(alpha=1.0), Influence(iterations=3)])
def test_after_a_closed_form_no_key_of_before_is_left_in_the_queue(method):
    x, y = tiny.images(96)
    data = Data.from_arrays(x.transpose(0, 2, 3, 1), y)
    split = api.split(data, "@random:0.2", seed=1)
    start = api.pretrain(data, split, recipe=tiny.recipe("moco", epochs=1), seed=1, device="cpu")
    after = api.unlearn(start, data, split, method, device="cpu")
    assert set(after.purged) == {"twin", "queue"}
    assert not (after.model.queue[:, None] == start.model.queue[None]).all(-1).any()
    assert after.training_cost.steps == 0 and after.training_cost.examples > 0


def test_pieces_of_a_mask_have_the_shapes_of_the_weights():
    model = tiny.recipe("byol").start(0)
    mask = torch.ones(sum(w.numel() for w in model.trainable_parameters()), dtype=torch.bool)
    assert [piece.shape for piece in unflatten_vector(model, mask)] == [
        weight.shape for weight in model.trainable_parameters()
    ]
