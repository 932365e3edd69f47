"""Selective synaptic dampening: shrink the weights that matter far more for the forgotten examples than for others.

    I_S = mean over S of (∂ℓ/∂θ)²
    θ ← θ · min( strength · I_R / I_F, 1 )    where I_F > alpha · I_R

R, F: retained and forgotten examples; ℓ: the objective that the checkpoint was trained with, or with ``loss_free``
‖f_θ(x)‖², f the model's output. All at the checkpoint as received; nothing is trained.

Source      Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, 2024,
            arXiv 2308.07707; Loss-Free Machine Unlearning, 2024, arXiv 2402.19308.
Departures  F is compared with R, where the paper has all data D = R ∪ F: since I_F <= I_D |D| / |F|, its alpha of 10
            can dampen nothing once a tenth of the data is to be forgotten (``against: data`` has it, and says so).
            A square is shared by ``forget_batch_size`` examples, as many for F as for R, because squares of means
            shrink with their number; each batch of R gives one. Losses are taken among retained examples.
Tests kill  comparing means over unequal numbers; alpha and strength exchanged; weights that grow; a silent no-op.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.training.batch import Batch
from efface.training.gradients import squared_gradients, unflatten_vector
from efface.training.loop import Run
from efface.training.model import Model
from efface.unlearning.protocol import MethodInputs, Needs


class ImportanceReference(StrEnum):
    """Whose importance the forgotten examples' is compared with."""

    RETAIN = "retain"
    DATA = "data"


@dataclass(frozen=True, kw_only=True)
class Ssd:
    """Which weights are dampened, how far, and what counts as important."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN
    exact: ClassVar[bool] = False
    alpha: float = 10.0
    """How many times more important for F than for the others a weight must be; infinity leaves the model as it is."""
    strength: float = 1.0
    """λ: the larger, the less is taken from such a weight."""
    loss_free: bool = False
    """Importance for ‖f(x)‖² instead of the loss: needs no labels and no pairs."""
    against: ImportanceReference = ImportanceReference.RETAIN
    """``retain``, or ``data`` (R and F together)."""
    batch_size: int | None = None
    """Retained examples in a batch; by default the original's."""
    forget_batch_size: int = 64
    """Examples that share one squared gradient; 1: the diagonal of the empirical Fisher information."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Measure, compare, dampen; the twin becomes the dampened network, a queue is left to the purge."""
        with run.timed():
            forget, others = self.importances(model, given, run)
            factor = self.factor(forget, others)
            with torch.no_grad():
                for weight, part in zip(model.trainable_parameters(), unflatten_vector(model, factor), strict=True):
                    weight.mul_(part)
            model.update_ema(0.0)
            run.log_values("dampen", {"share": float((factor < 1).float().mean())})
        return model

    def factor(self, forget: Tensor, others: Tensor) -> Tensor:
        """What each weight is multiplied by, in [0, 1], from both importances, [P]."""
        chosen = forget > self.alpha * others
        return torch.where(chosen, (self.strength * others / torch.where(chosen, forget, 1)).clamp(max=1), 1.0)

    def importances(self, model: Model, given: MethodInputs, run: Run) -> tuple[Tensor, Tensor]:
        """I_F and I_R (or I_D), [P] each."""
        gone, kept = len(given.forget), len(given.retain)
        if self.against is ImportanceReference.DATA and self.alpha * gone >= gone + kept:
            raise EffaceError(
                f"ssd can dampen nothing here: {gone} of {gone + kept} examples are to be forgotten.",
                f"So I_F is at most {(gone + kept) / gone:.3g} I_D for every weight, and alpha is {self.alpha:g}.",
                "Lower method.alpha, or set method.against to retain.",
            )
        size = given.batch_size(self.batch_size)
        steps = given.forget.count_batches(self.forget_batch_size)
        group = -(-gone // steps)
        beside = given.retain.cycle(size, run.rng("beside"))

        def of(batch: Batch) -> Tensor:
            if self.loss_free:
                return model.outputs(batch).square().sum(-1)
            return model.objective.loss(model, batch).per_example

        batches = given.forget.batches(self.forget_batch_size, run.rng("forget"))
        forget = squared_gradients(model, batches, lambda batch: of(batch + next(beside))[: len(batch)].mean())
        batches = given.retain.batches(size + group, run.rng("retain"))
        others = squared_gradients(model, batches, lambda batch: of(batch)[:group].mean())
        if self.against is ImportanceReference.DATA:
            others = (kept * others + gone * forget) / (kept + gone)
        measured = {"forget": float(forget.mean()), self.against.value: float(others.mean())}
        run.log_values("importance", measured, examples=kept + gone + steps * min(size, kept))
        return forget, others
