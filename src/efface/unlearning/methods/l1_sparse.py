"""ℓ₁-sparse unlearning: fine-tune while shrinking the weights, so that those that R does not need vanish.

    L_s(θ) = mean_{x∈R} ℓ(θ; x) + weight · (1 - s/S) · ‖θ‖₁,    s = 0, 1, ... S-1

R: retained examples; ℓ: the objective that the checkpoint was trained with; s: number of the step, of S.

Source      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023, arXiv 2304.04934.
Departures  every trained weight is penalized, also those of normalization layers and biases, as in the official code; a
            momentum encoder is not. The penalty falls with each step (official: with each epoch); no weight decay on
            one-dimensional weights. Epochs default to a twentieth of the original's (official: 10 at the same rate,
            of 182), which on few images is far less training. Gradients longer than 5 are shortened.
Tests cover a penalty that never decays, or never starts; anything but fine-tuning at weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from efface.config import Settings
from efface.schema import Count, NotNegative
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class L1Sparse(Settings):
    """ℓ₁-sparse unlearning: the penalty, length and learning rate."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False
    weight: NotNegative = 1e-4
    """Weight of ‖θ‖₁ at the first step; 0 is fine-tuning."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize the task loss on the retained examples plus the decaying penalty."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))

        def terms(batch: Batch) -> LossTerms:
            output = model.objective.loss(model, batch)
            l1_norm = torch.stack([weight.abs().sum() for weight in model.trainable_parameters()]).sum()
            decay = 1 - optimizer.taken / optimizer.steps
            return LossTerms(
                {"task": output.per_example.mean(), "sparse": self.weight * decay * l1_norm},
                output.carry,
            )

        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model
