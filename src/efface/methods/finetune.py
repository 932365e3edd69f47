"""Fine-tuning: train on with the retained examples, and hope that the others fade.

    L(θ) = mean_{x∈R} ℓ(θ; x)

R: retained examples; ℓ: the objective that the checkpoint was trained with.

Source      the oldest baseline of the field; see Golatkar et al., 2020, arXiv 1911.04933.
Departures  epochs and batch size default to a twentieth of the original's epochs and to its batch size.
Tests kill  forget examples in the data; a changed objective.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.methods.protocol import task
from efface.model import Model
from efface.train import Optim, Run, descend
from efface.types import Given, Needs


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Length and learning rate."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01))
    """Optimizer."""

    def unlearn(self, model: Model, given: Given, run: Run) -> Model:
        """Descend on the retained examples."""
        epochs, size = given.length(self.epochs), given.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * given.retain.steps(size))
        for epoch in range(epochs):
            descend(model, given.retain.batches(size, run.rng("retain", epoch)), task(model), optimizer, run)
        return model
