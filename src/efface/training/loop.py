"""The only training loop: pretraining, fine-tuning, unlearning and retraining differ in data, loss and length.

:func:`fit` trains by a recipe, :func:`train_steps` runs over any batches with any loss, :func:`train_step` is one
update. All three log to, draw their randomness from and are counted by a :class:`Run`.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efface.errors import DivergenceError, EffaceError, explain_memory
from efface.training.batch import Batch, Log, LossTerms, Subset
from efface.training.model import Model
from efface.training.optim import ScheduledOptimizer
from efface.training.processes import World, current_world
from efface.training.readings import StepReadings
from efface.training.recipe import Recipe
from efface.training.sharded_model import ShardedModel
from efface.training.stages import Stage, plan_stages

LossTermsFunction = Callable[[Batch], LossTerms]
"""Computes the loss terms that a step minimizes on a batch."""


def fit(model: Model, subset: Subset, recipe: Recipe, run: Run) -> Model:
    """Train a model on a subset by its recipe. Pretraining uses all examples, retraining fewer; nothing else differs.

    If ``run.resume_store`` is set, the state is saved after every epoch, and an interrupted run continues from there
    with bit-identical results.

    Args:
        model: The model to train, in place.
        subset: The training examples.
        recipe: Number of epochs, batch size and optimizer.
        run: Seed, device, log and training cost of this run.

    Returns:
        The same model, trained.

    Raises:
        DivergenceError: If a loss is not finite.

    Example:
        >>> model = fit(recipe.start(seed=0), train, recipe, Run(seed=0))

    """
    if recipe.shards is not None:
        return _fit_shards(model, subset, recipe, run)
    optimizer = recipe.optim.build(model, recipe.epochs * subset.count_batches(recipe.batch_size))

    def task(batch: Batch) -> LossTerms:
        output = model.objective.loss(model, batch)
        return LossTerms({"task": output.per_example.mean()}, output.carry)

    restored = run.resume_store.restore(model, optimizer) if run.resume_store else None
    first = 0
    if restored is not None:
        first, cost = restored
        run.training_cost.steps, run.training_cost.examples, run.training_cost.seconds = (
            cost.steps,
            cost.examples,
            cost.seconds,
        )
    for epoch in range(first, recipe.epochs):
        train_steps(model, subset.batches(recipe.batch_size, run.rng("train", epoch)), task, optimizer, run)
        if run.resume_store:
            run.resume_store.save(model, optimizer, epoch + 1, run.training_cost)
    return model


def _fit_shards(model: Model, subset: Subset, recipe: Recipe, run: Run) -> Model:
    """Train each network stage by stage on its own examples; stages whose weights were kept are read."""
    if not isinstance(model, ShardedModel):
        raise TypeError("A recipe with shards trains the model that its start() makes.")
    if run.world.size > 1:
        raise EffaceError(
            "A training in shards does not run in several processes.",
            "Its stages are read and kept one after the other, each with seeds of its own.",
            "Start it by itself, without torchrun.",
        )
    store, parts = run.stage_store, model.parts
    for stage in plan_stages(subset, recipe, run.seed, bf16=run.bf16):
        cost = store.restore(stage, parts[stage.shard]) if store else None
        if cost is None:
            cost = _train_stage(parts[stage.shard], stage, run)
        run.training_cost.add(cost)
    return model


def _train_stage(part: Model, stage: Stage, run: Run) -> TrainingCost:
    """Train one network through one stage, by seeds of its own; its steps are logged after those before it."""
    before, place = run.training_cost.steps, {"shard": stage.shard, "slice": stage.number}

    def log(record: dict[str, Any]) -> None:
        run.log(record | place | {"step": before + record["step"]})

    epochs = run.stage_store.epochs(stage) if run.stage_store else None
    own = Run(stage.seed, run.device, log, run.bf16, epochs, callbacks=run.callbacks)
    if stage.trains:
        fit(part, stage.subset, stage.recipe, own)
    if run.stage_store:
        run.stage_store.save(stage, part, own.training_cost)
    return own.training_cost


@contextmanager
def compute_as(run: Run, model: Model) -> Iterator[None]:
    """Context in which a model, and each copy of it that is made inside, computes as a run does.

    Precision and processes belong to the run. A model that kept them would compute otherwise afterwards than the same
    weights from a file.
    """
    before = model.bf16, model.world
    model.bf16, model.world = run.bf16, run.world
    try:
        yield
    finally:
        model.bf16, model.world = before


def train_steps(
    model: Model,
    batches: Iterable[Batch],
    terms: LossTermsFunction,
    optimizer: ScheduledOptimizer,
    run: Run,
    *,
    phase: str = "train",
    only: dict[nn.Parameter, Tensor] | None = None,
) -> None:
    """Take a :func:`train_step` on each batch, and call the run's callbacks after each.

    The model is put in training mode. Dropout and other random layers draw from the run's seed, not from the global
    generator.

    Args:
        model: The model to train, in place.
        batches: One batch per step.
        terms: Computes the loss terms of a batch.
        optimizer: The optimizer, scheduled for as many steps.
        run: Seed, device, log, callbacks and training cost of this run.
        phase: Name of these steps in the log.
        only: Boolean masks of the weights that may change, by parameter; parameters without a mask may change freely.

    Raises:
        DivergenceError: If the sum of the terms is not finite.

    """
    model.train()
    if run.world.size > 1 and model.micro_batch is not None:
        raise EffaceError(
            "recipe.micro_batch does not go with several processes.",
            "These divide each batch already, and a part that is run again would be normalized by itself.",
            "Leave it out, or start more processes.",
        )
    with compute_as(run, model), torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.rng("dropout", run.training_cost.steps).initial_seed())
        for batch in batches:
            train_step(model, batch, terms, optimizer, run, phase=phase, only=only)
            for callback in run.callbacks:
                callback.on_step_end(model, optimizer)
    with run.timed():
        run.read_steps()


def train_step(
    model: Model,
    batch: Batch,
    terms: LossTermsFunction,
    optimizer: ScheduledOptimizer,
    run: Run,
    *,
    phase: str = "train",
    only: dict[nn.Parameter, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Take one optimizer step: sum the terms, update the weights, move momentum encoder and queue, log.

    Args and Raises: as for :func:`train_steps`. Weights outside the masks ``only`` are restored after the update,
    because masking their gradients would not stop momentum and weight decay from moving them.

    Nothing here waits for an accelerator, except where :meth:`Run.read_steps` reads the terms of several steps.

    Returns:
        Name to value of each term, scalars on the device of the model.

    """
    began = time.perf_counter()
    with memory_for(len(batch), model.micro_batch):
        result = run.world.compute_terms(model, terms, batch)
        total = torch.stack([term.float().reshape(()) for term in result.terms.values()]).sum()
        planned = run.training_cost.steps - optimizer.taken + optimizer.steps
        record = {"step": run.training_cost.steps + 1, "phase": phase, "lr": optimizer.lr, "planned": planned}
        try:
            run.readings.add(record, result.terms)
        except DivergenceError:
            optimizer.inner.zero_grad(set_to_none=True)
            run.readings.log(run.log)
            raise
        run.world.backward(total)
    before = {weight: weight.detach().clone() for weight in only or {}}
    optimizer.update()
    with torch.no_grad():
        for weight, mask in (only or {}).items():
            weight.copy_(torch.where(mask, weight, before[weight]))
    model.objective.after_step(model, result.carry)
    run.training_cost.steps += 1
    run.training_cost.examples += len(batch) + result.extra_examples
    run.training_cost.seconds += time.perf_counter() - began
    run.readings.log(run.log)
    return {name: term.detach() for name, term in result.terms.items()}


@contextmanager
def memory_for(images: int, micro_batch: int | None) -> Iterator[None]:
    """Context of a step on so many images: if memory ends, the error says how many go through at once instead."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ended = explain_memory(error, images=min(images, micro_batch or images))
        if ended is None:
            raise
        raise ended from error


def frozen_copy(model: Model) -> Model:
    """Copy a model as a teacher: in evaluation mode, without gradients, sharing no storage with the original."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@dataclass
class TrainingCost:
    """What a run has cost so far."""

    steps: int = 0
    """Optimizer steps."""
    examples: int = 0
    """Examples processed; an example counts once for each step that uses it."""
    seconds: float = 0.0
    """Wall time spent in the steps."""

    def add(self, more: TrainingCost) -> None:
        """Add the cost of another run."""
        self.steps += more.steps
        self.examples += more.examples
        self.seconds += more.seconds


class ResumeStore(Protocol):
    """Saves the state of a training run after each epoch, and restores the latest one."""

    def restore(self, model: Model, optimizer: ScheduledOptimizer) -> tuple[int, TrainingCost] | None:
        """Load the latest saved state; return the finished epochs and their cost, or ``None`` if nothing is saved."""
        ...

    def save(self, model: Model, optimizer: ScheduledOptimizer, epoch: int, cost: TrainingCost) -> None:
        """Save the state after ``epoch`` epochs, atomically."""
        ...


class StageStore(Protocol):
    """Keeps the weights after each stage of a sharded training: see :mod:`efface.training.stages`."""

    def restore(self, stage: Stage, part: Model) -> TrainingCost | None:
        """Load the weights after a stage; return what training them cost this run, or ``None`` if there are none."""
        ...

    def epochs(self, stage: Stage) -> ResumeStore:
        """Return what saves the epochs of a stage that is being trained."""
        ...

    def save(self, stage: Stage, part: Model, cost: TrainingCost) -> None:
        """Keep the weights after a stage, atomically."""
        ...


class StepCallback(Protocol):
    """Observes a model between steps; it may end the training by raising an exception of its own."""

    def on_step_end(self, model: Model, optimizer: ScheduledOptimizer) -> None:
        """Called by :func:`train_steps` after each step."""
        ...


def discard_record(record: dict[str, Any]) -> None:
    """A log that keeps nothing."""


@dataclass(frozen=True, eq=False)
class Run:
    """One execution of a method: its seed, its device, its log and its cost so far.

    Example:
        >>> run = Run(seed=1, device=resolve_device("auto"))
        >>> batches = retain.batches(256, run.rng("retain", epoch))

    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = discard_record
    bf16: bool = False
    """Run the networks under bfloat16 autocast."""
    resume_store: ResumeStore | None = None
    """Where :func:`fit` saves each epoch, and continues from; ``None``: nowhere."""
    training_cost: TrainingCost = field(default_factory=TrainingCost)
    stage_store: StageStore | None = None
    """Where :func:`fit` keeps the stages of a sharded training, and reads those that were kept; ``None``: nowhere."""
    callbacks: list[StepCallback] = field(default_factory=list)
    """Called after each step, in this order, such as those of :mod:`efface.unlearning.early_stopping`."""
    world: World = field(default_factory=current_world)
    """The processes that compute the steps together."""
    readings: StepReadings = field(default_factory=StepReadings, repr=False)
    """Terms of steps that are still on the device."""

    def read_steps(self) -> None:
        """Read the terms that are still on the device, and log them.

        Raises:
            DivergenceError: A sum of terms is not finite.

        """
        try:
            self.readings.read_pending()
        finally:
            self.readings.log(self.log)

    def rng(self, name: str, *numbers: int) -> torch.Generator:
        """Make a CPU generator for one purpose, seeded by the run's seed, the purpose's name and numbers."""
        text = f"{self.seed}:{name}:{','.join(map(str, numbers))}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def log_values(
        self,
        phase: str,
        terms: dict[str, float] | None = None,
        *,
        number: int | None = None,
        examples: int = 0,
        **found: Any,
    ) -> None:
        """Log measured values that do not belong to an optimizer step.

        Args:
            phase: What was measured.
            terms: Name to value; each must be finite.
            number: Number of the iteration; by default that of the last optimizer step.
            examples: Examples processed for the measurement, added to the training cost.
            found: Anything else to log, such as whether a stopping rule was met.

        Raises:
            DivergenceError: If a value is not finite.

        """
        self.read_steps()
        terms = terms or {}
        if not all(map(math.isfinite, terms.values())):
            raise DivergenceError(terms, self.training_cost.steps)
        self.training_cost.examples += examples
        step = self.training_cost.steps if number is None else number
        self.log({"step": step, "phase": phase, "terms": terms, "total": sum(terms.values()), **found})

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the wall time spent in the block to the training cost."""
        began = time.perf_counter()
        yield
        self.training_cost.seconds += time.perf_counter() - began
