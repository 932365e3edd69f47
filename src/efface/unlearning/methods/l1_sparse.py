"""ℓ₁-sparse unlearning: fine-tuning that also shrinks the weights, so that what R does not need falls away.

    L_s(θ) = mean_{x∈R} ℓ(θ; x) + weight · (1 - s/S) · ‖θ‖₁,    s = 0, 1, ... S-1

R: retained examples; ℓ: the objective that the checkpoint was trained with; s: number of the step, of S.

Source      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023, arXiv 2304.04934.
Departures  every trained weight is counted, normalization layers and biases too; the twin is not.
Tests kill  a penalty that never decays, or never starts; at weight 0 anything but fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class L1Sparse:
    """The penalty, length and learning rate."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False
    weight: float = 1e-4
    """Weight of ‖θ‖₁ at the first step; 0 is fine-tuning."""
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01))
    """Optimizer."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Descend on the retained examples and the fading penalty."""
        epochs, size = given.resolve_epochs(self.epochs), given.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * given.retain.count_batches(size))

        def terms(batch: Batch) -> LossTerms:
            outcome = model.objective.loss(model, batch)
            length = torch.stack([weight.abs().sum() for weight in model.trainable_parameters()]).sum()
            left = 1 - optimizer.taken / optimizer.steps
            return LossTerms(
                {"task": outcome.per_example.mean(), "sparse": self.weight * left * length},
                outcome.carry,
            )

        for epoch in range(epochs):
            train_steps(model, given.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model
