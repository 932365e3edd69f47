"""Bad teacher: agree with the checkpoint on retained examples, and with an untrained network on forgotten ones.

    L(θ) = mean_{x∈R} d(θ₀, θ; x) + weight · mean_{x∈F} d(θ_bad, θ; x)

R, F: retained and forgotten examples; θ₀: the checkpoint as received; θ_bad: a network with random weights; d: distance
between the outputs of two models for x (KL at a temperature for classifiers, 1 - cosine for encoders).

Source      Chundawat et al., Can Bad Teaching Induce Forgetting?, 2023, arXiv 2205.08096.
Departures  all of R, not a third of it; one batch of R and one of F per step; no task loss, and so no labels. Each term
            is a mean over its own examples; the official loss is one mean over all examples and the C classes, so that
            its rate corresponds to one that is C times lower. No weight decay on one-dimensional weights. θ_bad is
            built from the original's recipe, but with another seed; if no recipe is known, it is a copy in which every
            weight tensor is drawn from a normal distribution with the tensor's own mean and standard deviation.
Tests cover a bad teacher that is the checkpoint, or changes; teachers swapped; the original's initialization as θ_bad.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from efface.config import Settings
from efface.schema import Count, NotNegative
from efface.training.batch import Batch, LossTerms
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.training.random_start import require_random_start
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Settings):
    """Bad teacher: the weight of the bad teacher, length and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    weight: NotNegative = 1.0
    """Weight of agreeing with the bad teacher on forget examples."""
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
        good, bad = frozen_copy(model), self.build_bad_teacher(model, inputs, run)
        forget = inputs.forget.cycle(self.forget_batch_size, run.rng("forget"))

        def terms(batch: Batch) -> LossTerms:
            forget_batch = next(forget)
            targets = torch.cat([good.outputs(batch), bad.outputs(forget_batch)])
            distances = model.objective.distance(targets, model.outputs(batch + forget_batch))
            stay, astray = distances[: len(batch)].mean(), self.weight * distances[len(batch) :].mean()
            return LossTerms({"stay": stay, "astray": astray}, extra_examples=len(forget_batch))

        for epoch in range(epochs):
            train_steps(
                model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run, phase="mixed"
            )
        return model

    def build_bad_teacher(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """θ_bad, frozen: a fresh start of the recipe or, without a recipe, a copy with redrawn weights."""
        rng = run.rng("bad teacher")
        if inputs.original_recipe is not None:
            require_random_start(inputs.original_recipe)
            fresh = inputs.original_recipe.start(rng.initial_seed()).to(run.device)
            fresh.bf16, fresh.world = model.bf16, model.world  # both teachers compute as the model does
            return frozen_copy(fresh)
        return frozen_copy(redraw_weights(model, rng))


@torch.no_grad()
def redraw_weights(model: Model, rng: torch.Generator) -> Model:
    """A copy with random weights that have the mean and standard deviation of each weight tensor of ``model``."""
    fresh = copy.deepcopy(model)
    for weight in fresh.parameters():
        noise = torch.randn(weight.shape, generator=rng).to(weight)
        weight.copy_(weight.mean() + weight.std(correction=0) * noise)
    for module in fresh.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return fresh
