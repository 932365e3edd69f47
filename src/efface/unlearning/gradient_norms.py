"""Norms of gradients of single examples, at the examples or between forgotten and unseen ones.

G_θ(x) = ‖ ∂ c_θ(x) / ∂u ‖₂      c: the loss, or the sum of the network's outputs; u: the input, the backbone's
features or the weights
x̂ = ε x_F + (1 - ε) x_V          ε uniform in [0, 1], one for each example, as in WGAN-GP
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor

from efface.training.batch import Batch
from efface.training.gradients import differentiable_twice, feature_norms, input_norms, parameter_norm
from efface.training.model import Model


class GradientVariable(StrEnum):
    """What the loss is differentiated with respect to."""

    INPUT = "input"
    EMBEDDING = "embedding"
    PARAMETERS = "parameters"


class Critic(StrEnum):
    """What is differentiated."""

    LOSS = "loss"
    OUTPUT = "output"


class PenaltyPoint(StrEnum):
    """Where the gradient of a forgotten example is taken."""

    EXAMPLE = "example"
    INTERPOLATE = "interpolate"


def gradient_norms(
    model: Model, batch: Batch, of: Critic, wrt: GradientVariable, x: Tensor | None = None, *, graph: bool = False
) -> Tensor:
    """Norm of each example's gradient, [B] (``parameters``: [1]), in float32 with frozen BatchNorm statistics.

    Args:
        model: The model whose gradients are measured.
        batch: The examples; their other views and labels are constants of the loss.
        of: What is differentiated.
        wrt: With respect to what.
        x: Where the gradients are taken, [B, C, H, W]; by default at the first views of the examples.
        graph: Whether the result is differentiable.

    """
    x = batch.view(0) if x is None else x
    with differentiable_twice(model):
        critic = model.objective.anchor_loss(model, batch) if of is Critic.LOSS else lambda x: model(x).sum(1)
        norms: dict[GradientVariable, Callable[[], Tensor]] = {
            GradientVariable.INPUT: lambda: input_norms(critic, x, graph=graph),
            GradientVariable.EMBEDDING: lambda: feature_norms(model, critic, x, graph=graph),
            GradientVariable.PARAMETERS: lambda: parameter_norm(model, critic, x, graph=graph),
        }
        return norms[wrt]()


def interpolate_batches(batch: Batch, unseen: Batch, rng: torch.Generator) -> Tensor:
    """Points between the first views of two batches, as many as ``batch`` has; ``unseen`` is repeated if shorter."""
    x, other = batch.view(0), unseen.view(0)
    share = torch.rand(len(x), generator=rng).to(x.device).view(-1, 1, 1, 1)
    return share * x + (1 - share) * other[torch.arange(len(x), device=x.device) % len(other)]
