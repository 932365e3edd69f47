"""Ceiling audit: the level of the evidence, and the largest leak that so many examples and models can show.

    population    ε = log(lower bound of a perfect attack's TPR / upper bound of its FPR) for n_F against n_H examples
    per example   ε = log((1 - δ) N - 1): N pairs of models and one mistake of each kind; A2 only

A finding below its ceiling is informative. A leak above the ceiling cannot be told from one at the ceiling.
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
"""What each level of evidence means."""


@dataclass(frozen=True)
class Ceiling:
    """Level and resolution of the evidence."""

    delta: float = model_pairs.DELTA
    """δ of the ε of single examples."""

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
