"""Bad teacher: agree with the checkpoint on the retained examples, and with a model that knows nothing on the others.

    L(θ) = mean_{x∈R} d(θ₀, θ; x) + weight · mean_{x∈F} d(θ_bad, θ; x)

R, F: retained and forgotten examples; θ₀: the checkpoint as received; θ_bad: a network with random weights; d: how far
two models disagree about x (KL at a temperature for classifiers, 1 - cosine for encoders).

Source      Chundawat et al., Can Bad Teaching Induce Forgetting?, 2023, arXiv 2205.08096.
Departures  all of R, not a third of it; one batch of R and one of F per step; no term of the task, and so no labels.
            θ_bad starts from the original's recipe, but not from its seed; where no recipe is known, every weight
            tensor of a copy is drawn anew from a normal distribution with the tensor's own mean and deviation.
Tests kill  a bad teacher that is the checkpoint, or moves; teachers exchanged; the original's own start as θ_bad.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class BadTeacher:
    """The weight of the bad teacher, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    weight: float = 1.0
    """Weight of agreeing with the bad teacher on forget examples."""
    epochs: int | None = None
    """Passes over R; by default a twentieth of the original's epochs (10 where they are unknown)."""
    batch_size: int | None = None
    """Retained examples per step; by default the original's."""
    forget_batch_size: int = 64
    """Forget examples per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=0.01, clip=5.0))
    """Optimizer."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Follow both teachers on mixed batches, R's rows first."""
        epochs, size = given.resolve_epochs(self.epochs), given.batch_size(self.batch_size)
        optimizer = self.optim.build(model, epochs * given.retain.count_batches(size))
        good, bad = frozen_copy(model), self.build_bad_teacher(model, given, run)
        forget = given.forget.cycle(self.forget_batch_size, run.rng("forget"))

        def terms(batch: Batch) -> LossTerms:
            gone = next(forget)
            wanted = torch.cat([good.outputs(batch), bad.outputs(gone)])
            apart = model.objective.distance(wanted, model.outputs(batch + gone))
            stay, astray = apart[: len(batch)].mean(), self.weight * apart[len(batch) :].mean()
            return LossTerms({"stay": stay, "astray": astray}, extra_examples=len(gone))

        for epoch in range(epochs):
            train_steps(
                model, given.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run, phase="mixed"
            )
        return model

    def build_bad_teacher(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """θ_bad: frozen, from the recipe's own initialization or, without a recipe, from redrawn weights."""
        rng = run.rng("bad teacher")
        if given.original_recipe is not None:
            return frozen_copy(given.original_recipe.start(rng.initial_seed()).to(run.device))
        return frozen_copy(redraw_weights(model, rng))


@torch.no_grad()
def redraw_weights(model: Model, rng: torch.Generator) -> Model:
    """A copy that keeps each weight tensor's mean and deviation, and nothing else of what it learned."""
    fresh = copy.deepcopy(model)
    for weight in fresh.parameters():
        noise = torch.randn(weight.shape, generator=rng).to(weight)
        weight.copy_(weight.mean() + weight.std(correction=0) * noise)
    for module in fresh.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return fresh
