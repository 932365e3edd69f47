"""Audits turn observations (arrays) into findings. They never see torch, a model or a method.

Adding one: a file here with a frozen dataclass that has ``findings(evidence)``, and one line in ``AUDITS``.
Everywhere: a higher score is more member-like.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from efface.observations import Observations


@dataclass(frozen=True)
class Cost:
    """What a model took to make: optimizer steps, examples seen, wall seconds."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything an audit may look at: one subject, the original, and models that never saw the forget set."""

    original: Observations
    subject: Observations
    """The model on trial: an unlearned one, the original itself, or an oracle."""
    oracles: tuple[Observations, ...] = ()
    """References that never saw F; the subject itself is never among its own references."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """``"subject"`` and ``"oracle"`` where known."""

    @property
    def level(self) -> Literal["A0", "A1"]:
        """A0: original and subject only. A1: at least one reference that never saw F."""
        return "A1" if self.oracles else "A0"


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
