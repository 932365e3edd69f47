"""Evidence and findings: what an audit is given, and what it returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from efface.auditing.observations import Observations
from efface.errors import EffaceError

Level = Literal["A0", "A1", "A2"]


PAIRS = 32
"""Pairs of unlearned and retrained models from which on the evidence is of level A2."""


MAX_EVALUATED_ORACLES = 8
"""How many references are put on trial themselves, for comparison; all of them serve as references."""


@dataclass(frozen=True)
class Cost:
    """What a model took to make: optimizer steps, examples seen, wall seconds."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True, eq=False)
class RelearnedCopies:
    """Copies of the models that were trained on, and looked at on the way."""

    on: str
    """``retain`` or ``forget``: what they were trained on."""
    looks: dict[str, tuple[tuple[int, Observations], ...]]
    """``subject``, ``oracle 1`` ... to ``(steps taken, what the copy shows)``, from step 0."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """All an audit may look at: one subject, the original, and models that never saw the forget set."""

    original: Observations
    subject: Observations
    """The model on trial: an unlearned one, the original itself, or an oracle."""
    oracles: tuple[Observations, ...] = ()
    """References that never saw F; the subject itself is never among its own references."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """``"subject"`` and ``"oracle"`` where known."""
    unlearned: tuple[Observations, ...] = ()
    """Originals with other seeds, unlearned as the subject was: with the oracles, the pairs of level A2."""
    relearned: tuple[RelearnedCopies, ...] = ()
    """Copies of subject and oracles trained on, where that was asked for."""

    def __post_init__(self) -> None:
        """Refuse evidence that compares what cannot be compared."""
        models = (self.original, self.subject, *self.oracles, *self.unlearned)
        if len({observed.split for observed in models}) > 1:
            raise EffaceError(
                "The observations were made on different splits.",
                f"Their split digests: {', '.join(observed.split[:12] for observed in models)}.",
                "Observe the original, the subject and every other model on the same split.",
            )
        others = [one.model for one in self.unlearned]
        if len(set(others)) < len(others) or {self.original.model, *(o.model for o in self.oracles)} & set(others):
            raise EffaceError(
                "An unlearned model of a pair is the original, an oracle, or given twice.",
                "Pairs are models that differ in their seed alone.",
                "Give each model that was unlearned from an original of another seed once.",
            )
        digests = [oracle.model for oracle in self.oracles]
        if self.original.model in digests or len(set(digests)) < len(digests) or self.subject.model in digests:
            raise EffaceError(
                "An oracle is the subject, the original, or given twice.",
                "A model says nothing about itself, and the original saw the forget set.",
                "Give as oracles only other models retrained without the forget set, each once.",
            )

    def models(self) -> Iterator[tuple[str, Observations, tuple[Observations, ...]]]:
        """``(name, model, its references)``: subject, original, then each oracle with the *other* oracles.

        Of many oracles the first ``SHOWN`` are yielded; each with all the others.
        """
        yield "subject", self.subject, self.oracles
        yield "original", self.original, self.oracles
        for i, oracle in enumerate(self.oracles[:MAX_EVALUATED_ORACLES]):
            yield f"oracle {i + 1}", oracle, self.oracles[:i] + self.oracles[i + 1 :]

    @property
    def pairs(self) -> int:
        """How many pairs of an unlearned and a retrained model there are."""
        return min(len(self.unlearned), len(self.oracles))

    @property
    def level(self) -> Level:
        """A0: original and subject only. A1: at least one reference that never saw F. A2: ``PAIRS`` pairs."""
        return "A2" if self.pairs >= PAIRS else "A1" if self.oracles else "A0"


@dataclass(frozen=True)
class Finding:
    """One measured number with what is needed to read it."""

    name: str
    """Dotted and stable: ``membership.projector.margin.auc``."""
    value: float | None
    """The measurement; ``None`` only with a ``note`` saying why it could not be measured."""
    interval: tuple[float, float] | None = None
    """95 % interval."""
    better: Literal["lower", "higher", "closer"] | None = None
    """Which direction is good; ``closer``: to the oracle's value (or to the ideal in ``note``)."""
    original: float | None = None
    """The same measurement on the original."""
    oracle: float | None = None
    """The same measurement on the oracles (mean)."""
    n: tuple[int, ...] = ()
    """Sample sizes behind it (members, non-members)."""
    unit: str = ""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """Small arrays for figures, JSON-able (a ROC curve, a histogram)."""


class Audit(Protocol):
    """A frozen dataclass: its fields are its thresholds."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """Arrays in, findings out."""
        ...


def mean_measured(values: Iterable[float | None]) -> float | None:
    """The mean of those that could be measured; None if none could."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
