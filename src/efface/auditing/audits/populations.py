"""Populations audit (level A2): N unlearned against N retrained models, by U-LiRA, forgetting score and KLoM.

Equations, sources and departures: :mod:`efface.auditing.attacks.model_pairs`. Each finding has a zero line, its
*oracle* value: the same statistic of one half of the retrained models against the other half, with N/2 on each side.
Compare the zero line of a statistic that depends on N (forgetting score, KLoM) with ``half``, the subject's value with
N/2 models. The audit judges the method over seeds, not one checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks import model_pairs, reference_models
from efface.auditing.evidence import PAIRS, Evidence, Finding


@dataclass(frozen=True)
class Populations:
    """U-LiRA, the forgetting score and KLoM of every margin."""

    least: int = PAIRS
    """Smallest number of pairs of models for a measurement."""
    delta: float = model_pairs.DELTA
    """δ of the forgetting score."""
    bins: int = 20
    """Number of bins of KLoM's histograms."""
    worst: int = 10
    """How many of the most revealing examples to list."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``populations.<signal>.ulira.*``, ``.forgetting_score`` and ``.klom.*``; below A2 one without a value."""
        count = evidence.pairs
        if count < max(4, self.least):
            note = f"{count} pairs of unlearned and retrained models, and {self.least} are needed (`efface references`)"
            return [Finding("populations.ulira.auc", None, better="closer", note=note)]
        found: list[Finding] = []
        for signal in signals.prespecified_signals(evidence.subject):
            found += self._signal(evidence, signal)
        return found

    def _signal(self, evidence: Evidence, signal: str) -> list[Finding]:
        population = PopulationScores(evidence, signal, f"populations.{signal}.")
        unlearned, retrained = population.of("forget")
        high, low = model_pairs.likelihood_ratios(unlearned, retrained)
        note = "0.5: unlearned and retrained models look alike; distributions are fitted without the scored model"
        found = [
            population.finding(
                "ulira.auc", model_pairs.ulira, "closer", note, details={"worst": self._worst(population)}
            ),
            population.finding(
                "ulira.tpr_at_1_in_100", _rate, "lower", "over all models and examples; 0.01 by guessing"
            ),
        ]
        for part in ("retain", "holdout"):
            if population.has(part):
                note = "0.5: these examples reveal no unlearned model; what they reveal is not about the forget set"
                found.append(population.finding(f"ulira.{part}.auc", model_pairs.ulira, "closer", note, part))
        ceiling = stats.rounded_down(model_pairs.largest_epsilon(len(high), self.delta))
        note = (
            f"1 is best; with {len(high)} pairs no finite epsilon above {ceiling:g} can be shown; delta {self.delta:g}"
        )
        score = partial(model_pairs.forgetting_score, delta=self.delta)
        found.append(population.finding("forgetting_score", score, "higher", note))
        note = f"mean over the examples; disjoint populations of so many would give {{:.2f}}; {self.bins} bins"
        note = note.format(model_pairs.largest_divergence(len(low), self.bins))
        for part in ("forget", "retain", "holdout"):
            if population.has(part):
                klom = partial(model_pairs.klom, bins=self.bins)
                found.append(population.finding(f"klom.{part}", klom, "lower", note, part, unit="nats"))
        if population.has("forget"):
            published = partial(model_pairs.klom_published, bins=self.bins)
            note = "as the public code computes it, the other way round: for comparison with published numbers"
            found.append(population.finding("klom.published", published, "lower", note, unit="nats"))
        return found

    def _worst(self, population: PopulationScores) -> list[dict[str, Any]]:
        """List the examples that reveal an unlearned model best."""
        high, low = model_pairs.likelihood_ratios(*population.of("forget"))
        aucs = np.array([stats.auc(a, b) for a, b in zip(high.T, low.T, strict=True)])
        subject = population.evidence.subject
        keys = subject.of("forget", "keys")[signals.scored_rows(subject, "forget", population.signal)]
        order = np.argsort(-aucs, kind="stable")[: self.worst]
        return [{"item": str(keys[i]), "auc": float(aucs[i])} for i in order]


def _rate(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Return the TPR of U-LiRA at an FPR of 1 %, over all models and examples."""
    high, low = model_pairs.likelihood_ratios(unlearned, retrained)
    rate = stats.tpr_at_fpr(high.ravel(), low.ravel(), 0.01)
    return rate.value or 0.0


@dataclass(frozen=True, eq=False)
class PopulationScores:
    """Scores of both populations on one signal, and the findings from them."""

    evidence: Evidence
    signal: str
    prefix: str

    def has(self, part: str) -> bool:
        """Whether every model has the signal on ``part``."""
        return all(signals.has_signal(o, part, self.signal) for o in (*self.evidence.unlearned, *self.evidence.oracles))

    def of(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of ``part`` under the unlearned and the retrained models, both ``[N, n]``."""
        unlearned, retrained = (
            reference_models.stack_references(models, part, self.signal)
            for models in (self.evidence.unlearned, self.evidence.oracles)
        )
        signals.require_same_examples(self.evidence.subject, (*self.evidence.unlearned, *self.evidence.oracles), part)
        return model_pairs.paired(unlearned, retrained)

    def finding(
        self,
        name: str,
        statistic: Callable[[np.ndarray, np.ndarray], float],
        better: Literal["lower", "higher", "closer"],
        note: str,
        part: str = "forget",
        unit: str = "",
        details: dict[str, Any] | None = None,
    ) -> Finding:
        """Build the finding of a statistic, with its interval, its zero line and its value with half of the models."""
        unlearned, retrained = self.of(part)
        half = len(retrained) // 2
        with_half = statistic(unlearned[:half], retrained[half : 2 * half]) if half >= 4 else None
        value, low, high = model_pairs.jackknife(statistic, unlearned, retrained)
        zero = model_pairs.null_statistic(statistic, retrained)
        more = (details or {}) | ({} if with_half is None else {"half": with_half})
        n = (len(unlearned), unlearned.shape[1])
        return Finding(self.prefix + name, value, (low, high), better, None, zero, n, unit, note, more)
