"""Influence: one Newton step to where the retained examples alone would have put the weights.

    θ = θ₀ + scale · s,    ( H + damping · 1 ) s = 1/|R| · ∂/∂θ Σ_{x∈F} ℓ(θ₀; x),    H = ∂²/∂θ² mean_{x∈R} ℓ(θ₀; x)

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with; θ₀: the checkpoint as
received, assumed to be a minimum over R ∪ F. s is found by conjugate gradients from products of H with vectors. On
ridge regression with penalty ½ |R| damping ‖θ‖² the result equals retraining without F.

Source      Koh and Liang, Understanding Black-box Predictions via Influence Functions, 2017, arXiv 1703.04730; as
            a Newton step of removal: Guo et al., Certified Data Removal, 2020, arXiv 1911.03030, without its noise.
Departures  H from some batches of R; few iterations. If H + damping is not positive definite, the damping is raised
            (threefold, or to twice what the direction that was found requires) and the system is solved again.
            BatchNorm statistics are frozen; F's losses are computed in batches with retained examples. Papers that
            report "IU" mostly mean WoodFisher, another approximation of H from gradients: their rows are no reference.
Tests cover a step in the opposite direction; H of F; means in place of sums; a direction of negative curvature that is
            followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, Positive, Real
from efface.training.batch import Batch
from efface.training.gradients import (
    NegativeCurvatureError,
    conjugate_gradient,
    flatten_parts,
    hessian_vector,
    unflatten_vector,
)
from efface.training.loop import Run
from efface.training.model import Model
from efface.unlearning.protocol import MethodInputs, Needs, forget_gradient

PASSES = 3
"""Cost of a product of H with a vector, in optimizer steps on as many examples."""


@dataclass(frozen=True, kw_only=True)
class Influence(Settings):
    """Influence: the damping, how exactly the system is solved, and how much of the step is taken."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    damping: Positive = 0.01
    """Added to every curvature, above 0; raised if that does not make all of them positive."""
    iterations: Count = 10
    """Most conjugate-gradient iterations; each takes one product with H."""
    scale: Real = 1.0
    """Share of the step that is taken; 0 leaves the model as it is."""
    hessian_batches: Count | None = None
    """Batches of R that H is computed from; by default as many as cost a twentieth of the original's epochs."""
    batch_size: Count | None = None
    """Retained examples per batch; by default the original's."""
    forget_batch_size: Count = 64
    """Forget examples per batch of the gradient."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Take one step from the gradient of F and the curvature of R.

        A momentum encoder is set to the new weights; a queue of keys stays, and is purged after unlearning.
        """
        with run.timed():
            size = inputs.batch_size(self.batch_size)
            gradient = forget_gradient(model, inputs, size, self.forget_batch_size, run) / len(inputs.retain)
            affordable = inputs.resolve_epochs(None) * inputs.retain.count_batches(size) // (PASSES * self.iterations)
            count = max(1, affordable) if self.hessian_batches is None else self.hessian_batches
            step, damping = self.solve(model, inputs, gradient, count, run)
            with torch.no_grad():
                relative = float(step.norm() / flatten_parts(model, model.trainable_parameters()).norm())
                run.log_values("influence", {"damping": damping, "moved": self.scale * relative})
                for weight, change in zip(model.trainable_parameters(), unflatten_vector(model, step), strict=True):
                    weight.add_(change, alpha=self.scale)
            model.update_ema(0.0)
        return model

    def solve(self, model: Model, inputs: MethodInputs, gradient: Tensor, count: int, run: Run) -> tuple[Tensor, float]:
        """s, [P], with H from ``count`` batches of R, always the same ones; and the damping that was needed."""
        size, damping = inputs.batch_size(self.batch_size), self.damping

        def product(vector: Tensor) -> Tensor:
            shown = 0

            def summed_loss(batch: Batch) -> Tensor:
                nonlocal shown
                shown += len(batch)
                return model.objective.loss(model, batch).per_example.sum()

            batches = islice(inputs.retain.batches(size, run.rng("curvature")), count)
            summed = hessian_vector(model, batches, summed_loss, vector)
            run.training_cost.examples += shown
            return summed / shown + damping * vector

        def log_residual(number: int, residual: float) -> None:
            run.log_values("conjugate_gradient", {"residual": residual}, number=number)

        while True:
            try:
                return conjugate_gradient(product, gradient, self.iterations, watch=log_residual), damping
            except NegativeCurvatureError as error:
                run.log_values("not_convex", {"damping": damping, "curvature": error.curvature})
                damping = max(3 * damping, 2 * (damping - error.curvature))
