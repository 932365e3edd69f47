"""NegGrad+: minimize the loss on the retained examples while maximizing it on the forgotten ones.

    L(θ) = β · mean_{x∈R} ℓ(θ; x) - (1 - β) · mean_{x∈F} ℓ(θ; x)

R, F: retained and forgotten examples, in one mixed batch; ℓ: the objective that the checkpoint was trained with.

Source      Kurmanji et al., Towards Unbounded Machine Unlearning, 2023, arXiv 2302.09880 (there as NegGrad+).
Departures  one pass is a pass over R, while F is repeated; a mixed batch holds R and F in the proportion of
            ``batch_size`` to ``forget_batch_size``; keys of forget examples never enter the queue. One forward
            pass (official: one for R and one for F, so that BatchNorm sees them apart); no weight decay on
            one-dimensional weights.
Tests cover a forget set that is never read; β on the wrong side; validation examples among the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.config import Settings
from efface.schema import Count, Share
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class NegGrad(Settings):
    """NegGrad+: the balance β, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    beta: Share = 0.95
    """Weight β of the retained examples, in [0, 1]; 1 is fine-tuning."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: Count = 64
    """Forget examples per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Minimize L on mixed batches, with the rows of R first."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        forget = inputs.forget.cycle(self.forget_batch_size, run.rng("forget"))

        def both(batch: Batch) -> LossTerms:
            forget_batch = next(forget)
            output = model.objective.loss(model, batch + forget_batch)
            retained, forgotten = output.rows(0, len(batch)), output.rows(len(batch))
            terms = {
                "task": self.beta * retained.per_example.mean(),
                "away": -(1 - self.beta) * forgotten.per_example.mean(),
            }
            return LossTerms(terms, retained.carry, extra_examples=len(forget_batch))

        for epoch in range(epochs):
            train_steps(
                model, inputs.retain.batches(size, run.rng("retain", epoch)), both, optimizer, run, phase="mixed"
            )
        return model
