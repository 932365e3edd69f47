"""Each method against its reference implementation: a linear softmax classifier with closed-form gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.training.gradients import input_norms, row_norms
from efface.training.loop import Run, frozen_copy
from efface.training.optim import Optim, Schedule
from efface.unlearning.gradient_norms import GradientVariable
from efface.unlearning.methods import Finetune, GradientAscent, GradientConstraint, NegGrad, Retrain, Scrub
from efface.unlearning.methods.gradient_constraint import NormMatching, TrainOn
from tests import tiny
from tests.reference import descent
from tests.reference import finetune as finetune_reference
from tests.reference import gradient_ascent as ascent_reference
from tests.reference import gradient_constraint as constraint_reference
from tests.reference import neggrad as neggrad_reference
from tests.reference import scrub as scrub_reference

OPTIM = Optim(lr=0.1, momentum=0.9, weight_decay=0.01)
CUTS = {"forget": (0, 9), "retain": (9, 39), "valid": (39, 48)}


@pytest.fixture
def world():
    x, y = tiny.images(48)
    return tiny.parts(x, y, CUTS), (x.reshape(48, -1) / 255.0).astype(np.float64), y


def weights(model):
    return model.head.weight.detach().double().numpy(), model.head.bias.detach().double().numpy()


def rows(part, size, rng):
    """The (x, y) batches that the method will see, drawn from the same generator."""
    return [(b.clean.flatten(1).double().numpy(), b.y.numpy()) for b in part.batches(size, rng)]


def agrees(model, expected):
    for ours, wanted in zip(weights(model), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=2e-5)


def unlearn(method, parts, recipe=None):
    model = tiny.linear_softmax()
    return method.unlearn(model, tiny.given(method, parts, recipe), Run(seed=7))


def test_finetune_matches_the_reference_implementation(world):
    parts, _, _ = world
    method, run = Finetune(epochs=2, batch_size=10, optim=OPTIM), Run(seed=7)
    batches = [b for e in range(2) for b in rows(parts["retain"], 10, run.rng("retain", e))]
    start = weights(tiny.linear_softmax())
    expected = descent.run(*start, finetune_reference.steps(batches), descent.cosine(0.1, 6), 0.9, 0.01)
    agrees(unlearn(method, parts), expected)


def test_gradient_ascent_matches_the_reference_implementation(world):
    parts, _, _ = world
    optim = Optim(lr=0.01, weight_decay=0.0, schedule=Schedule.CONSTANT)
    method, run = GradientAscent(epochs=3, batch_size=9, optim=optim), Run(seed=7)
    batches = [b for e in range(3) for b in rows(parts["forget"], 9, run.rng("forget", e))]
    start = weights(tiny.linear_softmax())
    agrees(unlearn(method, parts), descent.run(*start, ascent_reference.steps(batches), [0.01] * 3, 0.9, 0.0))


def test_neggrad_matches_the_reference_implementation(world):
    parts, _, _ = world
    method = NegGrad(beta=0.8, epochs=1, batch_size=10, forget_batch_size=9, optim=OPTIM)
    run = Run(seed=7)
    cycle, forget = run.rng("forget"), []
    while len(forget) < 3:
        forget += rows(parts["forget"], 9, cycle)
    retain = rows(parts["retain"], 10, run.rng("retain", 0))
    start = weights(tiny.linear_softmax())
    expected = descent.run(*start, neggrad_reference.steps(retain, forget[:3], 0.8), descent.cosine(0.1, 3), 0.9, 0.01)
    agrees(unlearn(method, parts), expected)


def test_scrub_matches_the_reference_implementation(world):
    parts, _, _ = world
    method = Scrub(alpha=0.3, gamma=0.7, epochs=2, ascent_epochs=1, batch_size=15, forget_batch_size=9, optim=OPTIM)
    run, start = Run(seed=7), weights(tiny.linear_softmax())
    passes = [("away", b) for b in rows(parts["forget"], 9, run.rng("forget", 0))]
    passes += [("home", b) for e in range(2) for b in rows(parts["retain"], 15, run.rng("retain", e))]
    expected = descent.run(*start, scrub_reference.steps(passes, start, 0.3, 0.7), descent.cosine(0.1, 5), 0.9, 0.01)
    agrees(unlearn(method, parts), expected)


def test_retraining_on_an_unchanged_set_reproduces_the_original():
    from efface.training.loop import fit

    recipe = tiny.recipe("moco", epochs=2)
    x, y = tiny.images(48)
    everything = tiny.parts(x, y, {"retain": (0, 48)}, recipe.views)
    original = fit(recipe.start(5), everything["retain"], recipe, Run(seed=5))
    again = Retrain().unlearn(original, tiny.given(Retrain(), everything, recipe), Run(seed=5))
    assert again.digest() == original.digest()


def test_gradient_norms_equal_the_closed_form(world):
    parts, x, y = world
    model = tiny.linear_softmax()
    batch = next(parts["forget"].ordered_batches(9))
    ours = GradientConstraint().norms(model, batch)
    expected = constraint_reference.norms(*weights(model), x[:9], y[:9])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("match", list(NormMatching))
def test_the_gradient_term_matches_the_reference_implementation(match):
    rng = np.random.default_rng(0)
    forget, unseen = rng.uniform(0.5, 2, 7), rng.uniform(1, 4, 31)
    ours = GradientConstraint(match=match).penalty(torch.tensor(forget), torch.tensor(unseen))
    expected = {
        NormMatching.SQUARE: constraint_reference.square(forget, unseen.mean()),
        NormMatching.LOG_MEAN: constraint_reference.log_mean(forget, unseen),
        NormMatching.QUANTILE: constraint_reference.quantile(forget, unseen),
    }[match]
    assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_the_square_target_can_be_a_number():
    norms, unseen = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    assert float(GradientConstraint(match=NormMatching.SQUARE, target=1.0).penalty(norms, unseen)) == 2.0
    assert float(GradientConstraint(match=NormMatching.SQUARE, target=0.0).penalty(norms, unseen)) == 1.25


@pytest.mark.parametrize("match", list(NormMatching))
def test_matching_norms_cost_nothing(match):
    same = torch.linspace(1, 2, 11, dtype=torch.float64)
    levels = (torch.arange(11, dtype=torch.float64) + 0.5) / 11
    forget = same.log().quantile(levels).exp() if match is NormMatching.QUANTILE else same.mean().repeat(11)
    unseen = same if match is NormMatching.QUANTILE else same.mean().repeat(3)
    assert float(GradientConstraint(match=match).penalty(forget, unseen)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("match", list(NormMatching))
def test_the_gradient_term_can_be_differentiated_twice(match):
    """The penalty's own gradient, checked against differences on a smooth network in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    target = torch.randn(5, dtype=torch.float64, generator=generator)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    unseen = torch.linspace(0.5, 3, 9, dtype=torch.float64)

    def penalty(weight):
        norms = input_norms(lambda rows: ((rows @ weight).tanh().sum(1) - target).square(), x, graph=True)
        return GradientConstraint(match=match).penalty(norms, unseen)

    assert torch.autograd.gradcheck(penalty, (weight,))


def test_a_zero_gradient_has_a_finite_norm_and_a_finite_gradient():
    g = torch.zeros(2, 3, requires_grad=True)
    row_norms(g).sum().backward()
    assert torch.isfinite(g.grad).all()


@pytest.mark.parametrize("wrt", list(GradientVariable))
def test_every_kind_of_gradient_reaches_the_weights(wrt):
    recipe = tiny.recipe("simclr")
    x, y = tiny.images(48)
    batch = next(tiny.parts(x, y, {"forget": (0, 12)}, recipe.views)["forget"].ordered_batches(12))
    model, method = recipe.start(0), GradientConstraint(wrt=wrt)
    norms = method.norms(model, batch, graph=True)
    assert norms.shape == ((1,) if wrt is GradientVariable.PARAMETERS else (12,))
    method.penalty(norms, torch.linspace(1, 2, 12)).backward()
    assert sum(float(p.grad.abs().sum()) for p in model.backbone.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("objective", ["simclr", "cross_entropy", "moco"])
def test_a_transformer_can_be_constrained(objective):
    """Fused attention has no second derivative."""
    recipe = tiny.recipe(objective, backbone=tiny.VIT)
    x, y = tiny.images(48)
    method = GradientConstraint(epochs=1, batch_size=15, forget_batch_size=9, optim=OPTIM)
    given = tiny.given(method, tiny.parts(x, y, CUTS, recipe.views), recipe)
    before = recipe.start(0)
    assert method.unlearn(recipe.start(0), given, Run(seed=7)).digest() != before.digest()


def test_the_penalty_leaves_batch_statistics_alone():
    recipe = tiny.recipe("simclr")
    x, y = tiny.images(48)
    batch = next(tiny.parts(x, y, {"forget": (0, 12)}, recipe.views)["forget"].ordered_batches(12))
    model = recipe.start(0).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    GradientConstraint().norms(model, batch, graph=True)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_the_constraint_raises_the_norms_of_forgotten_members(world):
    """On an over-fitted model the loss is flat around members; the constraint makes it as steep as around V."""
    x, y = tiny.images(96, seed=3)
    x = (x.astype(float) * 0.3 + np.random.default_rng(1).uniform(0, 178, x.shape)).astype(np.uint8)
    parts = tiny.parts(x, y, {"forget": (0, 16), "retain": (16, 48), "valid": (48, 96), "train": (0, 48)})
    model = tiny.linear_softmax()
    fitted = Finetune(epochs=150, batch_size=48, optim=Optim(lr=0.5, weight_decay=0.0)).unlearn(
        model, tiny.given(Finetune(), {"retain": parts["train"]}), Run()
    )
    probe, unseen = (next(parts[name].ordered_batches(48)) for name in ("forget", "valid"))
    method = GradientConstraint(
        weight=1.0, epochs=20, batch_size=32, forget_batch_size=16, optim=Optim(lr=0.05, weight_decay=0.0)
    )
    start, goal = method.norms(fitted, probe).log().mean(), method.norms(fitted, unseen).log().mean()
    assert start < goal - 0.5
    after = method.unlearn(frozen_copy(fitted).requires_grad_(True), tiny.given(method, parts), Run())
    assert abs(method.norms(after, probe).log().mean() - goal) < 0.5 * abs(start - goal)


@pytest.mark.parametrize("where", list(TrainOn))
def test_train_on_chooses_the_examples_of_the_task(world, where):
    parts, x, y = world
    logged = []
    method = GradientConstraint(weight=0.0, train_on=where, epochs=1, batch_size=30, forget_batch_size=9, optim=OPTIM)
    method.unlearn(tiny.linear_softmax(), tiny.given(method, parts), Run(seed=7, log=logged.append))
    own = descent.losses(*weights(tiny.linear_softmax()), x, y)
    expected = {TrainOn.RETAIN: own[9:39], TrainOn.FORGET: own[:9], TrainOn.MEMBERS: own[:39]}[where].mean()
    assert logged[0]["terms"] == {"task": pytest.approx(expected, rel=1e-5)}
