"""Influence: one Newton step to where the retained examples alone would have put the weights.

    θ = θ₀ + scale · s,    ( H + damping · 1 ) s = 1/|R| · ∂/∂θ Σ_{x∈F} ℓ(θ₀; x),    H = ∂²/∂θ² mean_{x∈R} ℓ(θ₀; x)

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with; θ₀: the checkpoint as
received, taken to be a minimum over R ∪ F. s is found by conjugate gradients from products of H with vectors. On
ridge regression with penalty ½ |R| damping ‖θ‖² the result is the one of retraining without F, exactly.

Source      Koh and Liang, Understanding Black-box Predictions via Influence Functions, 2017, arXiv 1703.04730; as
            a Newton step of removal: Guo et al., Certified Data Removal, 2020, arXiv 1911.03030, without its noise.
Departures  H from some batches of R; few iterations. Where H + damping is not positive definite, the damping is
            raised (threefold, or to twice what the direction found asks for) and the system solved anew. BatchNorm
            statistics are frozen; F's losses are taken among retained examples.
Tests kill  a step the other way; H of F; means where sums belong; a negative curvature walked down.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from efface.errors import EffaceError
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
"""What a product of H with a vector costs, in optimizer steps on as many examples."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """The damping, how exactly the system is solved, and how much of the step is taken."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    damping: float = 0.01
    """Added to every curvature, above 0; raised where that is not enough to make them all positive."""
    iterations: int = 10
    """Most conjugate-gradient iterations, each one product with H."""
    scale: float = 1.0
    """Share of the step that is taken; 0 leaves the model as it is."""
    hessian_batches: int | None = None
    """Batches of R that H is taken from; by default what a twentieth of the original's epochs would have cost."""
    batch_size: int | None = None
    """Retained examples per batch; by default the original's."""
    forget_batch_size: int = 64
    """Forget examples per batch of the gradient."""

    def __post_init__(self) -> None:
        if not self.damping > 0 or self.iterations < 1:
            raise EffaceError(
                f"A damping of {self.damping:g} with {self.iterations} iterations solves nothing.",
                "The damping is above 0, and there is at least one iteration.",
            )

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Gradient of F, curvature of R, one step; the twin becomes the moved network, a queue is left to the purge."""
        with run.timed():
            size = given.batch_size(self.batch_size)
            gradient = forget_gradient(model, given, size, self.forget_batch_size, run) / len(given.retain)
            afford = given.resolve_epochs(None) * given.retain.count_batches(size) // (PASSES * self.iterations)
            count = max(1, afford) if self.hessian_batches is None else self.hessian_batches
            move, damping = self.solve(model, given, gradient, count, run)
            with torch.no_grad():
                far = float(move.norm() / flatten_parts(model, model.trainable_parameters()).norm())
                run.log_values("influence", {"damping": damping, "moved": self.scale * far})
                for weight, part in zip(model.trainable_parameters(), unflatten_vector(model, move), strict=True):
                    weight.add_(part, alpha=self.scale)
            model.update_ema(0.0)
        return model

    def solve(self, model: Model, given: MethodInputs, gradient: Tensor, count: int, run: Run) -> tuple[Tensor, float]:
        """s, [P], with H from ``count`` batches of R, always the same ones; and the damping that it took."""
        size, damping = given.batch_size(self.batch_size), self.damping

        def product(vector: Tensor) -> Tensor:
            shown = 0

            def value(batch: Batch) -> Tensor:
                nonlocal shown
                shown += len(batch)
                return model.objective.loss(model, batch).per_example.sum()

            batches = islice(given.retain.batches(size, run.rng("curvature")), count)
            curved = hessian_vector(model, batches, value, vector)
            run.training_cost.examples += shown
            return curved / shown + damping * vector

        def watch(number: int, residual: float) -> None:
            run.log_values("conjugate_gradient", {"residual": residual}, number=number)

        while True:
            try:
                return conjugate_gradient(product, gradient, self.iterations, watch=watch), damping
            except NegativeCurvatureError as found:
                run.log_values("not_convex", {"damping": damping, "curvature": found.curvature})
                damping = max(3 * damping, 2 * (damping - found.curvature))
