"""Oracle gap: how far the subject is from models retrained without the forget set, metric by metric and on
average.

The mean over metrics is the field's headline ("average gap"). It is read against the gap of one oracle to
the other oracles: no method can be expected to come closer to retraining than another seed of retraining
does.
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
    """Absolute differences to the mean oracle in accuracy and in membership of the forgotten and the
    retained.
    """

    k: int = 20
    """Neighbors that vote, where the model is no classifier."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``oracle_gap.<metric>``, ``oracle_gap.average`` and ``oracle_gap.cost.<what>``; ``oracle``: the
        noise floor.
        """
        if not evidence.oracles:
            note = "no oracle was given: retrain without the forget set and audit again with it"
            return [Finding("oracle_gap.average", None, better="lower", note=note), *cost(evidence)]
        subject, original, *oracles = [self.metrics(o) for _, o, _ in evidence.models()]
        shared = [name for name in subject if all(name in other for other in oracles)]
        found: list[Finding] = []
        for name in shared:
            seen = [o[name] for o in oracles]
            center = float(np.mean(seen))
            before = abs(original[name] - center) if name in original else None
            details = {"subject": subject[name], "original": original.get(name), "oracles": seen}
            found.append(
                Finding(
                    f"oracle_gap.{name}",
                    abs(subject[name] - center),
                    None,
                    "lower",
                    before,
                    floor(seen),
                    note="difference to the mean oracle; beside it, of one oracle to the others",
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
        return [average, *found, *outputs(evidence), *cost(evidence)]

    def metrics(self, observed: Observations) -> dict[str, float]:
        """Everything that can be measured of one model: accuracies of three parts, membership of two, per
        space.
        """
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


def floor(seen: list[float]) -> float | None:
    """Mean distance of one oracle to the mean of the others: the same measurement with an oracle as the
    subject.
    """
    if len(seen) < 2:
        return None
    total = sum(seen)
    return float(np.mean([abs(one - (total - one) / (len(seen) - 1)) for one in seen]))


def outputs(evidence: Evidence) -> list[Finding]:
    """Classifiers: mean Jensen-Shannon divergence of the class probabilities to each oracle's, on F."""
    models = [o for _, o, _ in evidence.models()]
    if not all(o.has("forget", "logits") for o in models):
        return []
    p = [np.exp(signals.log_probabilities(o.of("forget", "logits"))[0]) for o in models]
    gaps = [
        mean_measured(float(stats.js_divergence(p[i], q).mean()) for j, q in enumerate(p[2:], 2) if j != i)
        for i in range(len(p))
    ]
    note = "not part of the average; 0 to log 2"
    n, noise = (len(p[0]),), mean_measured(gaps[2:])
    return [Finding("oracle_gap.outputs.forget", gaps[0], None, "lower", gaps[1], noise, n, "nats", note)]


def cost(evidence: Evidence) -> list[Finding]:
    """Optimizer steps, examples seen and seconds, each as a share of what retraining took."""
    mine, retrain = evidence.costs.get("subject"), evidence.costs.get("oracle")
    if mine is None or retrain is None:
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
            ("steps", mine.steps, retrain.steps),
            ("examples", mine.examples, retrain.examples),
            ("seconds", mine.seconds, retrain.seconds),
        )
    ]
