"""SCRUB: a student that agrees with its teacher everywhere except on the examples to forget.

    forget pass    max_θ  mean_{x∈F}   d(θ₀, θ; x)
    retain pass    min_θ  mean_{x∈R} [ α·d(θ₀, θ; x) + γ·ℓ(θ; x) ]

θ₀: the checkpoint as received. ℓ: the objective it was trained with. d: distance between the outputs of two models for
x (KL at a temperature for classifiers, 1 - cosine for encoders).

Source      Kurmanji et al., Towards Unbounded Machine Unlearning, 2023, arXiv 2302.09880.
Departures  no rewinding; no moving average of the student. The temperature of d is the objective's, 1 by default
            (official: 4, in some runs 2), and the rate 0.01 with a cosine (official: 0.0005, stepwise); an ascent in
            the first two epochs (official: 3). No weight decay on one-dimensional weights.
Tests cover a missing ascent; a teacher that shares storage with the student; a field that is never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from efface.config import Settings
from efface.schema import Count, NotNegative, Whole
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, RequestSizes, disagreement


@dataclass(frozen=True, kw_only=True)
class Scrub(Settings):
    """SCRUB: the weights α and γ, the length of the ascent, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    alpha: NotNegative = 0.5
    """Weight α of agreeing with the teacher on retained examples."""
    gamma: NotNegative = 1.0
    """Weight γ of the task on retained examples."""
    epochs: Count | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 if they are unknown)."""
    ascent_epochs: Whole = 2
    """Number of first epochs in which a pass over F comes before the pass over R."""
    batch_size: Count | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: Count = 64
    """Forget examples per step of ascent."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Alternate passes over F (away from the teacher) and R (towards it)."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        ascents = min(self.ascent_epochs, epochs)
        teacher, optimizer = frozen_copy(model), self.optim.build(model, self.count_steps(inputs.sizes))

        def away(batch: Batch) -> LossTerms:
            return LossTerms({"away": -disagreement(teacher, model, batch).mean()})

        def towards(batch: Batch) -> LossTerms:
            output = model.objective.loss(model, batch)
            return LossTerms(
                {
                    "stay": self.alpha * disagreement(teacher, model, batch).mean(),
                    "task": self.gamma * output.per_example.mean(),
                },
                output.carry,
            )

        for epoch in range(epochs):
            if epoch < ascents:
                batches = inputs.forget.batches(self.forget_batch_size, run.rng("forget", epoch))
                train_steps(model, batches, away, optimizer, run, phase="forget")
            train_steps(
                model, inputs.retain.batches(size, run.rng("retain", epoch)), towards, optimizer, run, phase="retain"
            )
        return model

    def count_steps(self, sizes: RequestSizes) -> int:
        """Passes over R, and over F in the first of them."""
        epochs = sizes.resolve_epochs(self.epochs)
        ascents = min(self.ascent_epochs, epochs) * -(-sizes.forget // self.forget_batch_size)
        return epochs * -(-sizes.retain // sizes.batch_size(self.batch_size)) + ascents
