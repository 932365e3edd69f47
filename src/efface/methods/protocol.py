"""The method protocol, and what several methods say in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from efface.gradients import gradient, smooth
from efface.model import Model
from efface.train import Run, Terms
from efface.types import Batch, Given, Needs, Step


class Method(Protocol):
    """A frozen dataclass of hyper-parameters with one verb.

    ``unlearn`` may change the model that it is given: whoever calls it hands it a copy.
    """

    needs: ClassVar[Needs]
    """What it must be given; anything else is unreachable from it."""
    exact: ClassVar[bool]
    """Whether the result never saw the forget set (retraining), so that it may serve as an oracle."""

    def unlearn(self, model: Model, given: Given, run: Run) -> Model:
        """The unlearned model."""
        ...


def task(model: Model) -> Terms:
    """Minimize the objective that the model was trained with; its keys may enter the queue."""

    def terms(batch: Batch) -> Step:
        outcome = model.objective.loss(model, batch)
        return Step({"task": outcome.per_example.mean()}, outcome.carry)

    return terms


def disagreement(teacher: Model, model: Model, batch: Batch) -> Tensor:
    """How far the model is from its teacher on the first view of each example, [B] >= 0."""
    return model.objective.distance(teacher.outputs(batch), model.outputs(batch))


def mislead(model: Model, forget: Iterator[Batch], weight: float, few: int, rng: torch.Generator) -> Terms:
    """The task on R, and ``weight`` times the task on F with wrong targets.

    F is scrambled together with the first ``few`` of the retained examples, so that a wrong label can be one that F
    does not have and a single forgotten example finds another image; only F's own loss is taken of that batch.
    """

    def terms(batch: Batch) -> Step:
        gone, some = next(forget), batch.rows(0, few)
        outcome = model.objective.loss(model, batch)
        wrong = model.objective.loss(model, model.objective.scramble(some + gone, rng)).rows(len(some))
        losses = {"task": outcome.per_example.mean(), "wrong": weight * wrong.per_example.mean()}
        return Step(losses, outcome.carry, also=len(gone))

    return terms


def among(model: Model, gone: Batch, kept: Batch) -> Tensor:
    """Loss of each forgotten example in one batch with retained ones, [B]: contrastive losses need company."""
    return model.objective.loss(model, gone + kept).per_example[: len(gone)]


def forget_gradient(model: Model, given: Given, size: int, few: int, run: Run) -> Tensor:
    """∂ Σ_F ℓ / ∂θ, [P]: ``few`` forgotten examples at a time, each batch beside ``size`` retained ones."""
    kept = given.retain.cycle(size, run.rng("beside"))
    total, loss, shown = torch.zeros(sum(w.numel() for w in model.own()), device=run.device), 0.0, 0
    with smooth(model):
        for gone in given.forget.batches(few, run.rng("gradient")):
            company = next(kept)
            value = among(model, gone, company).sum()
            total += gradient(model, value)
            loss, shown = loss + float(value.detach()), shown + len(gone) + len(company)
    run.note("gradient", {"forget": loss / len(given.forget)}, examples=shown)
    return total
