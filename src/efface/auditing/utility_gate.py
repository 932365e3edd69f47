"""Utility gate of the verdict: whether the model is about as useful as the original.

Its own task comes first: the accuracy of a classifier's head, or the retrieval of image-caption pairs. Then the
features: kNN accuracy, or without labels effective rank and CKA. A loss counts if it is larger than what is allowed and
than two standard errors, paired over the examples: a few neighbors more or less are chance. A model that is right less
often than before by more than two points is said to be worse in the headline, also where that much is allowed; that
too few examples tell is said beside the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface.auditing import representations, signals
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.task_change import (
    KNN_NEIGHBORS,
    OWN_HEAD,
    RECALLED,
    UNSEEN,
    UNSEEN_PARTS,
    TaskChange,
    compare_observed,
    describe_undecided,
    describe_worse,
    pair_recalls,
)
from efface.errors import EffaceError

COLLAPSED = 0.1
"""An effective rank near 1 with less than this share of the original's (above 1) left is a collapse."""
RANK_LEFT = 0.25
"""Without labels: smallest acceptable share of the original's effective rank (above 1)."""
CKA_LEFT = 0.2
"""Without labels: smallest acceptable linear CKA to the original."""


@dataclass(frozen=True)
class UtilityLoss:
    """Result of the utility gate."""

    drop: float | None
    """Loss of kNN accuracy since the original, as a share; None without labels."""
    lost: str
    """Why the utility counts as lost; empty if it does not."""
    note: str
    """The measured numbers, in words."""
    worse: str = ""
    """On what of its own task the model is worse than before by more than two points; empty if on nothing."""
    undecided: str = ""
    """On what there are too few examples to tell whether it is; empty if on nothing."""

    def head(self, sentence: str) -> str:
        """Put the loss in front of the sentence of a verdict, unless it is in there."""
        if self.lost:
            known = "utility is lost" in sentence
            return sentence if known else f"The model's utility is lost: {self.lost}. {sentence}"
        return (
            f"The model is worse at its own task than the original: {self.worse}. {sentence}"
            if self.worse
            else sentence
        )


def judge_utility(evidence: Evidence, names: Sequence[str], max_drop: float) -> UtilityLoss:
    """Compare the subject's utility with the original's: kNN accuracy, or without labels effective rank and CKA.

    Args:
        evidence: Observations of the subject and the original.
        names: Signals of the verdict; a constant signal counts as a collapse.
        max_drop: Largest acceptable loss of kNN accuracy and of recall@10, as a share.

    Raises:
        EffaceError: If no features of a never-trained part were observed.

    """
    subject, original = evidence.subject, evidence.original
    part = next((p for p in ("test", "valid", "holdout") if subject.has(p, "features")), None)
    if part is None:
        raise EffaceError(
            "The observations hold no features of any never-trained part.",
            "Without them a collapsed encoder cannot be told from one that forgot.",
            "Observe the models again, with a test part or a holdout.",
        )
    after, before = representations.features(subject, part), representations.features(original, part)
    rank, full = representations.effective_rank(after), representations.effective_rank(before)
    left = (rank - 1) / (full - 1) if full > 1 else 1.0
    ranks = f"effective rank {rank:.1f}, the original's {full:.1f}"
    lost = ""
    flat = rank < 1.5 and left < COLLAPSED
    if flat or representations.is_collapsed(after) or any(is_constant_score(subject, name) for name in names):
        lost = f"the embedding is collapsed ({ranks})"
    recall_lost, recall_note = retrieval_loss(original, subject, part, max_drop)
    changes = compare_observed(original, subject)
    task_lost, task_note = head_loss(changes, max_drop)
    lost, recall_note = lost or task_lost or recall_lost, f"{task_note}{recall_note}"
    worse, undecided = describe_worse(changes), describe_undecided(changes)
    hits = next((found for p in UNSEEN_PARTS if (found := _paired_hits(original, subject, p))), None)
    if hits is None:
        cka = representations.linear_cka(after, before)
        note = f"no labels: judged by collapse alone ({ranks}; linear CKA to the original {cka:.2f}){recall_note}"
        return UtilityLoss(None, lost or (note if left < RANK_LEFT or cka < CKA_LEFT else ""), note, worse, undecided)
    labelled, old, new = hits
    change = TaskChange.between("kNN accuracy", labelled, old, new)
    note = f"kNN accuracy on {labelled} {change.after:.3f}, the original's {change.before:.3f}{recall_note}"
    return UtilityLoss(change.drop, lost or (note if change.is_lost(max_drop) else ""), note, worse, undecided)


def _paired_hits(original: Observations, subject: Observations, part: str) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The part, and whether the neighbors of each of its examples vote for the label, in both models."""
    old, new = (representations.knn_hits(one, part, (KNN_NEIGHBORS,)) for one in (original, subject))
    return None if old is None or new is None else (part, old[0], new[0])


def retrieval_loss(original: Observations, subject: Observations, part: str, max_drop: float) -> tuple[str, str]:
    """Return why the retrieval of images and captions counts as lost (or an empty string), and a note."""
    before, after = (pair_recalls(one, part) for one in (original, subject))
    if before is None or after is None:
        return "", ""
    change = TaskChange.between(f"recall@{RECALLED} of pairs", part, before, after)
    note = f"{change.task} on {part} {change.after:.3f}, the original's {change.before:.3f}"
    return (note if change.is_lost(max_drop) else ""), f"; {note}"


def head_loss(changes: Sequence[TaskChange], max_drop: float) -> tuple[str, str]:
    """Return why the accuracy of the model's own head counts as lost (or an empty string), and a note.

    It is decided on all never-trained examples together; the retained ones are named beside them.

    Args:
        changes: From :func:`efface.auditing.task_change.compare_observed`.
        max_drop: Largest acceptable loss, as a share.

    """
    if not changes or changes[0].task != OWN_HEAD:
        return "", ""
    lost = any(one.is_lost(max_drop) for one in changes if one.part == UNSEEN)
    shown = "; on ".join(f"{one.count} {one.where} {one.after:.3f}, the original's {one.before:.3f}" for one in changes)
    note = f"{OWN_HEAD} on {shown}"
    return (note if lost else ""), f"; {note}"


def is_constant_score(observed: Observations, signal: str) -> bool:
    """Whether all examples have the same raw score, up to rounding."""
    every = np.concatenate([signals.scores(observed, part, signal) for part in ("forget", "holdout")])
    return len(every) > 1 and float(np.ptp(every)) <= 1e-6 * max(1e-6, float(np.abs(every).max()))
