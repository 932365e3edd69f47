"""The only training loop: pretraining, fine-tuning, unlearning and retraining differ in data, terms and length."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from efface.backbones import Backbone
from efface.errors import Diverged, EffaceError
from efface.objectives.protocol import Objective
from efface.types import Batch, Log, Part, Step
from efface.views import Views

if TYPE_CHECKING:
    from efface.model import Model

Terms = Callable[[Batch], Step]
"""What to minimize on a batch."""


class Rule(StrEnum):
    """Update rule of an optimizer."""

    SGD = "sgd"
    ADAMW = "adamw"


class Schedule(StrEnum):
    """How the learning rate moves over the steps, after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """An optimizer and its schedule, as numbers."""

    rule: Rule = Rule.SGD
    """Update rule."""
    lr: float = 0.06
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD; first-moment decay of AdamW."""
    weight_decay: float = 5e-4
    """Weight decay (decoupled for AdamW); weights with one dimension or none are not decayed."""
    schedule: Schedule = Schedule.COSINE
    """Shape after the warm-up; cosine falls to zero at the last step."""
    warmup: float = 0.0
    """Fraction of the steps in which the rate rises linearly from zero."""
    clip: float | None = None
    """Largest L2 norm of the whole gradient; ``None``: no clipping."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0) or not 0 <= self.warmup < 1:
            raise EffaceError(
                f"A learning rate of {self.lr:g} with a warm-up of {self.warmup:g} cannot train.",
                "The rate must be positive and finite; the warm-up is a fraction of the steps, in [0, 1).",
            )

    def build(self, parameters: nn.Module | Iterable[nn.Parameter], steps: int) -> Optimizer:
        """The optimizer over a module's trainable parameters, scheduled for ``steps`` updates."""
        owned = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        owned = [parameter for parameter in owned if parameter.requires_grad]
        groups = [
            {"params": [p for p in owned if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in owned if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if self.rule is Rule.SGD:
            inner: torch.optim.Optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        else:
            inner = torch.optim.AdamW(groups, lr=self.lr, betas=(self.momentum, 0.999))
        return Optimizer(self, inner, owned, steps)

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak rate used for update number ``step`` (from 0) of ``steps``."""
        rising = self.warmup * steps
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, steps - rising))))


class Optimizer:
    """A torch optimizer that knows its own schedule and clipping."""

    def __init__(self, optim: Optim, inner: torch.optim.Optimizer, owned: Sequence[nn.Parameter], steps: int) -> None:
        self.optim, self.inner, self.owned, self.steps, self.taken = optim, inner, owned, steps, 0

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return self.optim.lr * self.optim.factor(self.taken, self.steps)

    def update(self) -> None:
        """Clip, update at the scheduled rate, forget the gradients."""
        if self.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.owned, self.optim.clip)
        for group in self.inner.param_groups:
            group["lr"] = self.lr
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.taken += 1

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to go on exactly from here."""
        return {"inner": self.inner.state_dict(), "taken": self.taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved :meth:`state`."""
        self.inner.load_state_dict(state["inner"])
        self.taken = state["taken"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint was trained: enough to train it again on other examples."""

    objective: Objective
    backbone: Backbone = field(default_factory=Backbone)
    channels: int = 3
    size: tuple[int, int] = (32, 32)
    """Height and width of the images."""
    classes: int = 0
    epochs: int = 100
    batch_size: int = 256
    optim: Optim = field(default_factory=Optim)
    views: Views = field(default_factory=Views)
    mean: float | tuple[float, ...] = 0.5
    """Subtracted from images in [0, 1], one number or one per channel; a constant, so that nothing about the data
    hides in it."""
    std: float | tuple[float, ...] = 0.25
    """Divides images after the mean is gone."""

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != self.channels:
                raise EffaceError(
                    f"recipe.{name} has {len(value)} numbers, and the images have {self.channels} channels.",
                    remedy="Give one number, or one for each channel.",
                )

    def start(self, seed: int) -> Model:
        """A fresh, untrained model: the same weights for the same seed, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = self.backbone.build(self.channels, self.size)
            width = int(getattr(backbone, "dim"))  # noqa: B009  (every backbone has it; nn.Module hides it)
            mean, std = (torch.tensor(value).expand(self.channels).clone() for value in (self.mean, self.std))
            model = self.objective.equip(backbone, width, self.classes, mean, std)
        if model.channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return model


class Keep(Protocol):
    """Saves a training run after each epoch, and gives back the newest one."""

    def restore(self, model: Model, optimizer: Optimizer) -> tuple[int, Tally] | None:
        """Put the newest saved state back; how many epochs are done, and what they cost."""
        ...

    def save(self, model: Model, optimizer: Optimizer, epoch: int, tally: Tally) -> None:
        """Save the state after ``epoch`` epochs, atomically."""
        ...


class Watcher(Protocol):
    """Looks at a model between two steps, and may end the training by an exception of its own."""

    def after(self, model: Model, optimizer: Optimizer) -> None:
        """Called after each step of :func:`descend`."""
        ...


@dataclass
class Tally:
    """What a run has cost so far."""

    steps: int = 0
    """Optimizer steps."""
    examples: int = 0
    """Examples shown, counted once per step that showed them."""
    seconds: float = 0.0
    """Wall time inside the steps."""

    def add(self, more: Tally) -> None:
        """Count what another run cost too."""
        self.steps += more.steps
        self.examples += more.examples
        self.seconds += more.seconds


def silent(record: dict[str, Any]) -> None:
    """A log that keeps nothing."""


@dataclass(frozen=True, eq=False)
class Run:
    """One execution: its seed, where it computes, where it logs, what it has cost."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: Log = silent
    bf16: bool = False
    """Networks under bfloat16 autocast."""
    keep: Keep | None = None
    tally: Tally = field(default_factory=Tally)
    watchers: list[Watcher] = field(default_factory=list)
    """Who looks on: see :mod:`efface.stopping`."""

    def rng(self, name: str, *numbers: int) -> torch.Generator:
        """A generator of its own for every purpose, on the CPU: the same for the same seed, name and numbers."""
        text = f"{self.seed}:{name}:{','.join(map(str, numbers))}"
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))

    def note(
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
            raise Diverged(terms, self.tally.steps)
        self.tally.examples += examples
        step = self.tally.steps if number is None else number
        self.log({"step": step, "phase": phase, "terms": terms, "total": sum(terms.values()), **found})

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the wall time inside as the run's."""
        began = time.perf_counter()
        yield
        self.tally.seconds += time.perf_counter() - began


def step(
    model: Model,
    batch: Batch,
    terms: Terms,
    optimizer: Optimizer,
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
        raise Diverged(values, run.tally.steps)
    total.backward()
    before = {weight: weight.detach().clone() for weight in only or {}}
    rate = optimizer.lr
    optimizer.update()
    with torch.no_grad():
        for weight, mask in (only or {}).items():
            weight.copy_(torch.where(mask, weight, before[weight]))
    model.objective.advance(model, result.carry)
    run.tally.steps += 1
    run.tally.examples += len(batch) + result.also
    run.tally.seconds += time.perf_counter() - began
    run.log({"step": run.tally.steps, "phase": phase, "lr": rate, "terms": values, "total": sum(values.values())})
    return values


def descend(
    model: Model,
    batches: Iterable[Batch],
    terms: Terms,
    optimizer: Optimizer,
    run: Run,
    *,
    phase: str = "train",
    only: dict[nn.Parameter, Tensor] | None = None,
) -> None:
    """A :func:`step` on each batch. Dropout and its kin draw from the run's own generator, not the global one."""
    model.train()
    model.bf16 = run.bf16
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(run.rng("dropout", run.tally.steps).initial_seed())
        for batch in batches:
            step(model, batch, terms, optimizer, run, phase=phase, only=only)
            for watcher in run.watchers:
                watcher.after(model, optimizer)


def fit(model: Model, part: Part, recipe: Recipe, run: Run) -> Model:
    """Train a model on a part by its recipe: this is pretraining, and retraining is the same on fewer examples.

    With ``run.keep``, every epoch is saved and a run that was cut goes on bit-identically.
    """
    optimizer = recipe.optim.build(model, recipe.epochs * part.steps(recipe.batch_size))

    def task(batch: Batch) -> Step:
        outcome = model.objective.loss(model, batch)
        return Step({"task": outcome.per_example.mean()}, outcome.carry)

    done = run.keep.restore(model, optimizer) if run.keep else None
    first = 0
    if done is not None:
        first, spent = done
        run.tally.steps, run.tally.examples, run.tally.seconds = spent.steps, spent.examples, spent.seconds
    for epoch in range(first, recipe.epochs):
        descend(model, part.batches(recipe.batch_size, run.rng("train", epoch)), task, optimizer, run)
        if run.keep:
            run.keep.save(model, optimizer, epoch + 1, run.tally)
    return model


def frozen_copy(model: Model) -> Model:
    """A deep copy in evaluation mode that shares no storage and takes no gradient: a teacher."""
    return copy.deepcopy(model).requires_grad_(False).eval()
