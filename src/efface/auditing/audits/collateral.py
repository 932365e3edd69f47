"""Collateral audit: whether the model forgot retained examples too.

A method that makes the model forget *everything* a little looks perfect on the forget set alone. This audit measures
how well retained examples can be told from never-trained ones. It also shows the opposite: retained examples trained
on so much longer that they leak more than before.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence, Finding, mean_measured


@dataclass(frozen=True)
class Collateral:
    """AUC of retained against never-trained examples, and its differences to the original and the oracles."""

    level: float = 0.95
    """Confidence level of the intervals."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``collateral.<signal>.auc``, ``.vs_original`` and, with oracles, ``.vs_oracle`` of every margin."""
        found: list[Finding] = []
        for signal in signals.available_signals(evidence.subject, "retain"):
            if signal.endswith(".margin"):
                found += self._signal(evidence, signal)
        return found

    def _signal(self, evidence: Evidence, signal: str) -> list[Finding]:
        other = signals.nonmember_part(evidence.subject, "retain")
        pairs = [signals.score_pair(o, "retain", signal) for _, o, _ in evidence.models()]
        subject, original, *oracles = pairs
        if subject is None:
            return []
        n = (len(subject[0]), len(subject[1]))
        value, low, high = stats.delong(*subject, self.level)
        aucs = [p and stats.auc(*p) for p in pairs]
        note = f"retained against {other}; an oracle's value is what training on them costs anyway"
        name = f"collateral.{signal}"
        found = [Finding(f"{name}.auc", value, (low, high), "closer", aucs[1], mean_measured(aucs[2:]), n, note=note)]
        compared = {"original": [original] if original else [], "oracle": [p for p in oracles if p]}
        for who, others in compared.items():
            if others:
                gap, low, high = stats.delong_difference(subject, others, self.level)
                note = f"AUC minus the {who}'s, paired by example; below 0: the retained are forgotten too"
                found.append(Finding(f"{name}.vs_{who}", gap, (low, high), "closer", n=n, note=note))
        return found
