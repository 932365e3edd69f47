"""The method protocol, and what several methods say in one line."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

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
    return model.objective.distance(teacher(batch.view(0)), model(batch.view(0)))
