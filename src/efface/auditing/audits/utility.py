"""Utility audit: quality of the features and the classifier, compared with the original and the oracles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.evidence import Evidence, Finding, mean_measured, share_finding
from efface.auditing.observations import Observations

DISTANCE_SAMPLE = 2000
"""Number of examples whose pairwise distances are measured (a random sample by key)."""


@dataclass(frozen=True)
class Utility:
    """k nearest neighbors, linear probe, classifier accuracy and label-free measures.

    Without labels only the label-free measures are reported.
    """

    ks: tuple[int, ...] = (20, 200)
    """Numbers of neighbors that vote (capped at the number of retained examples)."""
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Values of C from which the linear probe chooses on ``valid``."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``utility.knn<k>.<part>``, ``.probe.test``, ``.accuracy.<part>`` and ``.<measure>`` without labels."""
        found: list[Finding] = []
        for part in ("test", "retain", "forget"):
            if not evidence.subject.count(part):
                continue
            voted = [representations.knn_accuracy(o, part, self.ks) for _, o, _ in evidence.models()]
            for i, k in enumerate(self.ks):
                capped = min(k, evidence.subject.count("retain"))
                note = "" if capped == k else f"only {capped} retained examples can vote"
                found += accuracy_findings(f"utility.knn{k}.{part}", part, [v[i] if v else None for v in voted], note)
            found += accuracy_findings(
                f"utility.accuracy.{part}", part, [representations.accuracy(o, part) for _, o, _ in evidence.models()]
            )
        return [*found, *self._probe(evidence), *label_free(evidence)]

    def _probe(self, evidence: Evidence) -> list[Finding]:
        if not evidence.subject.count("test"):
            return []
        done = [representations.linear_probe(o, "test", self.penalties) for _, o, _ in evidence.models()]
        subject = done[0]
        note = "; ".join(text for text in (f"C = {subject.c:g}", subject.note) if text) if subject else ""
        return accuracy_findings("utility.probe.test", "test", [p and (p.right, p.of) for p in done], note)


def accuracy_findings(name: str, part: str, hits: list[representations.Hits | None], note: str = "") -> list[Finding]:
    """Build the finding of an accuracy with its exact interval; an empty list where there are no labels."""
    if hits[0] is None:
        return []
    values = [h and h[0] / h[1] for h in hits]
    return [share_finding(name, part, values, stats.clopper_pearson(*hits[0]), hits[0][1], note)]


def never_trained(observed: Observations, name: str) -> str | None:
    """Return the first never-trained part for which ``name`` was observed."""
    return next((part for part in ("test", "holdout", "valid") if observed.has(part, name)), None)


def label_free(evidence: Evidence) -> list[Finding]:
    """Measure alignment and uniformity (Wang and Isola 2020), effective rank, and linear CKA to the original."""
    models = [o for _, o, _ in evidence.models()]
    found: list[Finding] = []
    for space in evidence.subject.spaces:
        name, part = f"{space}.pairs", never_trained(evidence.subject, f"{space}.pairs")
        if part is not None:
            apart = [(2 - 2 * o.of(part, name)).mean(axis=1) if o.has(part, name) else np.empty(0) for o in models]
            values = [float(a.mean()) if len(a) else None for a in apart]
            spread = stats.bootstrap(lambda v: float(v.mean()), apart[0], draws=500)
            note = f"mean squared distance of two views of the same image, {part}; a collapsed encoder has 0"
            found.append(label_free_finding(f"utility.alignment.{space}", values, len(apart[0]), note, interval=spread))
    part = never_trained(evidence.subject, "features")
    if part is None:
        return found
    x = [representations.features(o, part) for o in models]
    n = len(x[0])

    def each(measure: Callable[[np.ndarray], float]) -> list[float | None]:
        return [measure(v) for v in x]

    note = f"log mean exp(-2 squared distance) on {part}; a collapsed encoder has 0"
    few = signals.random_order_by_key(evidence.subject.of(part, "keys"))[:DISTANCE_SAMPLE]
    if len(few) > 1:
        values = each(lambda v: representations.uniformity(v[few]))
        found.append(label_free_finding("utility.uniformity", values, len(few), note))
    note = f"of the features of {part}; a collapsed encoder has 1"
    found.append(label_free_finding("utility.effective_rank", each(representations.effective_rank), n, note))
    note = f"1: the features of {part} are the original's up to rotation and scale"
    found.append(label_free_finding("utility.cka", each(lambda v: representations.linear_cka(v, x[1])), n, note))
    return found


def label_free_finding(
    name: str, values: list[float | None], n: int, note: str, interval: tuple[float, float] | None = None
) -> Finding:
    """Build a label-free finding; the oracle's value is good."""
    return Finding(name, values[0], interval, "closer", values[1], mean_measured(values[2:]), (n,), note=note)
