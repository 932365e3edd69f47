"""Fine-tuning: train on with the retained examples, and hope that the others fade.

    L(θ) = mean_{x∈R} ℓ(θ; x)

R: retained examples; ℓ: the objective that the checkpoint was trained with.

Source      the oldest baseline of the field; see Golatkar et al., 2020, arXiv 1911.04933.
Departures  epochs and batch size default to a twentieth of the original's epochs and to its batch size. A gradient
            longer than 5 is shortened: the sharp temperature of an image-text model makes some that ruin it at once.
Tests cover forget examples in the data; a changed objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.config import Settings
from efface.schema import Count
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, task_loss


@dataclass(frozen=True, kw_only=True)
class Finetune(Settings):
    """Fine-tuning: length and learning rate."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize the task loss on the retained examples."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), task_loss(model), optimizer, run)
        return model
