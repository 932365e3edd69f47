"""Norms of per-example gradients, differentiable where asked, always exact: never by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from efface.model import Model

Loss = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] to per-example losses [B], each a function of its own image."""


def input_norms(loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """‖∂ℓ_i/∂x_i‖₂ of each image, [B] >= 0. With ``graph`` it can be differentiated once more."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x).sum(), x, create_graph=graph)
    return length(gradient)


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
    return length(gradient)


def parameter_norm(model: Model, loss: Loss, x: Tensor, *, graph: bool = False) -> Tensor:
    """‖∂ mean_i ℓ_i / ∂θ‖₂ of the whole batch, [1] >= 0: one number, because per-example ones cost B passes."""
    gradients = torch.autograd.grad(loss(x).mean(), model.own(), create_graph=graph, allow_unused=True)
    return length(torch.cat([g.flatten() for g in gradients if g is not None])[None])


def length(gradient: Tensor) -> Tensor:
    """Euclidean norm of each row, [B]; its own gradient stays finite at zero."""
    return (gradient.flatten(1).square().sum(1) + 1e-24).sqrt()
