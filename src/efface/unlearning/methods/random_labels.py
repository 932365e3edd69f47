"""Random labels: train on wrong targets for the forgotten examples and on the right ones for the others.

    L(θ) = mean_{x∈R} ℓ(θ; x) + weight · mean_{x∈F} ℓ(θ; x̃)

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with; x̃: x with a wrong target,
drawn anew each time (another label; for encoders another image's view as the positive).

Source      Golatkar et al., 2020, arXiv 1911.04933 (as a baseline); Graves et al., Amnesiac Machine Learning, 2021,
            arXiv 2010.10981.
Departures  both terms in one step, not a pass over F before the pass over R: the same length as fine-tuning. Wrong
            targets come from F and R alike, so that a whole class can be forgotten; the paper draws labels once. No
            weight decay on one-dimensional weights.
Tests cover a class forgotten with its own label; a single example without a wrong target; a forget set never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.config import Settings
from efface.schema import Count, NotNegative
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, wrong_target_loss


@dataclass(frozen=True, kw_only=True)
class RandomLabels(Settings):
    """Random labels: the weight of the wrong targets, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    weight: NotNegative = 0.25
    """Weight of the wrong targets; with the default batch sizes every example counts the same."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: Count = 64
    """Forget examples per step, and retained ones that they draw wrong targets from."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L with one batch of R and one of F per step."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        forget = inputs.forget.cycle(self.forget_batch_size, run.rng("forget"))
        terms = wrong_target_loss(model, forget, self.weight, self.forget_batch_size, run.rng("wrong"))
        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run)
        return model
