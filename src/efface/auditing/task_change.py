"""How much less often a model is right on its own task than the original: by part, paired over the examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from efface import stats
from efface.auditing import representations
from efface.auditing.observations import Observations

NOTED_DROP = 0.02
"""A model that is right less often than before by more than this is named, also where that is accepted."""
CHANCE = 0.05
"""It is said to be worse if a loss on as few examples is less likely than this where the model is as good as before;
else, that it is not decided."""
PAIRED_ERRORS = 2.0
"""Standard errors by which a loss must exceed zero to be no chance."""
NORMAL_95 = 1.96
"""Standard errors on each side of a 95 % interval."""
KNN_NEIGHBORS = 20
"""Number of neighbors in the kNN accuracy."""
RECALLED = 10
"""k of the recall@k of image-caption pairs."""
OWN_HEAD = "accuracy of its own head"
UNSEEN, RETAINED = "never trained on", "retain"
"""What the parts are called: all examples that were never trained on, and the retained ones."""
UNSEEN_PARTS = ("test", "valid")
"""Parts that were never trained on, and are drawn like the training data."""
HELD_BACK = ("holdout", "spare")
"""Parts that only an audit looks at: what resembles the forgotten examples, and what is left; together they are drawn
like the training data too."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TaskChange:
    """How often a model is right on one part, before and after."""

    task: str
    """What is counted, as in ``accuracy of its own head``."""
    part: str
    before: float
    after: float
    error: float
    """Standard error of the difference, paired over the examples."""
    interval: tuple[float, float]
    """95 % interval of the loss, as a share (Bonett & Price 2012, adjusted Wald: one more example that became worse and
    one that became better; without it, few examples that all stayed as they were would exclude any loss)."""
    worsened: int
    """Examples on which the model is right less than before, and"""
    improved: int
    """those on which it is right more."""
    count: int
    """Number of examples."""
    chance: float
    """Probability of changes as bad as these where the model is as good as before. Of right and wrong answers it is
    exact (McNemar); of shares, as recall in both directions is, by the normal distribution."""

    @classmethod
    def between(cls, task: str, part: str, before: np.ndarray, after: np.ndarray) -> TaskChange:
        """Compare the same examples, in the same order: 1 where the model is right, 0 where it is not.

        Args:
            task: What is counted.
            part: Which examples.
            before: The original's, [n].
            after: The unlearned model's, [n].

        """
        change = np.asarray(before, np.float64) - after
        error = float(change.std() / np.sqrt(len(change)))
        worsened, improved = (int(np.count_nonzero(sign * change > _ROUNDING)) for sign in (1, -1))
        if np.allclose(np.abs(change), np.abs(change) > 0.5):
            chance = stats.sign_test(worsened, improved)
        else:
            chance = float(ndtr(-change.mean() / max(error, _ROUNDING)))
        more = len(change) + 2
        middle = float(change.sum()) / more
        half = NORMAL_95 * float(np.sqrt(((change @ change + 2) / more - middle**2) / more))
        means = float(np.mean(before)), float(np.mean(after))
        interval = (middle - half, middle + half)
        return cls(task, part, *means, error, interval, worsened, improved, len(change), chance)

    @property
    def drop(self) -> float:
        """By how much less often it is right now, as a share; negative where it is more often."""
        return self.before - self.after

    def is_lost(self, allowed: float) -> bool:
        """Whether the loss is larger than what is allowed, and than two standard errors."""
        return self.drop > allowed and self.drop > PAIRED_ERRORS * self.error

    @property
    def is_noted(self) -> bool:
        """Whether the model is right less often by more than two points of a hundred."""
        return self.drop > NOTED_DROP + _ROUNDING

    @property
    def is_worse(self) -> bool:
        """Whether it is so, and by no chance."""
        return self.is_noted and self.chance <= CHANCE

    @property
    def is_undecided(self) -> bool:
        """Whether a loss of more than two points is neither shown nor excluded."""
        return self.interval[1] > NOTED_DROP + _ROUNDING and not self.is_worse

    @property
    def where(self) -> str:
        """The part in words."""
        return "retained examples" if self.part == RETAINED else "examples never trained on"

    def describe(self) -> str:
        """The change in words: ``4.9 points less on 450 retained examples (0.541, before 0.590; …)``."""
        low, high = (100 * end for end in self.interval)
        return (
            f"{100 * abs(self.drop):.1f} points {'less' if self.drop >= 0 else 'more'} on {self.count} {self.where} "
            f"({self.after:.3f}, before {self.before:.3f}; {self.worsened} worse and {self.improved} better answers; "
            f"95 % interval of the loss {low:.1f} to {high:.1f} points)"
        )


def describe_worse(changes: Sequence[TaskChange]) -> str:
    """Say on what a model is worse than before by more than two points, and by no chance; empty if on nothing."""
    return _describe([one for one in changes if one.is_worse])


def describe_undecided(changes: Sequence[TaskChange]) -> str:
    """Say on what there are too few examples to tell whether a model lost more than two points; empty if on nothing."""
    return _describe([one for one in changes if one.is_undecided])


def _describe(changes: Sequence[TaskChange]) -> str:
    if not changes:
        return ""
    task = changes[0].task
    return f"{task[0].lower()}{task[1:]} {'; '.join(one.describe() for one in changes)}"


def compare_observed(original: Observations, subject: Observations) -> list[TaskChange]:
    """Compare two observed models on their own task: a head's accuracy, else retrieval, else the features' neighbors.

    Args:
        original: The original.
        subject: The unlearned model.

    Returns:
        One change for all that was never trained on, and one for the retained examples, as far as they were observed.

    """
    for task, measure in (
        (OWN_HEAD, _head_hits),
        (f"recall@{RECALLED} of pairs", pair_recalls),
        ("accuracy of its features' nearest neighbors", _knn_hits),
    ):
        found: list[TaskChange] = []
        for name, parts in ((UNSEEN, (*UNSEEN_PARTS, *HELD_BACK)), (RETAINED, (RETAINED,))):
            pairs = [(measure(original, part), measure(subject, part)) for part in parts]
            both = [(a, b) for a, b in pairs if a is not None and b is not None and a.shape == b.shape and len(a)]
            if both:
                before, after = (np.concatenate(side) for side in zip(*both, strict=True))
                found.append(TaskChange.between(task, name, before, after))
        if found:
            return found
    return []


def _head_hits(observed: Observations, part: str) -> np.ndarray | None:
    """Whether the top class is the label, for each labelled example in the order of their keys.

    A class of which no retained example was observed does not count: a model may have been asked to forget it.
    """
    if representations.accuracy(observed, part) is None:
        return None
    known = representations.labels(observed, part)
    seen = known >= 0
    if observed.has(RETAINED, "labels"):
        seen &= np.isin(known, representations.labels(observed, RETAINED))
    right = representations.top_classes(observed, part)[seen] == known[seen]
    return right[np.argsort(observed.of(part, "keys")[seen], kind="stable")]


def pair_recalls(observed: Observations, part: str) -> np.ndarray | None:
    """Recall of each pair in both directions, in the order of their keys."""
    ways = [representations.retrieval_recall(observed, part, RECALLED, of_text=way) for way in (False, True)]
    found = [way for way in ways if way is not None]
    return np.mean(found, axis=0)[np.argsort(observed.of(part, "keys"), kind="stable")] if found else None


def _knn_hits(observed: Observations, part: str) -> np.ndarray | None:
    """Whether the nearest retained neighbors vote for the label, in an order that depends on the keys alone."""
    found = representations.knn_hits(observed, part, (KNN_NEIGHBORS,))
    return None if found is None else found[0]
