"""Neighbor class audit, for requests that forget whole classes: where the pictures of a forgotten class go instead.

    score(x) = log p_k*(x) - log(1 - p_k*(x))         q_k(x) = p_k(x) / Σ_{j remaining} p_j(x)
    detection    AUC of the scores under the audited model against those under a retrained one, of the same pictures
    divergence   Jensen-Shannon, of the mean q of a class under both models; mean over the forgotten classes
    members      AUC of the score, F against never-trained examples of its classes

k*: the neighbor of x's class, to which the retrained models send it most. p: a classifier's probabilities; for an
encoder, a softmax at temperature 0.1 of the cosines with the class means of the retained features. A retrained model
sends pictures of a class that it never saw to the classes that are like it. A model that was made to refuse the class
sends them elsewhere, and can be told by that. Without retrained models k* is the audited model's own neighbor, and only
``members`` is measured. Retrained models differ among each other, more than the interval over pictures says: the
details list the value of each, which is what the subject's is to be compared with.

Source      after CMIA: Ebrahimpour-Boroojeny, Wang and Sundaram, Unlearning Isn't Forgetting: Revealing Hidden Leakage
            in Class Unlearning Evaluations, ICML 2026: probabilities of neighboring classes tell unlearned samples.
Departures  its equations could not be read: score, comparison and the encoder's probabilities are ours.
Tests cover a request that leaves some of the class; a share that still holds the forgotten class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from efface.auditing.attacks.class_neighbors import (
    Interval,
    Neighbors,
    forgotten_classes,
    measure_divergence,
    tell_members,
    tell_models,
)
from efface.auditing.attacks.signal_tables import FEWEST_COMPARED, compared_models
from efface.auditing.evidence import Evidence, Finding, mean_measured


@dataclass(frozen=True)
class NeighborClass:
    """Whether the audited model can be told from retrained ones by the neighbors of a forgotten class."""

    level: float = 0.95
    """Confidence level of the intervals."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``neighbor_class.members``, and with references ``.detection`` and ``.divergence``; one empty if no class."""
        subject = evidence.subject
        classes, n = forgotten_classes(subject), (subject.count("forget"), subject.count("holdout"))
        if not len(classes) or min(n) < FEWEST_COMPARED:
            note = "no class was forgotten as a whole" if not len(classes) else "too few examples of the classes"
            return [Finding("neighbor_class.members", None, better="closer", n=n, note=note)]
        known = {o.model: Neighbors.of(o, classes) for _, o, _ in evidence.models()}
        known |= {o.model: Neighbors.of(o, classes) for o in evidence.oracles if o.model not in known}
        pairs = [(known[o.model], [known[r.model] for r in others]) for o, others in compared_models(evidence)]
        note = "forgotten against never-trained examples of their classes, by the neighbor class; 0.5: alike"
        found = [self._finding("members", pairs, partial(tell_members, level=self.level), n, note)]
        if evidence.oracles:
            note = "neighbor probability under the model against that under retrained ones, same pictures; 0.5: alike"
            found.append(self._finding("detection", pairs, partial(tell_models, level=self.level), n, note))
            note = "of where pictures of the forgotten classes go, to where retrained models send them; 0 to log 2"
            found.append(self._finding("divergence", pairs, measure_divergence, n, note, unit="nats"))
        return found

    def _finding(
        self,
        name: str,
        pairs: Sequence[tuple[Neighbors, list[Neighbors]]],
        measure: Callable[[Neighbors, list[Neighbors]], Interval | None],
        n: tuple[int, int],
        note: str,
        unit: str = "",
    ) -> Finding:
        """Measure every model against its references."""
        measured = [measure(*pair) for pair in pairs]
        values, own = [one and one[0] for one in measured], measured[0]
        interval = (own[1], own[2]) if own and own[1] < own[2] else None
        better = "lower" if name == "divergence" else "closer"
        oracle = mean_measured(values[2:])
        details = {"oracles": [value for value in values[2:] if value is not None]}
        return Finding(f"neighbor_class.{name}", values[0], interval, better, values[1], oracle, n, unit, note, details)
