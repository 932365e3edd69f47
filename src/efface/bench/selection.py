"""Select the setting of a method that is reported, without the oracle and without the examples of the audit.

    score = leak + drop,   leak = max_s |AUC_s(F, V) - 1/2|,   drop = max(0, U_V(θ₀) - U_V(θ))

V: the validation examples, never trained on, which methods may use; s: the margins that the verdict uses. U_V is the
accuracy on V of the classifier, otherwise of 20 nearest neighbors among the retained examples, otherwise (without
labels) the effective rank relative to its maximum. Lower is better; a point of AUC counts as much as a point of
accuracy.

If F is not a random draw, F is compared with the examples of V that have the classes of F, and utility is measured on
the others, because a model that never saw a class cannot be expected to know it. numpy only.
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
    """The score by which settings are compared."""

    leak: float
    """Largest distance from 1/2 of an AUC of F against V."""
    drop: float
    """Utility on V lost relative to the original, as a share."""
    utility: float
    """Utility on V, as a share."""

    @property
    def total(self) -> float:
        """Sum of leak and drop; lower is better."""
        return self.leak + self.drop


def score_setting(original: Observations, subject: Observations) -> SelectionScore:
    """Score an unlearned model.

    Args:
        original: Observations of its original.
        subject: Observations of the model, with the part ``valid``.

    """
    comparable = valid_like_forget(subject)
    aucs = [
        stats.auc(signals.scores(subject, "forget", name), valid_scores(subject, name, comparable))
        for name in signals.prespecified_signals(subject)
        if signals.has_signal(subject, "valid", name)
    ]
    now, before = valid_utility(subject), valid_utility(original)
    return SelectionScore(max((abs(auc - 0.5) for auc in aucs), default=0.5), max(0.0, before - now), now)


def valid_like_forget(observed: Observations) -> np.ndarray:
    """Mask ``[n]`` of the examples of V to compare with F: all if F is random, otherwise those with a class of F."""
    count = observed.count("valid")
    if observed.meta.get("random", True) or not observed.has("forget", "labels"):
        return np.ones(count, dtype=bool)
    same = np.isin(signals.labels(observed, "valid"), np.unique(signals.labels(observed, "forget")))
    return same if same.any() else np.ones(count, dtype=bool)


def valid_scores(observed: Observations, name: str, kept: np.ndarray) -> np.ndarray:
    """Scores of the examples of V that are in the mask ``kept`` and have a score."""
    return signals.scores(observed, "valid", name)[kept[signals.scored_rows(observed, "valid", name)]]


def valid_utility(observed: Observations) -> float:
    """U_V as a share; see the module docstring."""
    other = np.ones(observed.count("valid"), dtype=bool)
    if not observed.meta.get("random", True):
        like_forget = valid_like_forget(observed)
        other = ~like_forget if not like_forget.all() else other
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
    """Find the setting with the lowest mean over seeds.

    Args:
        scored: For each setting the values by seed under ``key``, or None if the setting failed on a seed.
        key: ``score`` or ``gap``.

    Returns:
        Index of the setting; None if no setting has values.

    """
    means = [None if one is None or not one[key] else float(np.mean(one[key])) for one in scored]
    known = [(value, number) for number, value in enumerate(means) if value is not None]
    return min(known)[1] if known else None
