"""SalUn: random labels, but only on the weights that matter most for the examples to forget.

    m = 1 where | ∂/∂θ Σ_{x∈F} ℓ(θ₀; x) | is among the largest ``keep`` of all weights, else 0
    L(θ) = mean_{x∈R} ℓ(θ; x) + weight · mean_{x∈F} ℓ(θ; x̃)          over m ∘ θ; (1 - m) ∘ θ stays θ₀

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with; x̃: x with a wrong target;
θ₀: the checkpoint as received. Weights off the mask are restored after every update, bit for bit.

Source      Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, 2024, arXiv 2310.12508.
Departures  both terms in one step, as in ``random_labels``; saliency with frozen BatchNorm statistics and retained
            examples in the batch. The official code goes over F with random labels, the right one among them, and then
            over R. No weight decay on one-dimensional weights. Running statistics are not weights: they may change.
Tests cover a threshold per layer; a mask undone by momentum or weight decay; the smallest gradients selected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from efface.config import Settings
from efface.schema import Count, NotNegative, SomeShare
from efface.training.gradients import unflatten_vector
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.optim import Optim
from efface.unlearning.protocol import MethodInputs, Needs, forget_gradient, wrong_target_loss


@dataclass(frozen=True, kw_only=True)
class SalUn(Settings):
    """SalUn: the share of weights that may change, and the settings of random labels."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    keep: SomeShare = 0.5
    """Share of all weights that may change, in (0, 1]; 1 is random labels."""
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
        """Compute the mask, then minimize L with one batch of R and one of F per step."""
        epochs, size = inputs.resolve_epochs(self.epochs), inputs.batch_size(self.batch_size)
        with run.timed():
            gradient = forget_gradient(model, inputs, size, self.forget_batch_size, run)
            only = self.mask(model, gradient, run)
        optimizer = self.optim.build(model, epochs * inputs.retain.count_batches(size))
        forget = inputs.forget.cycle(self.forget_batch_size, run.rng("forget"))
        terms = wrong_target_loss(model, forget, self.weight, self.forget_batch_size, run.rng("wrong"))
        for epoch in range(epochs):
            train_steps(model, inputs.retain.batches(size, run.rng("retain", epoch)), terms, optimizer, run, only=only)
        return model

    def mask(self, model: Model, gradient: Tensor, run: Run) -> dict[nn.Parameter, Tensor]:
        """Boolean mask of the weights that may change, by weight tensor; ``gradient``: of all weights, [P]."""
        count = max(1, round(self.keep * len(gradient)))
        largest = gradient.abs().topk(count)
        chosen = torch.zeros_like(gradient, dtype=torch.bool)
        chosen[largest.indices] = True
        run.log_values("saliency", {"share": count / len(gradient), "threshold": float(largest.values[-1])})
        return dict(zip(model.trainable_parameters(), unflatten_vector(model, chosen), strict=True))
