"""Oracle gap audit: distance of the subject from models retrained without the forget set, per metric and on average.

The mean over metrics is known as the "average gap". Compare it with the noise floor, the gap of one oracle to the other
oracles: no method can be expected to come closer to retraining than retraining with another seed does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations


@dataclass(frozen=True)
class OracleGap:
    """Absolute differences to the mean oracle in accuracy and in membership AUC of forget and retain."""

    k: int = 20
    """Number of neighbors in the kNN accuracy of models that are not classifiers."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``oracle_gap.<metric>``, ``.average`` and ``.cost.<what>``; the ``oracle`` value is the noise floor."""
        if not evidence.oracles:
            note = "no oracle was given: retrain without the forget set and audit again with it"
            return [Finding("oracle_gap.average", None, better="lower", note=note), *cost_findings(evidence)]
        subject, original, *oracles = [self.metrics(o) for _, o, _ in evidence.models()]
        shared = [name for name in subject if all(name in oracle for oracle in oracles)]
        found: list[Finding] = []
        for name in shared:
            values = [oracle[name] for oracle in oracles]
            center = float(np.mean(values))
            before = abs(original[name] - center) if name in original else None
            details = {"subject": subject[name], "original": original.get(name), "oracles": values}
            found.append(
                Finding(
                    f"oracle_gap.{name}",
                    abs(subject[name] - center),
                    None,
                    "lower",
                    before,
                    noise_floor(values),
                    note="difference to the mean oracle; the oracle's value: of one oracle to the others",
                    details=details,
                )
            )
        note = f"mean of {len(found)} gaps: {', '.join(shared)}"
        if len(oracles) < 2:
            note += "; one oracle only, so the noise floor between oracles is unknown"
        average = Finding(
            "oracle_gap.average",
            mean_measured(f.value for f in found),
            None,
            "lower",
            mean_measured(f.original for f in found),
            mean_measured(f.oracle for f in found),
            (len(oracles),),
            note=note,
        )
        return [average, *found, *output_divergence(evidence), *cost_findings(evidence)]

    def metrics(self, observed: Observations) -> dict[str, float]:
        """Measure one model: accuracy and recall@1 of three parts, and membership AUC of two parts per margin."""
        found: dict[str, float] = {}
        for part in ("forget", "retain", "test"):
            hits = representations.accuracy(observed, part)
            name = f"accuracy.{part}"
            if hits is None and observed.count(part):
                voted, name = representations.knn_accuracy(observed, part, (self.k,)), f"knn{self.k}.{part}"
                hits = voted[0] if voted else None
            if hits is not None:
                found[name] = hits[0] / hits[1]
            recalled = representations.mean_retrieval_recall(observed, part, 1)
            if recalled is not None:
                found[f"recall1.{part}"] = recalled
        for part in ("forget", "retain"):
            for signal in signals.available_signals(observed, part):
                pair = signals.score_pair(observed, part, signal) if signal.endswith(".margin") else None
                if pair:
                    found[f"membership.{part}.{signal}"] = stats.auc(*pair)
        return found


def noise_floor(values: list[float]) -> float | None:
    """Return the mean distance of one oracle's value to the mean of the others; None for fewer than two."""
    if len(values) < 2:
        return None
    total = sum(values)
    return float(np.mean([abs(value - (total - value) / (len(values) - 1)) for value in values]))


def output_divergence(evidence: Evidence) -> list[Finding]:
    """Measure a classifier's mean Jensen-Shannon divergence to the oracles' class probabilities on the forget set."""
    models = [o for _, o, _ in evidence.models()]
    if not all(o.has("forget", "logits") for o in models):
        return []

    def probabilities(logits: np.ndarray) -> np.ndarray:
        return np.exp(signals.log_probabilities(logits)[0])

    def divergence(one: Observations, other: Observations) -> float:
        first, second = (model.of("forget", "logits") for model in (one, other))
        by_row = signals.score_rows(
            first, lambda z, rows: stats.js_divergence(probabilities(z), probabilities(second[rows]))
        )
        return float(by_row.mean())

    gaps = [
        mean_measured(divergence(one, oracle) for j, oracle in enumerate(models[2:], 2) if j != i)
        for i, one in enumerate(models)
    ]
    note = "not part of the average; 0 to log 2"
    n, noise = (models[0].count("forget"),), mean_measured(gaps[2:])
    return [Finding("oracle_gap.outputs.forget", gaps[0], None, "lower", gaps[1], noise, n, "nats", note)]


def cost_findings(evidence: Evidence) -> list[Finding]:
    """Report optimizer steps, examples seen and seconds, each as a share of the cost of retraining."""
    subject, retrain = evidence.costs.get("subject"), evidence.costs.get("oracle")
    if subject is None or retrain is None:
        return []
    return [
        Finding(
            f"oracle_gap.cost.{what}",
            spent / full if full else None,
            None,
            "lower",
            unit="of retraining",
            note=f"{spent:g} against {full:g}" if full else "retraining recorded none",
        )
        for what, spent, full in (
            ("steps", subject.steps, retrain.steps),
            ("examples", subject.examples, retrain.examples),
            ("seconds", subject.seconds, retrain.seconds),
        )
    ]
