"""Choice: which setting of a method is reported, decided without the oracle and without the audit's examples.

    score = leak + drop,   leak = max_s |AUC_s(F, V) - 1/2|,   drop = max(0, U_V(θ₀) - U_V(θ))

V: the examples that methods may see too, never trained on; s: the margins that the verdict looks at. U_V:
accuracy on V of the classifier, else of 20 nearest retained neighbors, else (no labels) the share of the effective
rank that is left. Lower is better: a point of AUC weighs as much as a point of accuracy.

Where F is not a random draw, F is compared with V's examples of F's classes, and utility is that of the others:
a model that never saw a class is not expected to know it. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.observations import Observations

SELECTION_NEIGHBORS = 20


@dataclass(frozen=True)
class SelectionScore:
    """What a setting is chosen by."""

    leak: float
    """Largest distance from 1/2 of an AUC of F against V."""
    drop: float
    """Utility on V lost since the original, as a share."""
    utility: float
    """Utility on V, as a share."""

    @property
    def total(self) -> float:
        """Lower is better."""
        return self.leak + self.drop


def score_setting(original: Observations, subject: Observations) -> SelectionScore:
    """The score of a model, from what it and its original show."""
    mine = valid_like_forget(subject)
    aucs = [
        stats.auc(signals.scores(subject, "forget", name), valid_scores(subject, name, mine))
        for name in signals.prespecified_signals(subject)
        if signals.has_signal(subject, "valid", name)
    ]
    now, before = valid_utility(subject), valid_utility(original)
    return SelectionScore(max((abs(auc - 0.5) for auc in aucs), default=0.5), max(0.0, before - now), now)


def valid_like_forget(observed: Observations) -> np.ndarray:
    """Which of V are of F's kind [n]: all for a random F, those of its classes for another."""
    count = observed.count("valid")
    if observed.meta.get("random", True) or not observed.has("forget", "labels"):
        return np.ones(count, dtype=bool)
    same = np.isin(signals.labels(observed, "valid"), np.unique(signals.labels(observed, "forget")))
    return same if same.any() else np.ones(count, dtype=bool)


def valid_scores(observed: Observations, name: str, kept: np.ndarray) -> np.ndarray:
    """Scores of the examples of V that are kept and have one."""
    return signals.scores(observed, "valid", name)[kept[signals.scored_rows(observed, "valid", name)]]


def valid_utility(observed: Observations) -> float:
    """U_V: see the module."""
    other = np.ones(observed.count("valid"), dtype=bool)
    if not observed.meta.get("random", True):
        gone = valid_like_forget(observed)
        other = ~gone if not gone.all() else other
    labels = signals.labels(observed, "valid")
    seen = other & (labels >= 0)
    if seen.any() and observed.has("valid", "logits"):
        return float((observed.of("valid", "logits")[seen].argmax(axis=1) == labels[seen]).mean())
    bank = representations.labelled_positions(observed, "retain")
    if seen.any() and len(bank) > 1:
        votes = representations.knn_vote(
            representations.features(observed, "retain")[bank],
            signals.labels(observed, "retain")[bank],
            representations.features(observed, "valid")[seen],
            (SELECTION_NEIGHBORS,),
        )[0]
        return float((votes == labels[seen]).mean())
    x = representations.features(observed, "valid")
    return float(representations.effective_rank(x) / min(x.shape))


def best_setting(scored: Sequence[Mapping[str, Any] | None], key: str) -> int | None:
    """The setting with the lowest mean of ``key`` over seeds; None if no setting has one for each seed.

    ``scored``: for each setting the values of ``key`` by seed, or None where it failed on any.
    """
    means = [None if one is None or not one[key] else float(np.mean(one[key])) for one in scored]
    known = [(value, number) for number, value in enumerate(means) if value is not None]
    return min(known)[1] if known else None
