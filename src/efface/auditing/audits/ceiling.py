"""Ceiling: the level of this evidence, and the largest leak that so many examples and models can show at all.

    population    ε = log of the lower bound of a perfect attack's TPR over the upper bound of its FPR, n_F against n_H
    per example   ε = log((1 - δ) N - 1): N pairs of models, one mistake of each kind; A2 only

A finding below its ceiling says something; a leak above the ceiling would have looked the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from efface import stats
from efface.auditing.attacks import model_pairs
from efface.auditing.evidence import PAIRS, Evidence, Finding

LEVELS = {
    "A0": "a screen: the model before and after, no reference",
    "A1": "with references that never saw the forget set",
    "A2": "with pairs of unlearned and retrained models, compared example by example",
}


@dataclass(frozen=True)
class Ceiling:
    """How far this evidence reaches."""

    delta: float = 0.01
    """δ of the per-example ε."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``ceiling.references``, ``.pairs``, ``.epsilon`` and ``.example_epsilon``."""
        m, n = evidence.subject.count("forget"), evidence.subject.count("holdout")
        level = f"level {evidence.level}: {LEVELS[evidence.level]}"
        found = [
            Finding("ceiling.references", float(len(evidence.oracles)), better="higher", unit="models", note=level),
            Finding(
                "ceiling.pairs", float(evidence.pairs), better="higher", unit="pairs", note=f"A2 needs at least {PAIRS}"
            ),
        ]
        bound = stats.epsilon_ceiling(m, n) if min(m, n) else 0.0
        note = "the largest that a perfect attack on all examples together could certify (95 %)"
        if bound <= 0:
            found.append(
                Finding("ceiling.epsilon", None, n=(m, n), note="too few examples to bound any leak in epsilon")
            )
        else:
            found.append(Finding("ceiling.epsilon", bound, better="higher", n=(m, n), unit="epsilon", note=note))
        if evidence.pairs >= 4:
            largest = model_pairs.largest_epsilon(evidence.pairs, self.delta)
            note = "the largest finite epsilon of one example that so many pairs can show"
            found.append(
                Finding(
                    "ceiling.example_epsilon",
                    largest,
                    better="higher",
                    n=(evidence.pairs,) * 2,
                    unit="epsilon",
                    note=note,
                )
            )
        return found
