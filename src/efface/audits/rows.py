"""Rows: findings about one part, each with the same number of the subject, of the original and of every oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from efface import attacks, signals, stats
from efface.audits import Evidence, Finding, mean
from efface.observations import Observations

T = TypeVar("T")
References = tuple[Observations, ...]
Measured = float | tuple[float, float, float] | None
"""A number, one with its interval, or nothing where a model has no such signal."""
MEANING = "0.5: members and non-members look alike; compare with the oracle, which never saw the forget set"
AT = "at a threshold chosen on other examples; precision as if members and non-members were equally many"


@dataclass(frozen=True)
class Rows:
    """Findings about one part, with the same number for subject, original and oracles on each."""

    evidence: Evidence
    part: str
    prefix: str
    found: list[Finding] = field(default_factory=list)

    def each(self, measure: Callable[[Observations], T]) -> list[T]:
        """``measure`` of subject, original and every oracle."""
        return [measure(o) for _, o, _ in self.evidence.models()]

    def add(self, name: str, values: Sequence[Measured], note: str, details: dict[str, Any] | None = None) -> None:
        """One finding from the values of subject, original and oracles."""
        subject, other = self.evidence.subject, signals.nonmembers(self.evidence.subject, self.part)
        plain = [v[0] if isinstance(v, tuple) else v for v in values]
        between = (values[0][1], values[0][2]) if isinstance(values[0], tuple) else None
        n = (subject.count(self.part), subject.count(other))
        oracle, name = mean(plain[2:]), self.prefix + name
        made = Finding(name, plain[0], between, "closer", plain[1], oracle, n, note=note, details=details or {})
        self.found.append(made)

    def rates(
        self, name: str, run: Callable[[Observations], attacks.Attacked], signal: str, ranks: bool = False
    ) -> None:
        """Balanced accuracy, precision and recall of an attack on ``signal``; with ``ranks`` its AUC too."""
        if not signals.has(self.evidence.subject, "retain", signal):
            return  # nothing to choose a threshold on
        done = self.each(lambda o: run(o) if signals.pair(o, self.part, signal) else None)
        nobody = "; nobody was called a member" if done[0] and done[0].precision is None else ""
        if ranks:
            self.add(f"{name}.auc", [a and stats.interval(a.v10, a.v01) for a in done], MEANING)
        self.add(f"{name}.balanced_accuracy", [a and a.balanced_accuracy for a in done], AT)
        self.add(f"{name}.precision", [a and a.precision for a in done], AT + nobody)
        self.add(f"{name}.recall", [a and a.recall for a in done], AT)
