"""The building blocks of a record: request, data, split, checkpoints, changed parts and training log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pydantic import Field

from efface.schema import RecordModel
from efface.training.history import SearchHistory, StoppingResult


class Case(RecordModel):
    """The request as the office knows it; empty where nobody said so."""

    id: str = ""
    """The office's own name for it."""
    received: str = ""
    """When it came in."""
    due: str = ""
    """The last day to answer."""
    handled_by: str = ""
    """Who is responsible."""


class Request(RecordModel):
    """The unlearning request."""

    selector: str
    """The selector of the forget set, as the user wrote it."""
    count: int
    """Number of examples to forget."""
    method: dict[str, Any]
    """``name`` and every hyperparameter of the method."""
    goal: str = ""
    """Individual erasure, class or concept removal, or disgorgement; empty if the request stated no goal."""
    case: Case = Case()
    """What the office knows of it; empty in records of older releases."""


class DataFacts(RecordModel):
    """The data set."""

    name: str
    digest: str
    size: int
    """Number of examples."""
    shape: tuple[int, ...] = ()
    """Channels, height, width."""
    classes: tuple[str, ...] = ()
    """Class names; empty if the data has no labels."""
    skipped: tuple[dict[str, Any], ...] = ()
    """Broken items that were skipped: ``key``, ``path``, ``error``."""


class SplitFacts(RecordModel):
    """How the data was split."""

    digest: str
    """Digest of the split. Keyed in a sealed record, because a plain digest of a few ids can be guessed."""
    sizes: dict[str, int]
    """Number of examples in each part."""
    random: bool | None = None
    """Whether the forget set was drawn at random."""
    matched: str | None = None
    """What the holdout was matched to the forget set on: ``class``, ``group`` or nothing."""
    seed: int | None = None
    absent: dict[str, int] = Field(default_factory=dict)
    """Number of examples of each part that were not in the data any more when it was audited."""
    warnings: tuple[str, ...] = ()


class BankFacts(RecordModel):
    """The reference bank of an audit."""

    file: str
    """Path of the bank when the audit was made."""
    digest: str
    """SHA-256 of the part of it that the audit used."""
    original: str
    """Digest of the original that it was made for."""
    models: int
    """Number of models that the audit used; half of them never saw a given example."""
    unit: str
    """What was always in the same half: ``example``, ``group`` or ``class``."""
    share: float
    """Share of the original's epochs that its models were trained for."""
    divided: bool
    """Whether the method was given the other half of the bank."""


class WithheldFacts(RecordModel):
    """Pictures of the auditor's own, which nobody else had."""

    digest: str
    """SHA-256 of keys and pixels."""
    count: int
    left_out: int = 0
    """How many more were named that are among the data of the run, where others could know them."""


class RehearsalFacts(RecordModel):
    """The rehearsals of a procedure that an audit used."""

    file: str
    """Their folder when the audit was made; for retraining that of the reference bank."""
    digest: str
    """SHA-256 of what they hold."""
    kind: str
    """What was rehearsed, in words."""
    requests: int


class CheckpointFacts(RecordModel):
    """Identity and provenance of one checkpoint."""

    digest: str
    """SHA-256 of its named tensors."""
    parent: str | None = None
    """Digest of the checkpoint it was made from."""
    method: dict[str, Any] | None = None
    """The method that made it, with its hyperparameters; None for an original."""
    origin: str = ""
    """The package that provides the method; empty for the methods of efface."""
    exact: bool = False
    """Whether the model was trained without ever seeing the forget set."""
    seed: int | None = None
    split: str = ""
    """Digest of the split it was made with; keyed in a sealed record."""
    file: str = ""
    """Path of its weights file."""
    sha256: str = ""
    """SHA-256 of that file."""
    purged: dict[str, str] = Field(default_factory=dict)
    """What was done with state that can hold training examples (queues, momentum encoders): part to action."""
    claim: str = ""
    """A statement by the user that was not checked, such as that the model never saw the forget set."""
    stopped: StoppingResult | None = None
    """When and why its method stopped; None without early stopping."""
    search: SearchHistory | None = None
    """The trials, if its method was chosen by a search on validation examples."""


class MeasuredChange(Protocol):
    """The change of one part of a model, as the torch code measures it."""

    @property
    def part(self) -> str:
        """Backbone, head, ... as in :class:`PartChange`."""
        ...

    @property
    def numbers(self) -> int:
        """Number of values."""
        ...

    @property
    def relative(self) -> float:
        """L2 norm of the change, relative to that of the original part."""
        ...

    @property
    def largest(self) -> float:
        """Largest absolute change of one value."""
        ...

    @property
    def note(self) -> str:
        """What was done with the part, if it was purged."""
        ...


class PartChange(RecordModel):
    """How much unlearning changed one part of the model."""

    part: str
    """Backbone, head, momentum encoder, queue, or the BatchNorm statistics of one of them."""
    numbers: int
    """Number of values in the part."""
    relative: float
    """L2 norm of the change divided by the L2 norm of the original part."""
    largest: float
    """Largest absolute change of one value."""
    changed: bool
    note: str = ""
    """What was done with the part, if it was purged."""

    @staticmethod
    def of(measured: MeasuredChange) -> PartChange:
        """Build from a measurement of the torch code."""
        return PartChange(
            part=measured.part,
            numbers=measured.numbers,
            relative=measured.relative,
            largest=measured.largest,
            changed=measured.largest > 0,
            note=measured.note,
        )


class TermFacts(RecordModel):
    """Summary of one named loss term over a run."""

    steps: int
    first: float
    last: float
    lowest: float
    highest: float


class LogFacts(RecordModel):
    """Summary of the training log, which is kept next to the record."""

    steps: int
    phases: dict[str, int]
    """Steps per phase."""
    terms: dict[str, TermFacts]
    """By ``phase.term``."""

    @staticmethod
    def of(log: Iterable[Mapping[str, Any]]) -> LogFacts | None:
        """Summarize the lines of a log; None if there are none."""
        phases: dict[str, int] = {}
        values: dict[str, list[float]] = {}
        for line in log:
            phase = str(line.get("phase", "train"))
            phases[phase] = phases.get(phase, 0) + 1
            for name, value in line.get("terms", {}).items():
                if math.isfinite(value):
                    values.setdefault(f"{phase}.{name}", []).append(float(value))
        terms = {
            name: TermFacts(steps=len(v), first=v[0], last=v[-1], lowest=min(v), highest=max(v))
            for name, v in values.items()
        }
        return LogFacts(steps=sum(phases.values()), phases=phases, terms=terms) if phases else None
