"""Gradients and what is made of them, always exact, never by finite differences.

Norms of per-example gradients (differentiable where asked); squared gradients (the diagonal of the empirical Fisher
information); Hessian-vector products and the linear systems that they solve. Vectors over the weights are flat, [P],
in the order of ``model.trainable_parameters()``: ``flat`` makes one, ``pieces`` takes it apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from efface.training.batch import Batch
from efface.training.model import Model, frozen_statistics

Loss = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] to per-example losses [B], each a function of its own image."""
BatchLoss = Callable[[Batch], Tensor]
"""A batch to one number that depends on the model's weights."""


def input_norms(loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """‖∂ℓ_i/∂x_i‖₂ of each image, [B] >= 0. With ``graph`` it can be differentiated once more."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x, create_graph=graph)
    return row_norms(gradient)


def feature_norms(model: Model, loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """‖∂ℓ_i/∂f(x_i)‖₂ with respect to the backbone's output, [B] >= 0."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    hook = model.backbone.register_forward_hook(see)
    try:
        total = loss(x).sum()
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(total, seen[-1], create_graph=graph)
    return row_norms(gradient)


def parameter_norm(model: Model, loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """‖∂ mean_i ℓ_i / ∂θ‖₂ of the whole batch, [1] >= 0: one number, because per-example ones cost B passes."""
    gradients = torch.autograd.grad(loss(x).mean(), model.trainable_parameters(), create_graph=graph, allow_unused=True)
    return row_norms(torch.cat([g.flatten() for g in gradients if g is not None])[None])


def row_norms(gradient: Tensor) -> Tensor:
    """Euclidean norm of each row, [B]; its own gradient stays finite at zero."""
    return (gradient.flatten(1).square().sum(1) + 1e-24).sqrt()


def flatten_parts(model: Model, parts: Sequence[Tensor | None]) -> Tensor:
    """One number per trainable weight as one vector, [P]; zeros where a part is ``None``."""
    pairs = zip(model.trainable_parameters(), parts, strict=True)
    return torch.cat([(torch.zeros_like(own) if part is None else part).reshape(-1) for own, part in pairs])


def unflatten_vector(model: Model, vector: Tensor) -> list[Tensor]:
    """A vector [P] as tensors in the shapes of the trainable weights."""
    own = model.trainable_parameters()
    return [part.view(weight.shape) for weight, part in zip(own, vector.split([w.numel() for w in own]), strict=True)]


def compute_gradient(model: Model, value: Tensor, *, graph: bool = False) -> Tensor:
    """∂value/∂θ, [P]. With ``graph`` it can be differentiated once more."""
    return flatten_parts(
        model, torch.autograd.grad(value, model.trainable_parameters(), create_graph=graph, allow_unused=True)
    )


def squared_gradients(model: Model, batches: Iterable[Batch], value: BatchLoss) -> Tensor:
    """Mean over the batches of (∂value/∂θ)², [P] >= 0; the batch decides which examples share a square.

    Where a value is the loss of one example, this is the diagonal of the empirical Fisher information.
    """
    total, count = torch.zeros_like(flatten_parts(model, model.trainable_parameters())), 0
    with differentiable_twice(model):
        for batch in batches:
            total += compute_gradient(model, value(batch)).square()
            count += 1
    return total / count


def hessian_vector(model: Model, batches: Iterable[Batch], value: BatchLoss, vector: Tensor) -> Tensor:
    """H v, [P], with H the Hessian by the weights of the sum of the batches' values; v is [P]."""
    total = torch.zeros_like(vector)
    with differentiable_twice(model):
        for batch in batches:
            slope = compute_gradient(model, value(batch), graph=True) @ vector
            total += compute_gradient(model, slope)
    return total


class NegativeCurvatureError(ArithmeticError):
    """A direction along which the matrix does not curve upwards; ``curvature``: its pᵀAp / pᵀp <= 0."""

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
    """x with A x = b, from x = 0, for a positive definite A that is known by its ``product`` alone.

    Stops after ``iterations`` or where ‖b - A x‖ <= ``tolerance`` ‖b‖; ``watch`` is told each number and relative
    residual. Raises :class:`NegativeCurvatureError` where A turns out not to be positive definite.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, size = r.clone(), r.dot(r)
    goal = float(tolerance * size.sqrt())
    for number in range(1, iterations + 1):
        if float(size.sqrt()) <= goal:
            break
        curved = product(p)
        curvature = float(p.dot(curved) / p.dot(p))
        if curvature <= 0:
            raise NegativeCurvatureError(curvature)
        along = size / p.dot(curved)
        x, r = x + along * p, r - along * curved
        fresh = r.dot(r)
        p, size = r + fresh / size * p, fresh
        watch(number, float(size.sqrt() / b.norm()))
    return x


@contextmanager
def differentiable_twice(model: Model) -> Iterator[None]:
    """Statistics frozen, dropout off, float32, attention by its formula: what a second derivative needs."""
    bf16, model.bf16 = model.bf16, False
    try:
        with frozen_statistics(model), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.bf16 = bf16
