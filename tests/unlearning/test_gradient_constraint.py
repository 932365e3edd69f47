"""The literal reading of the gradient constraint: the output as critic, between trained and never-trained examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives import CrossEntropy
from efface.training.optim import Optim
from efface.unlearning.gradient_norms import Critic, GradientVariable, PenaltyPoint, interpolate_batches
from efface.unlearning.methods import GradientConstraint
from efface.unlearning.methods.gradient_constraint import WGAN_GP, NormMatching
from tests import tiny
from tests.reference import gradient_constraint as reference

CUTS = {"forget": (0, 9), "retain": (9, 39), "valid": (39, 48)}


@pytest.fixture
def parts():
    x, y = tiny.images(48)
    return tiny.parts(x, y, CUTS)


def smooth_classifier():
    """W₂ tanh(W₁ x), three outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Linear(64, 5, bias=False), nn.Linear(5, 3, bias=False)
    return Model(nn.Sequential(nn.Flatten(), first, nn.Tanh()), second, CrossEntropy(), torch.zeros(1), torch.ones(1))


def arrays(batch):
    return batch.view(0).flatten(1).double().tolist()


def test_the_literal_reading_is_one_setting():
    method = GradientConstraint(**WGAN_GP)
    assert (method.of, method.at) == (Critic.OUTPUT, PenaltyPoint.INTERPOLATE)
    assert (method.match, method.target, method.wrt) == (NormMatching.SQUARE, 1.0, GradientVariable.INPUT)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_norms_of_the_output_between_examples_match_the_reference_implementation(parts, share, monkeypatch):
    """Also at both ends, where the norms are those at the unseen and at the forgotten examples."""
    model, method = smooth_classifier(), GradientConstraint(**WGAN_GP)
    forgotten, unseen = next(parts["forget"].ordered_batches(9)), next(parts["valid"].ordered_batches(4))
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, share))
    x = interpolate_batches(forgotten, unseen, torch.Generator())
    expected = reference.between(arrays(forgotten), arrays(unseen), [share] * 9)
    np.testing.assert_allclose(x.flatten(1).numpy(), expected, rtol=1e-5)
    first, second = (layer.weight.double().tolist() for layer in (model.backbone[1], model.head))
    norms = method.norms(model, forgotten, x)
    np.testing.assert_allclose(norms.numpy(), reference.output_norms(first, second, expected), rtol=1e-4)
    ends = {0.0: method.norms(model, forgotten, unseen.view(0)[[0, 1, 2, 3, 0, 1, 2, 3, 0]]),
            1.0: method.norms(model, forgotten)}  # fmt: skip
    assert share not in ends or torch.allclose(ends[share], norms)


def test_each_row_has_a_share_of_its_own(parts):
    batch, unseen = next(parts["forget"].ordered_batches(9)), next(parts["valid"].ordered_batches(9))
    apart = (interpolate_batches(batch, unseen, torch.Generator()) - batch.view(0)).flatten(1).norm(dim=1)
    assert len(apart.unique()) == 9 and float(apart.min()) > 0


def test_the_loss_between_examples_has_the_label_of_the_forgotten_one(parts):
    model, method = tiny.linear_softmax(), GradientConstraint(at="interpolate")
    forgotten, unseen = next(parts["forget"].ordered_batches(9)), next(parts["valid"].ordered_batches(9))
    x = 0.25 * forgotten.view(0) + 0.75 * unseen.view(0)
    numbers = [tensor.detach().double().numpy() for tensor in (model.head.weight, model.head.bias)]
    expected = reference.norms(*numbers, x.flatten(1).double().numpy(), forgotten.labels().numpy())
    np.testing.assert_allclose(method.norms(model, forgotten, x).numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("objective", ["simclr", "cross_entropy"])
def test_the_literal_reading_draws_the_norms_to_one(parts, objective):
    recipe, logged = tiny.recipe(objective), []
    method = GradientConstraint(**WGAN_GP, epochs=20, batch_size=15, forget_batch_size=9, optim=Optim(lr=0.02, clip=5))
    method.unlearn(recipe.start(0), tiny.given(method, parts, recipe), Run(seed=7, log=logged.append))
    terms = [row["terms"]["gradient"] for row in logged]
    assert np.mean(terms[-5:]) < 0.7 * np.mean(terms[:5])
