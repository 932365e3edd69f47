"""The only training loop: pretraining, fine-tuning, unlearning and retraining differ in data, terms and length."""

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

from efface.errors import DivergenceError, EffaceError
from efface.training.batch import Batch, Log, LossTerms, Subset
from efface.training.model import Model
from efface.training.optim import ScheduledOptimizer
from efface.training.recipe import Recipe


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """``auto``: the GPU where there is one, else the CPU."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EffaceError(
            f"The device '{name}' cannot be used.", str(error).split("\n")[0], "Try --device cpu."
        ) from error
    return device


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 autocast is faster than float32: on GPUs, and on CPUs that can multiply bfloat16."""
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda"


LossTermsFunction = Callable[[Batch], LossTerms]
"""What to minimize on a batch."""


class ResumeStore(Protocol):
    """Saves a training run after each epoch, and gives back the newest one."""

    def restore(self, model: Model, optimizer: ScheduledOptimizer) -> tuple[int, TrainingCost] | None:
        """Put the newest saved state back; how many epochs are done, and what they cost."""
        ...

    def save(self, model: Model, optimizer: ScheduledOptimizer, epoch: int, tally: TrainingCost) -> None:
        """Save the state after ``epoch`` epochs, atomically."""
        ...


class StepCallback(Protocol):
    """Looks at a model between two steps, and may end the training by an exception of its own."""

    def on_step_end(self, model: Model, optimizer: ScheduledOptimizer) -> None:
        """Called after each step of :func:`descend`."""
        ...


@dataclass
class TrainingCost:
    """What a run has cost so far."""

    steps: int = 0
    """Optimizer steps."""
    examples: int = 0
    """Examples shown, counted once per step that showed them."""
    seconds: float = 0.0
    """Wall time inside the steps."""

    def add(self, more: TrainingCost) -> None:
        """Count what another run cost too."""
        self.steps += more.steps
        self.examples += more.examples
        self.seconds += more.seconds


def discard_record(record: dict[str, Any]) -> None:
    """A log that keeps nothing."""


@dataclass(frozen=True, eq=False)
class Run:
    """One execution: its seed, where it computes, where it logs, what it has cost."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = discard_record
    bf16: bool = False
    """Networks under bfloat16 autocast."""
    resume_store: ResumeStore | None = None
    training_cost: TrainingCost = field(default_factory=TrainingCost)
    callbacks: list[StepCallback] = field(default_factory=list)
    """Who looks on: see :mod:`efface.unlearning.early_stopping`."""

    def rng(self, name: str, *numbers: int) -> torch.Generator:
        """A generator of its own for every purpose, on the CPU: the same for the same seed, name and numbers."""
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
        """Log what is no optimizer step: numbers by name, refused unless finite; ``examples`` shown for them.

        ``number``: of an iteration that has one; otherwise the line bears the number of the last optimizer step.
        ``found``: whatever else is worth a word, such as whether a stop rule was met.
        """
        terms = terms or {}
        if not all(map(math.isfinite, terms.values())):
            raise DivergenceError(terms, self.training_cost.steps)
        self.training_cost.examples += examples
        step = self.training_cost.steps if number is None else number
        self.log({"step": step, "phase": phase, "terms": terms, "total": sum(terms.values()), **found})

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the wall time inside as the run's."""
        began = time.perf_counter()
        yield
        self.training_cost.seconds += time.perf_counter() - began


def train_step(
    model: Model,
    batch: Batch,
    terms: LossTermsFunction,
    optimizer: ScheduledOptimizer,
    run: Run,
    *,
    phase: str = "train",
    only: dict[nn.Parameter, Tensor] | None = None,
) -> dict[str, float]:
    """One update: sum the terms, refuse a sum that is not finite, descend, move twin and queue, log.

    ``only``: boolean masks of the weights that may change. The others are put back after the update, because
    masking gradients alone is undone by momentum and weight decay.
    """
    began = time.perf_counter()
    result = terms(batch)
    total = torch.stack([term.float().reshape(()) for term in result.terms.values()]).sum()
    values = dict(zip(result.terms, (float(term.detach()) for term in result.terms.values()), strict=True))
    if not math.isfinite(float(total.detach())):
        optimizer.inner.zero_grad(set_to_none=True)
        raise DivergenceError(values, run.training_cost.steps)
    total.backward()
    before = {weight: weight.detach().clone() for weight in only or {}}
    rate = optimizer.lr
    optimizer.update()
    with torch.no_grad():
        for weight, mask in (only or {}).items():
            weight.copy_(torch.where(mask, weight, before[weight]))
    model.objective.after_step(model, result.carry)
    run.training_cost.steps += 1
    run.training_cost.examples += len(batch) + result.extra_examples
    run.training_cost.seconds += time.perf_counter() - began
    run.log(
        {"step": run.training_cost.steps, "phase": phase, "lr": rate, "terms": values, "total": sum(values.values())}
    )
    return values


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
    """A :func:`step` on each batch. Dropout and its kin draw from the run's own generator, not the global one."""
    model.train()
    model.bf16 = run.bf16
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.rng("dropout", run.training_cost.steps).initial_seed())
        for batch in batches:
            train_step(model, batch, terms, optimizer, run, phase=phase, only=only)
            for watcher in run.callbacks:
                watcher.on_step_end(model, optimizer)


def fit(model: Model, part: Subset, recipe: Recipe, run: Run) -> Model:
    """Train a model on a part by its recipe: this is pretraining, and retraining is the same on fewer examples.

    With ``run.resume_store``, every epoch is saved and a run that was cut goes on bit-identically.
    """
    optimizer = recipe.optim.build(model, recipe.epochs * part.count_batches(recipe.batch_size))

    def task(batch: Batch) -> LossTerms:
        outcome = model.objective.loss(model, batch)
        return LossTerms({"task": outcome.per_example.mean()}, outcome.carry)

    done = run.resume_store.restore(model, optimizer) if run.resume_store else None
    first = 0
    if done is not None:
        first, spent = done
        run.training_cost.steps, run.training_cost.examples, run.training_cost.seconds = (
            spent.steps,
            spent.examples,
            spent.seconds,
        )
    for epoch in range(first, recipe.epochs):
        train_steps(model, part.batches(recipe.batch_size, run.rng("train", epoch)), task, optimizer, run)
        if run.resume_store:
            run.resume_store.save(model, optimizer, epoch + 1, run.training_cost)
    return model


def frozen_copy(model: Model) -> Model:
    """A deep copy in evaluation mode that shares no storage and takes no gradient: a teacher."""
    return copy.deepcopy(model).requires_grad_(False).eval()
