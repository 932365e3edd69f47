"""Exact gradients and quantities derived from them; nothing uses finite differences.

Norms of per-example gradients (optionally differentiable), squared gradients (the diagonal of the empirical Fisher
information), Hessian-vector products, and a solver for linear systems given by such products. Vectors over the weights
are flat, [P], in the order of ``model.trainable_parameters()``: see :func:`flatten_parts` and
:func:`unflatten_vector`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from efface.training.batch import Batch
from efface.training.micro_batches import count_parts
from efface.training.model import Model, frozen_statistics

Loss = Callable[[Tensor], Tensor]
"""Maps images [B, C, H, W] to per-example losses [B], each a function of its own image alone."""
BatchLoss = Callable[[Batch], Tensor]
"""Maps a batch to a scalar (for :func:`squared_gradients` also to several) that depends on the weights."""


def input_norms(loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """Compute ‖∂ℓ_i/∂x_i‖₂ of each image, [B] >= 0; with ``graph`` the result is differentiable."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x, create_graph=graph)
    return row_norms(gradient)


def feature_norms(model: Model, loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """Compute ‖∂ℓ_i/∂f(x_i)‖₂, with f the backbone, [B] >= 0; with ``graph`` the result is differentiable."""
    outputs: list[Tensor] = []

    def keep_output(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        outputs.append(output)

    hook = model.backbone.register_forward_hook(keep_output)
    try:
        total = loss(x).sum()
    finally:
        hook.remove()
    last = outputs[-count_parts(len(x), model.micro_batch) :]
    gradient = torch.cat(torch.autograd.grad(total, last, create_graph=graph))
    return row_norms(model.world.gather(gradient, x))


def parameter_norm(model: Model, loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """Compute ‖∂ mean_i ℓ_i / ∂θ‖₂ of the batch, [1] >= 0; per-example norms would cost B backward passes."""
    gradients = torch.autograd.grad(loss(x).mean(), model.trainable_parameters(), create_graph=graph, allow_unused=True)
    flat = torch.cat([g.flatten() for g in gradients if g is not None])
    return row_norms(model.world.average(flat)[None])


def row_norms(gradient: Tensor) -> Tensor:
    """Compute the Euclidean norm of each row, [B]; its gradient is finite at zero."""
    return (gradient.flatten(1).square().sum(1) + 1e-24).sqrt()


def flatten_parts(model: Model, parts: Sequence[Tensor | None]) -> Tensor:
    """Join one tensor per trainable parameter into one vector, [P], with zeros where a tensor is ``None``."""
    pairs = zip(model.trainable_parameters(), parts, strict=True)
    return torch.cat([(torch.zeros_like(weight) if part is None else part).reshape(-1) for weight, part in pairs])


def unflatten_vector(model: Model, vector: Tensor) -> list[Tensor]:
    """Split a vector [P] into tensors with the shapes of the trainable parameters."""
    weights = model.trainable_parameters()
    parts = vector.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for weight, part in zip(weights, parts, strict=True)]


def compute_gradient(model: Model, value: Tensor, *, graph: bool = False, keep: bool = False) -> Tensor:
    """Compute ∂value/∂θ, [P]; with ``graph`` the result is differentiable, with ``keep`` the graph is used again."""
    weights = model.trainable_parameters()
    parts = torch.autograd.grad(value, weights, create_graph=graph, retain_graph=graph or keep, allow_unused=True)
    return model.world.average(flatten_parts(model, parts))


def squared_gradients(model: Model, batches: Iterable[Batch], values: BatchLoss, most: int | None = None) -> Tensor:
    """Average (∂value/∂θ)² over all values of the batches, [P] >= 0.

    Each value is differentiated and squared by itself. With the loss of single examples this is the diagonal of the
    empirical Fisher information; where a value is a mean over examples, their gradients are summed before the square.

    Args:
        model: The model; its statistics are frozen meanwhile.
        batches: At least one batch; none after the one that has the last value.
        values: One scalar to differentiate, or several, [S], such as the mean losses of parts of the batch.
        most: Number of values at most; by default all.

    """
    total, count = torch.zeros_like(flatten_parts(model, model.trainable_parameters())), 0
    with differentiable_twice(model):
        for batch in batches:
            each = torch.atleast_1d(values(batch))[: None if most is None else most - count]
            for number, value in enumerate(each, 1):
                total += compute_gradient(model, value, keep=number < len(each)).square()
            count += len(each)
            if count == most:
                break
    return total / count


def hessian_vector(model: Model, batches: Iterable[Batch], value: BatchLoss, vector: Tensor) -> Tensor:
    """Compute H v, [P], with H the Hessian, with respect to the weights, of the sum of ``value`` over the batches.

    Args:
        model: The model; its statistics are frozen meanwhile.
        batches: The batches to sum over.
        value: The scalar to differentiate twice.
        vector: v, [P].

    """
    total = torch.zeros_like(vector)
    with differentiable_twice(model):
        for batch in batches:
            slope = compute_gradient(model, value(batch), graph=True) @ vector
            total += compute_gradient(model, slope)
    return total


class NegativeCurvatureError(ArithmeticError):
    """The matrix is not positive definite: along some direction p, ``curvature`` = pᵀAp / pᵀp <= 0."""

    def __init__(self, curvature: float) -> None:
        super().__init__(f"curvature {curvature:g} along a conjugate direction")
        self.curvature = curvature


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    iterations: int,
    *,
    tolerance: float = 1e-6,
    watch: Callable[[int, float], None] = lambda number, residual: None,
) -> Tensor:
    """Solve A x = b by conjugate gradients, starting from x = 0.

    Args:
        product: Computes A v of a vector v; A is positive definite.
        b: The right-hand side.
        iterations: Largest number of iterations.
        tolerance: Stop once ‖b - A x‖ <= ``tolerance`` ‖b‖.
        watch: Called after each iteration with its number, from 1, and the relative residual.

    Raises:
        NegativeCurvatureError: If A turns out not to be positive definite.

    """
    x, r = torch.zeros_like(b), b.clone()
    p, squared = r.clone(), r.dot(r)
    goal = float(tolerance * squared.sqrt())
    for number in range(1, iterations + 1):
        if float(squared.sqrt()) <= goal:
            break
        product_p = product(p)
        curvature = float(p.dot(product_p) / p.dot(p))
        if curvature <= 0:
            raise NegativeCurvatureError(curvature)
        step = squared / p.dot(product_p)
        x, r = x + step * p, r - step * product_p
        new = r.dot(r)
        p, squared = r + new / squared * p, new
        watch(number, float(squared.sqrt() / b.norm()))
    return x


@contextmanager
def differentiable_twice(model: Model) -> Iterator[None]:
    """Context for second derivatives: frozen statistics, no dropout, float32, attention without fused kernels."""
    bf16, model.bf16 = model.bf16, False
    try:
        with frozen_statistics(model), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.bf16 = bf16
