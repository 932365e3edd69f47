"""Companions audit: never-trained examples of the forgotten groups, such as unseen pictures of the same person.

    ``companions.<signal>.auc``          AUC(C vs H)         ``companions.<signal>.forget.auc``     AUC(F vs C)

F: the forgotten; C: never-trained examples of the same groups, too few to be the holdout; H: the holdout. Where C
stands out from H, the group itself does: part of what tells F from H is then what the group looks like. Where F stands
out from C, its examples are told from others of the same group, which only training on them explains.

Source      ours.
Departures  none; no verdict rests on it, for C is small.
Tests cover companions that were trained on; F and C exchanged; a single companion.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import COMPANIONS, Observations

FEWEST_COMPANIONS = 2
"""A single companion has no interval."""
THEMSELVES = "above 0.5: unseen examples of the forgotten groups stand out by themselves, before anything was memorized"
FROM_THEM = "above 0.5: the forgotten stand out from unseen examples of their own groups"


@dataclass(frozen=True)
class Companions:
    """How never-trained examples of the forgotten groups compare with the holdout and with the forgotten."""

    level: float = 0.95
    """Confidence level of the intervals."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``companions.<signal>.auc`` and ``companions.<signal>.forget.auc``; nothing without companions."""
        subject, count = evidence.subject, evidence.subject.count(COMPANIONS)
        if not count:
            return []
        if count < FEWEST_COMPANIONS:
            return [Finding("companions.auc", None, n=(count,), note="one unseen example of the groups is too few")]
        found: list[Finding] = []
        for signal in signals.prespecified_signals(subject):
            for name, one, other, note in (
                ("auc", COMPANIONS, "holdout", THEMSELVES),
                ("forget.auc", "forget", COMPANIONS, FROM_THEM),
            ):
                values = [self.compare(o, one, other, signal) for _, o, _ in evidence.models()]
                if values[0] is None:
                    continue
                value, low, high = values[0]
                middle = [each and each[0] for each in values]
                n = (subject.count(one), subject.count(other))
                found.append(
                    Finding(
                        f"companions.{signal}.{name}", value, (low, high), "closer", middle[1],
                        mean_measured(middle[2:]), n, note=note,
                    )
                )  # fmt: skip
        return found

    def compare(self, observed: Observations, one: str, other: str, signal: str) -> tuple[float, float, float] | None:
        """AUC of one part against another in one model, with its interval; None where it has no such signal."""
        if not all(signals.has_signal(observed, part, signal) for part in (one, other)):
            return None
        return stats.interval(
            *stats.placements(signals.scores(observed, one, signal), signals.scores(observed, other, signal)),
            level=self.level,
        )
