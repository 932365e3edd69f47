"""The method protocol, and what several methods say in one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms, Subset
from efface.training.gradients import compute_gradient, differentiable_twice
from efface.training.loop import LossTermsFunction, Run
from efface.training.model import Model
from efface.training.recipe import Recipe


class Method(Protocol):
    """A frozen dataclass of hyper-parameters with one verb.

    ``unlearn`` may change the model that it is given: whoever calls it hands it a copy.
    """

    needs: ClassVar[Needs]
    """What it must be given; anything else is unreachable from it."""
    exact: ClassVar[bool]
    """Whether the result never saw the forget set (retraining), so that it may serve as an oracle."""

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """The unlearned model."""
        ...


def task_loss(model: Model) -> LossTermsFunction:
    """Minimize the objective that the model was trained with; its keys may enter the queue."""

    def terms(batch: Batch) -> LossTerms:
        outcome = model.objective.loss(model, batch)
        return LossTerms({"task": outcome.per_example.mean()}, outcome.carry)

    return terms


def disagreement(teacher: Model, model: Model, batch: Batch) -> Tensor:
    """How far the model is from its teacher on the first view of each example, [B] >= 0."""
    return model.objective.distance(teacher.outputs(batch), model.outputs(batch))


def wrong_target_loss(
    model: Model, forget: Iterator[Batch], weight: float, few: int, rng: torch.Generator
) -> LossTermsFunction:
    """The task on R, and ``weight`` times the task on F with wrong targets.

    F is scrambled together with the first ``few`` of the retained examples, so that a wrong label can be one that F
    does not have and a single forgotten example finds another image; only F's own loss is taken of that batch.
    """

    def terms(batch: Batch) -> LossTerms:
        gone, some = next(forget), batch.rows(0, few)
        outcome = model.objective.loss(model, batch)
        wrong = model.objective.loss(model, model.objective.corrupt_targets(some + gone, rng)).rows(len(some))
        losses = {"task": outcome.per_example.mean(), "wrong": weight * wrong.per_example.mean()}
        return LossTerms(losses, outcome.carry, extra_examples=len(gone))

    return terms


def loss_among_retained(model: Model, gone: Batch, kept: Batch) -> Tensor:
    """Loss of each forgotten example in one batch with retained ones, [B]: contrastive losses need company."""
    return model.objective.loss(model, gone + kept).per_example[: len(gone)]


def forget_gradient(model: Model, given: MethodInputs, size: int, few: int, run: Run) -> Tensor:
    """∂ Σ_F ℓ / ∂θ, [P]: ``few`` forgotten examples at a time, each batch beside ``size`` retained ones."""
    kept = given.retain.cycle(size, run.rng("beside"))
    total, loss, shown = torch.zeros(sum(w.numel() for w in model.trainable_parameters()), device=run.device), 0.0, 0
    with differentiable_twice(model):
        for gone in given.forget.batches(few, run.rng("gradient")):
            company = next(kept)
            value = loss_among_retained(model, gone, company).sum()
            total += compute_gradient(model, value)
            loss, shown = loss + float(value.detach()), shown + len(gone) + len(company)
    run.log_values("gradient", {"forget": loss / len(given.forget)}, examples=shown)
    return total


class Needs(Flag):
    """What a method must be given. Whatever it does not declare is unreachable from it."""

    NOTHING = 0
    FORGET = auto()
    """The examples to forget."""
    RETAIN = auto()
    """The other training examples."""
    VALID = auto()
    """Examples of the same source that were never trained on (never the audit's own)."""
    LABELS = auto()
    """A label for every example it is given, and a classifier: a checkpoint whose objective reads labels."""
    RECIPE = auto()
    """How the original was trained: retraining starts from the same recipe."""
    ATTENTION = auto()
    """A transformer whose attention maps can be read."""
    PAIRS = auto()
    """An encoder that was trained by comparing pairs: see :meth:`ObjectiveOption.contrastive_terms`."""

    def names(self) -> list[str]:
        """The declared needs in lower case, in the order above."""
        return [str(need.name).lower() for need in type(self) if need in self and need.value]


@dataclass(frozen=True, eq=False)
class MethodInputs:
    """What a method may see: the parts it declared in ``needs``; asking for another is an error."""

    needs: Needs
    parts: dict[str, Subset]
    original_recipe: Recipe | None = None

    def _part(self, name: str, need: Needs) -> Subset:
        if need not in self.needs or name not in self.parts:
            raise EffaceError(
                f"This method asked for the '{name}' examples without declaring that it needs them.",
                f"It declared: {', '.join(self.needs.names()) or 'nothing'}.",
                f"Add Needs.{need.name} to the method's `needs`.",
            )
        return self.parts[name]

    @property
    def forget(self) -> Subset:
        """The examples to forget."""
        return self._part("forget", Needs.FORGET)

    @property
    def retain(self) -> Subset:
        """The other training examples."""
        return self._part("retain", Needs.RETAIN)

    @property
    def valid(self) -> Subset:
        """Examples of the same source that were never trained on."""
        return self._part("valid", Needs.VALID)

    @property
    def recipe(self) -> Recipe:
        """How the original was trained."""
        if self.original_recipe is None or Needs.RECIPE not in self.needs:
            raise EffaceError(
                "This method needs the recipe that the original was trained with, and the checkpoint has none.",
                "Only checkpoints that `efface pretrain` made carry their recipe.",
                "Use a method that starts from the weights, such as finetune.",
            )
        return self.original_recipe

    def resolve_epochs(self, epochs: int | None) -> int:
        """``epochs``, or a twentieth of the original's (at least one; 10 where the original's are unknown)."""
        if epochs is not None:
            return epochs
        return 10 if self.original_recipe is None else max(1, self.original_recipe.epochs // 20)

    def batch_size(self, size: int | None) -> int:
        """``size``, or the original's batch size (256 where it is unknown)."""
        if size is not None:
            return size
        return 256 if self.original_recipe is None else self.original_recipe.batch_size
