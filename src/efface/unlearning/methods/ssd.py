"""Selective synaptic dampening: shrink the weights that matter far more for the forgotten examples than for others.

    I_S = mean over S of (∂ℓ/∂θ)²
    θ ← θ · min( strength · I_R / I_F, 1 )    where I_F > alpha · I_R

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with, or with ``loss_free``
‖f_θ(x)‖², f the model's output. All at the checkpoint as received; nothing is trained.

Source      Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, 2024,
            arXiv 2308.07707; Loss-Free Machine Unlearning, 2024, arXiv 2402.19308.
Departures  F is compared with R, where the paper and its code have all data D = R ∪ F (``against: data``). One square
            is taken over the mean gradient of ``forget_batch_size`` examples, as many for F as for the reference,
            because squares of means shrink with their number; the official code takes whole batches of both, however
            few F has. At most ``slices`` squares are averaged for the reference, where the official code reads all of
            D. BatchNorm statistics are frozen. Losses are computed in batches with retained examples.
Tests cover means over unequal numbers that are compared; a reference of some rows of each batch alone; alpha and
            strength swapped; weights that grow; an option given as text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.schema import Count, NotNegative, Threshold
from efface.training.batch import Batch
from efface.training.gradients import squared_gradients, unflatten_vector
from efface.training.loop import Run
from efface.training.model import Model
from efface.unlearning.protocol import MethodInputs, Needs


class ImportanceReference(StrEnum):
    """What the importance for the forgotten examples is compared with."""

    RETAIN = "retain"
    DATA = "data"


@dataclass(frozen=True, kw_only=True)
class Ssd(Settings):
    """SSD: which weights are dampened, how much, and how importance is measured."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    alpha: Threshold = 10.0
    """How many times more important for F than for the others a weight must be; infinity leaves the model as it is."""
    strength: NotNegative = 1.0
    """λ: the larger, the less such a weight is dampened."""
    loss_free: bool = False
    """Importance for ‖f(x)‖² instead of the loss; needs neither labels nor pairs."""
    against: ImportanceReference = ImportanceReference.RETAIN
    """``retain``, or ``data`` (R and F together)."""
    batch_size: Count | None = None
    """Retained examples in a batch; by default the original's."""
    forget_batch_size: Count = 64
    """Examples per squared gradient; 1: the diagonal of the empirical Fisher information."""
    slices: Count = 256
    """Most squared gradients of the reference; 256 are known to 9 % of their mean, at two passes of a batch each."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Measure importances, compare them and dampen.

        A momentum encoder is set to the new weights; a queue of keys stays, and is purged after unlearning.
        """
        with run.timed():
            forget, reference = self.importances(model, inputs, run)
            factor = self.factor(forget, reference)
            with torch.no_grad():
                for weight, factors in zip(model.trainable_parameters(), unflatten_vector(model, factor), strict=True):
                    weight.mul_(factors)
            model.update_ema(0.0)
            run.log_values("dampen", {"share": float((factor < 1).float().mean())})
        return model

    def factor(self, forget: Tensor, reference: Tensor) -> Tensor:
        """Factor of each weight, in [0, 1], from its importance for F and for the reference, [P] each."""
        chosen = forget > self.alpha * reference
        return torch.where(chosen, (self.strength * reference / torch.where(chosen, forget, 1)).clamp(max=1), 1.0)

    def importances(self, model: Model, inputs: MethodInputs, run: Run) -> tuple[Tensor, Tensor]:
        """I_F and I_R (or I_D), [P] each."""
        size, reference = inputs.batch_size(self.batch_size), inputs.retain
        steps = inputs.forget.count_batches(self.forget_batch_size)
        group = -(-len(inputs.forget) // steps)
        if self.against is ImportanceReference.DATA:
            reference = replace(reference, ids=torch.cat([inputs.retain.ids, inputs.forget.ids]), name="data")
        retain, shown = inputs.retain.cycle(size, run.rng("beside")), 0

        def values(batch: Batch) -> Tensor:
            nonlocal shown
            shown += len(batch)
            if self.loss_free:
                return model.outputs(batch).square().sum(-1)
            return model.objective.loss(model, batch).per_example

        def of_forget(batch: Batch) -> Tensor:
            return values(batch + next(retain))[: len(batch)].mean()

        def of_reference(batch: Batch) -> Tensor:
            parts = values(batch).tensor_split(max(1, round(len(batch) / group)))
            return torch.stack([part.mean() for part in parts])

        batches = inputs.forget.batches(self.forget_batch_size, run.rng("forget"))
        forget = squared_gradients(model, batches, of_forget)
        batches = reference.batches(size + group, run.rng("retain"))
        others = squared_gradients(model, batches, of_reference, self.slices)
        measured = {"forget": float(forget.mean()), self.against.value: float(others.mean())}
        run.log_values("importance", measured, examples=shown)
        return forget, others
