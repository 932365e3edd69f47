"""PURGE: make forgotten examples look like the average retained one, along directions that do not hurt the retained.

    g_F = ∇ ( mean_{x∈F} KL( p ‖ f_θ(x) ) + erase · mean_{x∈F} | z_θ(x) - mean_{x'∈batch of R} z_θ(x') |² )
    g_R = ∇ mean_{x∈batch of R} ( ℓ(θ; x) + distill · T² · KL( f_θ₀(x)^{1/T} ‖ f_θ(x)^{1/T} ) )
    step along  g_F - ⟨g_F, g_R⟩ / |g_R|² · g_R   if ⟨g_F, g_R⟩ < 0,   else along g_F

R, F: retained and forgotten examples; f: class probabilities, with ^{1/T} of the logits over T; p: mean of f_θ₀ over R;
z: the backbone's features, with |·|² a mean over their entries; θ₀: the checkpoint as received. It ends after a pass
over F when accuracy on F is at most 1 / classes (if F shares its classes with R: at most accuracy on unseen examples),
or when the mean loss of R is more than ``budget`` times as large as before.

Source      Jawandhia et al., PURGE: Projected Unlearning via Retain-Guided Erasure, 2026, arXiv 2606.03808.
Departures  one of its three objectives, the one that its results are made with (``kl_retain``); no gate on the entropy
            (off in its settings). Defaults are those of its settings for CIFAR-10; its command line has others. z is
            one layer (official: the outputs of the last two stages of a ResNet as well). p and the loss of R are
            measured on at most 2 000 retained examples (official: all), on un-augmented images; accuracy is measured
            after each pass (official: also every 50 batches). For F of retained classes the official code ends at
            1 / classes too, which makes single examples stand out. No weight decay on one-dimensional weights.
Tests cover a projection of gradients that agree; a retained gradient that is added where nothing is projected; running
            statistics that move; a target from F; KL the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, NotNegative, Positive, Threshold
from efface.training.batch import Batch, LossTerms
from efface.training.gradients import compute_gradient
from efface.training.loop import Run, frozen_copy, train_steps
from efface.training.model import Model, frozen_statistics
from efface.training.optim import Optim, Schedule
from efface.unlearning.predictions import measure_accuracy, measure_prediction
from efface.unlearning.protocol import MethodInputs, Needs, RequestSizes

MOST_MEASURED = 2000
"""Most retained examples on which the target and the budget are measured."""
SHORT = 1e-12
"""A squared gradient of R below this is none: nothing is projected."""


@dataclass(frozen=True, kw_only=True)
class Purge(Settings):
    """PURGE: the weights of its terms, when it ends, and learning rate."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.VALID | Needs.LABELS
    exact: ClassVar[bool] = False
    erase: NotNegative = 0.05
    """Weight of bringing the features of F to those of R."""
    distill: NotNegative = 2.0
    """Weight of the teacher in the direction that is protected."""
    temperature: Positive = 4.0
    """Temperature T of the teacher."""
    budget: Threshold = 5.0
    """How many times its first value the mean loss of R may reach."""
    epochs: Count = 15
    """Most passes over F."""
    batch_size: Count = 128
    """Examples of F, and of R, per step."""
    optim: Optim = field(default_factory=lambda: Optim(lr=5e-4, clip=1.0, schedule=Schedule.CONSTANT))
    """Optimizer."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Train in passes over F, each step with a batch of R, until accuracy has come down or R has lost too much."""
        forget, retain, teacher = inputs.forget, inputs.retain, frozen_copy(model)
        shown = replace(
            retain, ids=retain.ids[torch.randperm(len(retain), generator=run.rng("measured"))[:MOST_MEASURED]]
        )
        whole_class = inputs.forgets_whole_classes
        with run.timed():
            target, first = measure_prediction(model, shown)
        retained = retain.cycle(self.batch_size, run.rng("retain"))
        optimizer = self.optim.build(model, self.count_steps(inputs.sizes))

        def terms(batch: Batch) -> LossTerms:
            beside = next(retained)
            return LossTerms(self.terms(teacher, model, batch, beside, target), extra_examples=len(beside))

        for epoch in range(self.epochs):
            batches = forget.batches(self.batch_size, run.rng("forget", epoch))
            train_steps(model, batches, terms, optimizer, run, phase="project")
            with run.timed():
                accuracy, classes = measure_accuracy(model, forget)
                bound = 1 / classes if whole_class else measure_accuracy(model, inputs.valid)[0]
                lost = measure_prediction(model, shown)[1] / max(first, 1e-12)
            accuracy, bound, lost = run.world.agree((accuracy, bound, lost))  # all processes stop together
            met = accuracy <= bound or lost > self.budget
            seen = len(forget) + len(shown) + (0 if whole_class else len(inputs.valid))
            measured = {"accuracy": accuracy, "bound": bound, "loss of R": lost}
            run.log_values("stop_rule", measured, examples=seen, met=met)
            if met:
                break
        return model

    def count_steps(self, sizes: RequestSizes) -> int:
        """The most steps: all passes over F."""
        return self.epochs * -(-sizes.forget // self.batch_size)

    def terms(
        self, teacher: Model, model: Model, forgotten: Batch, retained: Batch, target: Tensor
    ) -> dict[str, Tensor]:
        """Terms whose gradient is the projected one: those of F, and the protected loss of R times -⟨g_F, g_R⟩/|g_R|².

        Args:
            teacher: θ₀.
            model: θ.
            forgotten: Rows of F.
            retained: Rows of R.
            target: p, [C].

        """
        joint, cut = (forgotten + retained).view(0), len(forgotten)
        with frozen_statistics(model):
            z = model.features(joint)
            logits = model.project(z)
        with torch.no_grad():
            known = teacher(joint[cut:])
        entropy = torch.special.xlogy(target, target).sum()
        losses = {
            "forget": entropy - (target * logits[:cut].log_softmax(-1)).sum(-1).mean(),
            "erase": self.erase * (z[:cut] - z[cut:].mean(0).detach()).square().mean(),
        }
        kept, heat = logits[cut:], self.temperature
        agree = F.kl_div((kept / heat).log_softmax(-1), (known / heat).softmax(-1), reduction="batchmean") * heat**2
        protected = F.cross_entropy(kept, retained.labels()) + self.distill * agree
        away = compute_gradient(model, torch.stack(list(losses.values())).sum(), keep=True)
        home = compute_gradient(model, protected, keep=True)
        against, length = (-(away @ home)).clamp_min(0), home @ home
        share = torch.where(length > SHORT, against / length.clamp_min(SHORT), 0.0)
        return losses | {"project": share * protected}
