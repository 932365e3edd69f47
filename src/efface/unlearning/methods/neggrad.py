"""NegGrad+: descend on the retained examples while climbing on the forgotten ones.

    L(θ) = β · mean_{x∈R} ℓ(θ; x) - (1 - β) · mean_{x∈F} ℓ(θ; x)

R, F: retained and forgotten examples, in one mixed batch; ℓ: the objective that the checkpoint was trained with.

Source      Kurmanji et al., Towards Unbounded Machine Unlearning, 2023, arXiv 2302.09880 (there as NegGrad+).
Departures  one pass is a pass over R, with F cycling beside it; a mixed batch holds R and F in the proportion of
            ``batch_size`` to ``forget_batch_size``; keys of forget examples never enter the queue.
Tests kill  a forget set that is never read; β on the wrong side; validation examples among the data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class NegGrad:
    """The balance β, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    beta: float = 0.95
    """Weight β of the retained examples, in [0, 1]; 1 is fine-tuning."""
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: int = 64
    """Forget examples per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Descend on mixed batches, R's rows first."""
        epochs, size = given.resolve_epochs(self.epochs), given.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * given.retain.count_batches(size))
        forget = given.forget.cycle(self.forget_batch_size, run.rng("forget"))

        def both(batch: Batch) -> LossTerms:
            other = next(forget)
            outcome = model.objective.loss(model, batch + other)
            kept, gone = outcome.rows(0, len(batch)), outcome.rows(len(batch))
            terms = {
                "task": self.beta * kept.per_example.mean(),
                "away": -(1 - self.beta) * gone.per_example.mean(),
            }
            return LossTerms(terms, kept.carry, extra_examples=len(other))

        for epoch in range(epochs):
            train_steps(
                model, given.retain.batches(size, run.rng("retain", epoch)), both, optimizer, run, phase="mixed"
            )
        return model
