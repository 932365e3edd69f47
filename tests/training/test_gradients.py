"""Squared gradients, Hessian-vector products and conjugate gradients against explicit loops and matrices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from efface.training.gradients import (
    NegativeCurvatureError,
    compute_gradient,
    conjugate_gradient,
    differentiable_twice,
    flatten_parts,
    hessian_vector,
    squared_gradients,
    unflatten_vector,
)
from efface.training.model import Model
from efface.training.objectives import CrossEntropy
from tests import tiny
from tests.reference import gradients as reference


def world(n=12):
    x, y = tiny.images(n)
    part = tiny.parts(x, y, {"all": (0, n)})["all"]
    model = tiny.linear_softmax()
    numbers = [tensor.detach().double().numpy() for tensor in (model.head.weight, model.head.bias)]
    return model, part, (x.reshape(n, -1) / 255.0).astype(np.float64), y, numbers


def loss(model):
    return lambda batch: model.objective.loss(model, batch).per_example.mean()


@pytest.mark.parametrize("group", [1, 4])
def test_squared_gradients_equal_the_reference(group):
    model, part, x, y, numbers = world()
    ours = squared_gradients(model, part.ordered_batches(group), loss(model))
    groups = [(x[i : i + group], y[i : i + group]) for i in range(0, 12, group)]
    np.testing.assert_allclose(ours.numpy(), reference.squares(*numbers, groups), rtol=1e-4, atol=1e-9)


def test_a_square_of_the_mean_is_not_the_mean_of_squares():
    model, part, *_ = world()
    one, four = (squared_gradients(model, part.ordered_batches(size), loss(model)) for size in (1, 4))
    assert one.sum() > 2 * four.sum()


def test_several_values_of_a_batch_are_squared_one_by_one_up_to_the_most():
    model, part, *_ = world()
    rows = lambda batch: model.objective.loss(model, batch).per_example
    single = squared_gradients(model, part.ordered_batches(1), loss(model))
    torch.testing.assert_close(squared_gradients(model, part.ordered_batches(5), rows), single)
    first = dataclasses.replace(part, ids=part.ids[:7])
    expected = squared_gradients(model, first.ordered_batches(1), loss(model))
    torch.testing.assert_close(squared_gradients(model, part.ordered_batches(5), rows, 7), expected)


def test_hessian_vector_products_equal_the_explicit_matrix():
    model, part, x, _, numbers = world(4)
    vector = torch.randn(195, generator=torch.Generator().manual_seed(0))
    total = lambda batch: model.objective.loss(model, batch).per_example.sum()
    ours = hessian_vector(model, part.ordered_batches(3), total, vector)
    expected = reference.hessian(*numbers, x) @ vector.double().numpy()
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", sorted(tiny.SMALL))
def test_the_hessian_of_every_objective_is_symmetric_and_leaves_the_model_alone(objective):
    model = tiny.recipe(objective).start(0).train()
    x, y = tiny.images(12)
    part = tiny.parts(x, y, {"all": (0, 12)}, tiny.blurred)["all"]
    before = model.digest()
    u, v = torch.randn(
        2, sum(w.numel() for w in model.trainable_parameters()), generator=torch.Generator().manual_seed(1)
    ).unbind()
    hu, hv = (hessian_vector(model, part.ordered_batches(12), loss(model), vector) for vector in (u, v))
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-2, abs=1e-2)
    assert model.digest() == before and all(module.training for module in model.modules())


def test_weights_that_a_value_does_not_touch_have_no_gradient():
    model = tiny.recipe("byol").start(0)
    vector = compute_gradient(model, model.features(torch.rand(2, 1, 8, 8)).sum())
    own = model.trainable_parameters()
    touched = [bool(piece.abs().sum()) for piece in unflatten_vector(model, vector)]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(weight)].split(".")[0] for weight, hit in zip(own, touched, strict=True) if hit} == {"backbone"}


def test_flat_and_pieces_are_inverse():
    model = tiny.recipe("simclr").start(0)
    own = [weight.detach() for weight in model.trainable_parameters()]
    for back, weight in zip(unflatten_vector(model, flatten_parts(model, own)), own, strict=True):
        assert torch.equal(back, weight)


class Attentive(nn.Module):
    """Four tokens of sixteen pixels that attend to each other."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(1).view(-1, 1, 4, 16)).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v).flatten(1)


def test_attention_can_be_differentiated_twice():
    """Planted: torch's fused attention has no second derivative."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(Attentive(), nn.Linear(64, 3), CrossEntropy(), torch.zeros(1), torch.ones(1))
    x, y = tiny.images(6)
    part = tiny.parts(x, y, {"all": (0, 6)})["all"]
    vector = torch.ones(sum(w.numel() for w in model.trainable_parameters()))
    assert hessian_vector(model, part.ordered_batches(6), loss(model), vector).isfinite().all()
    slope = compute_gradient(model, loss(model)(next(part.ordered_batches(6))), graph=True) @ vector
    with pytest.raises(RuntimeError, match="not implemented"):
        compute_gradient(model, slope)


def test_smooth_puts_everything_back_even_after_an_error():
    model = tiny.recipe("moco").start(0).train()
    model.bf16 = True

    def fails():
        with differentiable_twice(model):
            assert not model.bf16 and not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert model.bf16 and all(module.training for module in model.modules())


def spd(n=12, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n))
    return root @ root.T + 0.5 * np.eye(n), rng.normal(size=n)


def test_conjugate_gradients_solve_what_the_matrix_says():
    a, b = spd()
    residuals = []
    watch = lambda number, residual: residuals.append((number, residual))
    x = conjugate_gradient(lambda v: torch.tensor(a) @ v, torch.tensor(b), 12, tolerance=0, watch=watch)
    np.testing.assert_allclose(x.numpy(), np.linalg.solve(a, b), rtol=1e-6)
    assert [number for number, _ in residuals] == list(range(1, 13))
    assert residuals[-1][1] < 1e-6


def test_the_reported_residual_is_the_true_one():
    a, b = spd()
    residuals = []
    x = conjugate_gradient(lambda v: torch.tensor(a) @ v, torch.tensor(b), 5, watch=lambda n, r: residuals.append(r))
    assert residuals[-1] == pytest.approx(np.linalg.norm(b - a @ x.numpy()) / np.linalg.norm(b), rel=1e-6)


def test_few_iterations_minimize_over_their_krylov_space():
    """After k iterations the error in the A-norm is the smallest that b, Ab, ... A^(k-1) b allow."""
    a, b = spd()
    x = conjugate_gradient(lambda v: torch.tensor(a) @ v, torch.tensor(b), 3).numpy()
    basis, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(a, k) @ b for k in range(3)], 1))
    best = basis @ np.linalg.solve(basis.T @ a @ basis, basis.T @ b)
    np.testing.assert_allclose(x, best, rtol=1e-6, atol=1e-9)


def test_conjugate_gradients_stop_early_where_nothing_is_left():
    seen = []
    x = conjugate_gradient(lambda v: 2 * v, torch.ones(3), 50, watch=lambda n, r: seen.append(n))
    assert torch.equal(x, torch.full((3,), 0.5)) and seen == [1]
    assert torch.equal(conjugate_gradient(lambda v: v, torch.zeros(3), 5), torch.zeros(3))


def test_a_matrix_that_is_not_positive_is_an_error_with_its_curvature():
    with pytest.raises(NegativeCurvatureError) as caught:
        conjugate_gradient(lambda v: -3 * v, torch.ones(4), 5)
    assert caught.value.curvature == pytest.approx(-3)
