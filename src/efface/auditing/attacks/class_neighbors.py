"""Where models send the pictures of classes that were forgotten as a whole, among the classes that remain.

Equations: :mod:`efface.auditing.audits.neighbor_class`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.observations import Observations

TEMPERATURE = 0.1
"""Temperature of an encoder's probabilities."""
Interval = tuple[float, float, float]
"""``(value, low, high)``."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """What one model says of the pictures of the forgotten classes, on the classes that remain."""

    margins: dict[str, np.ndarray]
    """Part (``forget``, ``holdout``) to log p - log(1 - p), ``[n, remaining classes]``."""
    shares: dict[str, np.ndarray]
    """Part to q, the probabilities without those of the forgotten classes, ``[n, remaining classes]``."""
    labels: dict[str, np.ndarray]
    """Part to the class of each picture ``[n]``."""

    @staticmethod
    def of(observed: Observations, classes: np.ndarray) -> Neighbors:
        """Read the model's probabilities of F and of never-trained examples of its classes."""
        margins, shares, labels = dict[str, np.ndarray](), dict[str, np.ndarray](), dict[str, np.ndarray]()
        for part in ("forget", "holdout"):
            y = signals.labels(observed, part)
            rows = np.isin(y, classes)
            logits, remaining = class_logits(observed, part)
            kept = ~np.isin(remaining, classes)
            log_p, log_rest = signals.log_probabilities(logits[rows])
            margins[part] = (log_p - log_rest)[:, kept]
            log_q = log_p[:, kept]
            shares[part] = np.exp(log_q - np.logaddexp.reduce(log_q, axis=1, keepdims=True))
            labels[part] = y[rows]
        return Neighbors(margins, shares, labels)

    def means(self) -> dict[int, np.ndarray]:
        """Mean q ``[remaining classes]`` of each forgotten class."""
        q, y = (np.concatenate(list(x.values())) for x in (self.shares, self.labels))
        return {int(label): q[y == label].mean(axis=0) for label in np.unique(y)}

    def scores(self, references: Sequence[Neighbors]) -> dict[str, np.ndarray]:
        """Part to the scores of its pictures; the neighbors are those of the references, or the model's own."""
        means = [r.means() for r in references] or [self.means()]
        nearest = {label: int(np.argmax(np.mean([m[label] for m in means], axis=0))) for label in means[0]}
        columns = {part: [nearest[label] for label in y.tolist()] for part, y in self.labels.items()}
        return {part: x[np.arange(len(x)), columns[part]] for part, x in self.margins.items()}


def forgotten_classes(observed: Observations) -> np.ndarray:
    """Return the classes of F if none of their examples is retained, and at least two other classes are; else none."""
    if not (observed.has("forget", "labels") and observed.has("retain", "labels")):
        return np.empty(0, dtype=np.int64)
    asked, kept = (np.unique(signals.labels(observed, part)) for part in ("forget", "retain"))
    whole = len(asked) and asked.min() >= 0 and not np.isin(asked, kept).any() and np.count_nonzero(kept >= 0) >= 2
    return asked if whole else np.empty(0, dtype=np.int64)


def class_logits(observed: Observations, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits ``[n, classes]`` and the class of each column: a classifier's own, or an encoder's similarities.

    An encoder has a column for each class with retained examples: the cosine with the mean of their features, over the
    temperature.
    """
    if observed.has(part, "logits"):
        logits = observed.of(part, "logits").astype(np.float64)
        return logits, np.arange(logits.shape[1])
    y = signals.labels(observed, "retain")
    known = np.unique(y[y >= 0])
    kept = representations.unit_rows(representations.features(observed, "retain"), np.float64)
    centers = np.stack([kept[y == label].mean(axis=0) for label in known])
    x = representations.unit_rows(representations.features(observed, part), np.float64)
    return x @ representations.unit_rows(centers, np.float64).T / TEMPERATURE, known


def tell_members(model: Neighbors, references: Sequence[Neighbors], level: float) -> Interval:
    """AUC of F against never-trained examples of its classes, with its interval."""
    scores = model.scores(references)
    return stats.delong(scores["forget"], scores["holdout"], level)


def tell_models(model: Neighbors, references: Sequence[Neighbors], level: float) -> Interval | None:
    """AUC of the model's scores against those of each reference, averaged, with its interval; None without any."""
    if not references:
        return None
    own, *others = [np.concatenate(list(one.scores(references).values())) for one in (model, *references)]
    placed = [stats.placements(own, other) for other in others]
    return stats.interval(np.mean([p[0] for p in placed], axis=0), np.mean([p[1] for p in placed], axis=0), level)


def measure_divergence(model: Neighbors, references: Sequence[Neighbors]) -> Interval | None:
    """Mean Jensen-Shannon divergence of the mean q of each class to each reference's; None without any."""
    if not references:
        return None
    own, others = model.means(), [r.means() for r in references]
    value = float(np.mean([stats.js_divergence(own[c][None], other[c][None])[0] for other in others for c in own]))
    return value, value, value
