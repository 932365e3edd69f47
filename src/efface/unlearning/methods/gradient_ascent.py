"""Gradient ascent: maximize the loss of the examples to forget.

    L(θ) = - mean_{x∈F} ℓ(θ; x)

F: examples to forget; ℓ: the objective that the checkpoint was trained with. The loss is unbounded, so a large step
destroys the model: the learning rate is tiny, and a loss that is no longer finite stops the run.

Source      Thudi et al., Unrolling SGD, 2021, arXiv 2109.13398, and every comparison since.
Departures  keys of forget examples never enter the queue.
Tests cover descent instead of ascent; a silent NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.config import Settings
from efface.schema import Count
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim, Schedule
from efface.unlearning.protocol import MethodInputs, Needs, RequestSizes


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Settings):
    """Gradient ascent: length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET
    exact: ClassVar[bool] = False
    epochs: Count = 5
    """Passes over F."""
    batch_size: Count | None = None
    """Examples per step; by default the original's."""
    optim: Optim = field(
        default_factory=lambda: Optim(lr=1e-4, momentum=0.9, weight_decay=0.0, schedule=Schedule.CONSTANT)
    )
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Maximize the task loss on the examples to forget."""
        size = inputs.batch_size(self.batch_size)
        optimizer = self.optim.build(model, self.count_steps(inputs.sizes))

        def away(batch: Batch) -> LossTerms:
            return LossTerms({"away": -model.objective.loss(model, batch).per_example.mean()})

        for epoch in range(self.epochs):
            batches = inputs.forget.batches(size, run.rng("forget", epoch))
            train_steps(model, batches, away, optimizer, run, phase="forget")
        return model

    def count_steps(self, sizes: RequestSizes) -> int:
        """Passes over F."""
        return self.epochs * -(-sizes.forget // sizes.batch_size(self.batch_size))
