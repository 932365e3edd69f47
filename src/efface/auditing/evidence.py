"""Evidence and findings: the input and the output of every audit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from efface.auditing.observations import Observations
from efface.errors import EffaceError

Level = Literal["A0", "A1", "A2"]
"""Strength of the evidence; see :attr:`Evidence.level`."""
PAIRS = 32
"""Smallest number of pairs of an unlearned and a retrained model for evidence of level A2."""
MAX_EVALUATED_ORACLES = 8
"""How many oracles are audited themselves, for comparison; all of them serve as references."""


@dataclass(frozen=True)
class Cost:
    """Training cost of a model: optimizer steps, examples seen, wall-clock seconds."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True, eq=False)
class RelearnedCopies:
    """Copies of the models that were trained further, and observed at intervals."""

    on: str
    """The part that they were trained on: ``retain`` or ``forget``."""
    snapshots: dict[str, tuple[tuple[int, Observations], ...]]
    """Name of the model (``subject``, ``oracle 1`` ...) to ``(steps, observations)`` of its copy, from step 0."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything an audit may use: observations of the subject, the original and the reference models.

    Example:
        >>> evidence = Evidence(original, unlearned, oracles=(retrained,))
        >>> findings = Membership().findings(evidence)

    Raises:
        EffaceError: If the models were observed on different splits, or a model is given twice.

    """

    original: Observations
    """The model before unlearning."""
    subject: Observations
    """The audited model: an unlearned one, the original itself, or an oracle."""
    oracles: tuple[Observations, ...] = ()
    """Models retrained without the forget set; the subject is never one of its own references."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """Training cost of ``"subject"`` and ``"oracle"``, where known."""
    unlearned: tuple[Observations, ...] = ()
    """Originals of other seeds, unlearned like the subject; with the oracles they form the pairs of level A2."""
    relearned: tuple[RelearnedCopies, ...] = ()
    """Copies of the subject and the oracles that were trained further, if there are any."""
    claimed: frozenset[str] = frozenset()
    """Digests of the oracles of which the user only states that they never saw the forget set. They are measured like
    the others, and may speak against "removed", but never for it."""
    calibration: tuple[Observations, ...] = ()
    """What the models of a reference bank that never saw them score on the examples; see
    :meth:`efface.auditing.reference_bank.ReferenceBank.calibrate`. They take the place of the oracles as references."""

    def __post_init__(self) -> None:
        """Check that the models can be compared."""
        models = (self.original, self.subject, *self.oracles, *self.unlearned, *self.calibration)
        if len({observed.split for observed in models}) > 1:
            raise EffaceError(
                "The observations were made on different splits.",
                f"Their split digests: {', '.join(observed.split[:12] for observed in models)}.",
                "Observe the original, the subject and every other model on the same split.",
            )
        unlearned = [one.model for one in self.unlearned]
        known = {self.original.model, *(oracle.model for oracle in self.oracles)}
        if len(set(unlearned)) < len(unlearned) or known & set(unlearned):
            raise EffaceError(
                "An unlearned model of a pair is the original, an oracle, or given twice.",
                "The models of the pairs must differ in their seed and in nothing else.",
                "Give each model that was unlearned from an original of another seed, once.",
            )
        digests = [oracle.model for oracle in self.oracles]
        if self.original.model in digests or len(set(digests)) < len(digests) or self.subject.model in digests:
            raise EffaceError(
                "An oracle is the subject, the original, or given twice.",
                "A model says nothing about itself, and the original saw the forget set.",
                "Give as oracles only other models that were retrained without the forget set, each once.",
            )

    def models(self) -> Iterator[tuple[str, Observations, tuple[Observations, ...]]]:
        """Yield ``(name, observations, references)`` of the subject, the original and each oracle.

        With a reference bank, its models are the references of all. Otherwise the oracles are, and an oracle's
        references are all the other oracles. At most ``MAX_EVALUATED_ORACLES`` oracles are yielded.
        """
        yield "subject", self.subject, self.references
        yield "original", self.original, self.references
        for i, oracle in enumerate(self.oracles[:MAX_EVALUATED_ORACLES]):
            yield f"oracle {i + 1}", oracle, self.calibration or self.oracles[:i] + self.oracles[i + 1 :]

    def verified(self) -> Evidence:
        """The evidence without the oracles that are only claimed to be clean."""
        kept = tuple(oracle for oracle in self.oracles if oracle.model not in self.claimed)
        return self if len(kept) == len(self.oracles) else replace(self, oracles=kept, claimed=frozenset())

    @property
    def references(self) -> tuple[Observations, ...]:
        """What the scores of subject and original are calibrated by: the models of a bank, or else the oracles."""
        return self.calibration or self.oracles

    @property
    def pairs(self) -> int:
        """Number of pairs of an unlearned and a retrained model."""
        return min(len(self.unlearned), len(self.oracles))

    @property
    def level(self) -> Level:
        """A0: original and subject only. A1: an oracle or a reference bank. A2: at least ``PAIRS`` pairs."""
        return "A2" if self.pairs >= PAIRS else "A1" if self.references else "A0"


@dataclass(frozen=True)
class Finding:
    """One measured number with everything needed to interpret it."""

    name: str
    """Dotted, stable name, such as ``membership.projector.margin.auc``."""
    value: float | None
    """The measured value; ``None`` only with a ``note`` that says why it could not be measured."""
    interval: tuple[float, float] | None = None
    """95 % interval; one without an end, as that of a single example, says nothing and becomes ``None``."""
    better: Literal["lower", "higher", "closer"] | None = None
    """Which direction is good; ``closer`` to the oracle's value (or to the ideal given in ``note``)."""
    original: float | None = None
    """The same measurement of the original."""
    oracle: float | None = None
    """The same measurement of the oracles (mean)."""
    n: tuple[int, ...] = ()
    """Sample sizes (members, non-members)."""
    unit: str = ""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """Small JSON-serializable arrays for figures, such as a ROC curve or a histogram."""

    def __post_init__(self) -> None:
        """Leave out an interval that reaches to infinity."""
        if self.interval is not None and any(math.isinf(end) for end in self.interval):
            object.__setattr__(self, "interval", None)


class Audit(Protocol):
    """An audit: a frozen dataclass whose fields are its settings."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """Measure the evidence; the findings' names start with the name of the audit."""
        ...


def mean_measured(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def share_finding(
    name: str,
    part: str,
    values: Sequence[float | None],
    interval: tuple[float, float],
    n: int,
    note: str = "",
) -> Finding:
    """Build the finding of an accuracy or recall of ``n`` examples of ``part``.

    Args:
        name: Name of the finding.
        part: On the forget set the oracle's value is good, elsewhere a higher one is.
        values: Shares of the subject, the original and each oracle.
        interval: 95 % interval of the subject's.
        n: Sample size.
        note: Remark for readers.

    """
    better = "closer" if part == "forget" else "higher"
    oracle = mean_measured(values[2:])
    return Finding(name, values[0], interval, better, values[1], oracle, (n,), unit="share", note=note)
