"""The method protocol, and the losses and gradients that several methods share."""

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
from efface.unlearning.targets import MarginTargets


class Needs(Flag):
    """What a method reads. It cannot reach anything that it does not declare."""

    NOTHING = 0
    FORGET = auto()
    """The examples to forget."""
    RETAIN = auto()
    """The other training examples."""
    VALID = auto()
    """Examples of the same source that were never trained on, and that no audit uses."""
    LABELS = auto()
    """A classifier (a checkpoint whose objective reads labels), and a label for every example."""
    RECIPE = auto()
    """How the original was trained, so that a fresh model can be trained the same way."""
    ATTENTION = auto()
    """A transformer whose attention maps can be read."""
    TARGETS = auto()
    """A reference bank: margins of the forgotten examples in models that never saw them, from the method's half."""
    PAIRS = auto()
    """An encoder that was trained by comparing pairs: see :meth:`ObjectiveOption.contrastive_terms`."""
    SHARDS = auto()
    """A model that was trained in shards: see :mod:`efface.training.shards`."""
    CLASSES = auto()
    """A request for whole classes: no retained example has a class of a forgotten one."""

    def names(self) -> list[str]:
        """The declared needs in lower case, in the order above."""
        return [str(need.name).lower() for need in type(self) if need in self and need.value]


@dataclass(frozen=True)
class RequestSizes:
    """What the number of a method's steps depends on: known before any of them is taken."""

    forget: int
    """Number of examples of F."""
    retain: int
    """Number of examples of R."""
    recipe: Recipe | None = None
    """How the original was trained, if that is known."""
    whole_classes: bool = False
    """Whether no example of R has a label of one of F."""

    def resolve_epochs(self, epochs: int | None) -> int:
        """``epochs``, or a twentieth of the original's if None (at least 1; 10 if the original's are unknown)."""
        if epochs is not None:
            return epochs
        return 10 if self.recipe is None else max(1, self.recipe.epochs // 20)

    def batch_size(self, size: int | None) -> int:
        """``size``, or the original's batch size if None (256 if it is unknown)."""
        if size is not None:
            return size
        return 256 if self.recipe is None else self.recipe.batch_size


def count_planned_steps(method: Method, sizes: RequestSizes) -> int | None:
    """Count the optimizer steps that a method takes, or takes at most; None if nobody can say.

    A method whose steps are no passes over R says how many they are: its ``count_steps`` is what its own loop uses.
    """
    own = getattr(method, "count_steps", None)
    if own is not None:
        return own(sizes)
    if not hasattr(method, "epochs"):
        return None
    size = sizes.batch_size(getattr(method, "batch_size", None))
    return sizes.resolve_epochs(getattr(method, "epochs", None)) * -(-sizes.retain // size)


@dataclass(frozen=True, eq=False)
class MethodInputs:
    """The examples and the recipe that a method declared in ``needs``; reading anything else is an error."""

    needs: Needs
    """What the method declared."""
    subsets: dict[str, Subset]
    """Examples by name: ``forget``, ``retain``, ``valid``."""
    original_recipe: Recipe | None = None
    """How the original was trained, or ``None`` if that is unknown (imported checkpoints)."""

    margin_targets: MarginTargets | None = None
    """Targets from the method's half of a reference bank."""

    @property
    def targets(self) -> MarginTargets:
        """Margins of the forgotten examples in models that never saw them."""
        if self.margin_targets is None or Needs.TARGETS not in self.needs:
            raise EffaceError(
                "This method takes targets from a reference bank, and none was given.",
                "How familiar an example is to a model that never saw it is known from such models only.",
                "Make a bank (`efface references RUN --bank 8`), and name it: --bank DIR.",
            )
        return self.margin_targets

    def _subset(self, name: str, need: Needs) -> Subset:
        if need not in self.needs or name not in self.subsets:
            raise EffaceError(
                f"This method asked for the '{name}' examples without declaring that it needs them.",
                f"It declared: {', '.join(self.needs.names()) or 'nothing'}.",
                f"Add Needs.{need.name} to the method's `needs`.",
            )
        return self.subsets[name]

    @property
    def forget(self) -> Subset:
        """The examples to forget."""
        return self._subset("forget", Needs.FORGET)

    @property
    def retain(self) -> Subset:
        """The other training examples."""
        return self._subset("retain", Needs.RETAIN)

    @property
    def valid(self) -> Subset:
        """Examples of the same source that were never trained on."""
        return self._subset("valid", Needs.VALID)

    @property
    def forgets_whole_classes(self) -> bool:
        """Whether no retained example has a label of a forgotten one."""
        return not torch.isin(self.forget.labels(), self.retain.labels()).any()

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

    @property
    def sizes(self) -> RequestSizes:
        """How many examples there are of what was declared, and what else the number of steps depends on."""
        forget, retain = (
            len(self._subset(need.name.lower(), need)) if need in self.needs and need.name else 0
            for need in (Needs.FORGET, Needs.RETAIN)
        )
        labelled = Needs.LABELS | Needs.FORGET | Needs.RETAIN
        whole = labelled in self.needs and self.forgets_whole_classes
        return RequestSizes(forget, retain, self.original_recipe, whole)

    def resolve_epochs(self, epochs: int | None) -> int:
        """As :meth:`RequestSizes.resolve_epochs`."""
        return RequestSizes(0, 0, self.original_recipe).resolve_epochs(epochs)

    def batch_size(self, size: int | None) -> int:
        """As :meth:`RequestSizes.batch_size`."""
        return RequestSizes(0, 0, self.original_recipe).batch_size(size)


class Method(Protocol):
    """An unlearning method: a frozen dataclass of hyper-parameters with ``needs``, ``exact`` and ``unlearn``.

    One whose steps are no passes over R also has ``count_steps``: see :func:`count_planned_steps`.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Finetune:
        ...     needs: ClassVar[Needs] = Needs.RETAIN
        ...     exact: ClassVar[bool] = False
        ...     epochs: int = 5
        ...     optim: Optim = field(default_factory=lambda: Optim(lr=0.01))
        ...
        ...     def unlearn(self, model, inputs, run):
        ...         optimizer = self.optim.build(model, self.epochs * inputs.retain.count_batches(256))
        ...         for epoch in range(self.epochs):
        ...             batches = inputs.retain.batches(256, run.rng("retain", epoch))
        ...             train_steps(model, batches, task_loss(model), optimizer, run)
        ...         return model

    """

    needs: ClassVar[Needs]
    """What the method reads; it cannot reach anything else."""
    exact: ClassVar[bool]
    """Whether the result never saw the forget set (retraining), so that it can serve as a retrained reference."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Unlearn the forget set.

        Args:
            model: The original, on the run's device. It is a copy: the method may change it in place.
            inputs: The examples and the recipe that the method declared in ``needs``.
            run: Seed, device, log and training cost. All randomness comes from ``run.rng(name, ...)``.

        Returns:
            The unlearned model: ``model`` itself, or another one.

        Raises:
            DivergenceError: If a term of the loss is no longer finite.

        """
        ...


def task_loss(model: Model) -> LossTermsFunction:
    """The objective that ``model`` was trained with, as the one term ``task``; its keys may enter the queue."""

    def terms(batch: Batch) -> LossTerms:
        output = model.objective.loss(model, batch)
        return LossTerms({"task": output.per_example.mean()}, output.carry)

    return terms


def disagreement(teacher: Model, model: Model, batch: Batch) -> Tensor:
    """Distance between the outputs of two models on the first view of each example, [B] >= 0; 0: they agree."""
    return model.objective.distance(teacher.outputs(batch), model.outputs(batch))


def wrong_target_loss(
    model: Model, forget: Iterator[Batch], weight: float, forget_batch_size: int, rng: torch.Generator
) -> LossTermsFunction:
    """The task on R, plus ``weight`` times the task on F with wrong targets.

    The targets of a batch of F are corrupted together with those of the first examples of the batch of R. So a wrong
    label can be one that F does not have, and a single forgotten example finds another image. Of that joint batch,
    only the loss of the rows of F is used.

    Args:
        model: The model that is trained.
        forget: Batches of F; one is taken per step.
        weight: Weight of the wrong targets.
        forget_batch_size: How many examples of R are mixed with each batch of F.
        rng: Draws the wrong targets.

    Returns:
        A function of a batch of R, with the terms ``task`` and ``wrong``.

    """

    def terms(batch: Batch) -> LossTerms:
        forget_batch, others = next(forget), batch.rows(0, forget_batch_size)
        output = model.objective.loss(model, batch)
        corrupted = model.objective.corrupt_targets(others + forget_batch, rng)
        wrong = model.objective.loss(model, corrupted).rows(len(others))
        losses = {"task": output.per_example.mean(), "wrong": weight * wrong.per_example.mean()}
        return LossTerms(losses, output.carry, extra_examples=len(forget_batch))

    return terms


def loss_among_retained(model: Model, forget_batch: Batch, retain_batch: Batch) -> Tensor:
    """Loss of each forgotten example, [B], in one batch with retained ones, because contrastive losses compare."""
    return model.objective.loss(model, forget_batch + retain_batch).per_example[: len(forget_batch)]


def forget_gradient(model: Model, inputs: MethodInputs, size: int, forget_batch_size: int, run: Run) -> Tensor:
    """Gradient of the summed loss over F with respect to the trained weights, ∂ Σ_F ℓ / ∂θ, [P].

    Each batch has ``forget_batch_size`` examples of F and ``size`` of R (see :func:`loss_among_retained`). BatchNorm
    statistics are frozen.
    """
    retain = inputs.retain.cycle(size, run.rng("beside"))
    total, loss, shown = torch.zeros(sum(w.numel() for w in model.trainable_parameters()), device=run.device), 0.0, 0
    with differentiable_twice(model):
        for forget_batch in inputs.forget.batches(forget_batch_size, run.rng("gradient")):
            retain_batch = next(retain)
            value = loss_among_retained(model, forget_batch, retain_batch).sum()
            total += compute_gradient(model, value)
            loss, shown = loss + float(value.detach()), shown + len(forget_batch) + len(retain_batch)
    run.log_values("gradient", {"forget": loss / len(inputs.forget)}, examples=shown)
    return total
