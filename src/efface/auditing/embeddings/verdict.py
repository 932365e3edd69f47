"""Verdict of the black-box audit: what embeddings from before and after show, with or without a control.

    AM[i, j] = E_{t, t'} cos(z(t x_i), z(t' x_j))      AGM = AM_before - AM_after      FS = mean_i AGM[i, i]

z: embedding. t, t': random views; on the diagonal two different ones. FS > 0: views of the owner's items agree less
than before.

Same item against different items. H0: the change in similarity of two views does not depend on whether they show the
same item. The test pairs the first half of each item's views with the second half of a random item's views: T is the
mean change over the true pairs, and p is the share of pairings (including the true one) with a mean of at least T. A
rejection means that views of the same item changed more. A model that was damaged for all items does that as well.

Forgotten items against the control (never-trained items of the owner). H0: the drops AGM[i, i] of both are exchangeable
(two-sided rank permutation). A rejection means that the forgotten items were treated differently from never-trained
ones. With a control there is also a verdict, by the rules of :mod:`efface.auditing.verdict` on the alignment at level
A0. Without a control the only possible conclusion is that embeddings that did not change forgot nothing.

Source      after Alignment Calibration (Wang et al. 2024) and EncoderMI (Liu et al. 2021).
Departures  the estimators, the tests and their interpretation are ours.
Tests cover damage to all items taken for forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing.attacks.residuals import welch_difference
from efface.auditing.criteria import Criteria
from efface.auditing.embeddings.agreement import (
    DRAWS,
    PAIRED,
    SIGNAL,
    alignment_observations,
    cross_item_similarity,
    mean_interval,
    pairing_test,
    unchanged,
    view_agreement,
)
from efface.auditing.embeddings.arrays import EmbeddingPair
from efface.auditing.evidence import Evidence, Finding
from efface.auditing.formatting import format_number
from efface.auditing.representations import effective_rank
from efface.auditing.signal_verdict import VerdictWord
from efface.auditing.verdict import EXIT_CODES, Verdict, judge
from efface.errors import EffaceError


@dataclass(frozen=True, eq=False)
class EmbeddingVerdict:
    """The result of the audit, in a word, a sentence and findings, with its limits."""

    word: VerdictWord
    sentence: str
    findings: list[Finding]
    limits: tuple[str, ...]
    verdict: Verdict | None
    """The verdict on the alignment; None without a control."""
    evidence: Evidence | None
    """The evidence of that verdict, for figures; None without a control."""

    @property
    def exit_code(self) -> int:
        """0 removed, 3 residue or over-forgotten, 4 inconclusive."""
        return EXIT_CODES[self.word]


def judge_embedding_pairs(
    forget: EmbeddingPair, control: EmbeddingPair | None = None, criteria: Criteria | None = None
) -> EmbeddingVerdict:
    """Audit embeddings from before and after unlearning.

    Args:
        forget: Items that were to be forgotten.
        control: Items of the same source that were never trained on.
        criteria: Thresholds of the verdict; its signals are ignored.

    Raises:
        EffaceError: If there is only one item, or the numbers of views differ.

    Example:
        >>> pair = match_embeddings(read_embeddings(old)["forget"], read_embeddings(new)["forget"], "forget")
        >>> judge_embedding_pairs(pair).word
        'inconclusive'

    """
    if len(forget) < 2 or (control is not None and len(control) < 2):
        raise EffaceError("One item alone cannot be compared with others.", remedy="Give at least two of each kind.")
    if control is not None and control.views != forget.views:
        raise EffaceError(
            f"The control has {control.views} views of each item, and the forgotten items {forget.views}.",
            "How well views agree can only be compared over the same number of them.",
        )
    before, after = view_agreement(forget.before.z), view_agreement(forget.after.z)
    drop = before - after
    others_before, others_after = cross_item_similarity(forget.before.z), cross_item_similarity(forget.after.z)
    excess, p = pairing_test(forget.before.z, forget.after.z)
    n = (len(drop),)
    found = [
        Finding(
            "blackbox.forget_score", float(drop.mean()), mean_interval(drop), "higher", 0.0, n=n,
            note="FS: how much less two views of an item agree than before; 0: as before",
        ),
        Finding(
            "blackbox.own_pairs", float(after.mean()), mean_interval(after), None, float(before.mean()), n=n,
            note="mean cosine of two views of the same item",
        ),
        Finding(
            "blackbox.other_pairs", others_after, None, None, others_before, n=n,
            note="mean cosine of views of two different items",
        ),
        Finding(
            "blackbox.own_minus_other", excess, None, "higher", 0.0, n=(min(len(drop), PAIRED),),
            note=f"change of own pairs less that of random pairs; permutation p = {p:.3g}, one-sided, {DRAWS} draws",
            details={"permutation_p": p},
        ),
        Finding(
            "blackbox.effective_rank", effective_rank(forget.after.z[:, 0]), None, "higher",
            effective_rank(forget.before.z[:, 0]), n=n, note="directions that the embeddings use; 1: collapsed",
        ),
    ]  # fmt: skip
    if control is None:
        return _judge_without_control(found, drop, others_before - others_after, p, forget)
    return _judge_with_control(found, forget, control, drop, criteria or Criteria())


def _judge_without_control(
    found: list[Finding], drop: np.ndarray, shift: float, p: float, forget: EmbeddingPair
) -> EmbeddingVerdict:
    """Judge without never-trained items: the only possible conclusion is that nothing changed."""
    score, scope = float(drop.mean()), f"{len(drop)} items, {forget.views} views each"
    if unchanged(forget):
        word: VerdictWord = "residue"
        text = (
            f"The embeddings of these items are the same as before ({scope}): nothing was unlearned in the model that "
            "answers now, and whatever it kept of these items it still keeps."
        )
    else:
        word = "inconclusive"
        tested = (
            f"views of one item lost more than views of two (permutation p = {p:.3g})"
            if p < 0.05 and score > 0
            else f"no loss that is particular to views of one item (permutation p = {p:.3g})"
        )
        text = (
            f"The model treats these items differently than before: forget score {format_number(score, 4)} ({scope}), "
            f"{tested}. "
            "Whether they were forgotten cannot be said: a model that was damaged or replaced does the same to items "
            "that it never saw, and there are none here to compare with."
        )
    direction = "less" if shift > 0 else "more"
    others = f"Views of two different items agree {format_number(abs(shift), 4)} {direction} than before."
    return EmbeddingVerdict(word, text, found, (*_limits(forget), _CONTROL_WANTED, others), None, None)


_CONTROL_WANTED = "To get an answer, add items of the same source that were certainly never trained on: --control."


def _judge_with_control(
    found: list[Finding], forget: EmbeddingPair, control: EmbeddingPair, drop: np.ndarray, criteria: Criteria
) -> EmbeddingVerdict:
    """Judge with never-trained items: compare the drops, and decide on the alignment."""
    other = view_agreement(control.before.z) - view_agreement(control.after.z)
    n = (len(drop), len(other))
    p = stats.permutation(drop, other)
    gap, low, high = welch_difference(drop, other)
    original, subject = (alignment_observations(forget, control, when) for when in ("before", "after"))
    evidence = Evidence(original, subject)
    decisive = Criteria(criteria.delta, criteria.alpha, criteria.max_utility_drop, (SIGNAL,))
    verdict = judge(evidence, decisive, controlled=False)  # --control is all that there is besides the forgotten
    one = verdict.signals[0]
    found += [
        Finding(
            "blackbox.control_score", float(other.mean()), mean_interval(other), "closer", 0.0, n=(n[1],),
            note="the same score of the never-trained items: what changed for all items",
        ),
        Finding(
            "blackbox.forget_minus_control", gap, (low, high), "higher", 0.0, n=n,
            note=f"forget score less the control's; permutation p = {p:.3g} that the drops are exchangeable",
            details={"permutation_p": p},
        ),
        Finding(
            "blackbox.auc", one.value, (one.low, one.high), "closer", one.power[0], n=n,
            note=f"forgotten against never-trained by how well views agree; {100 * (1 - 2 * criteria.alpha):g} % "
            "interval; 0.5: nothing to tell",
        ),
    ]  # fmt: skip
    text = f"{verdict.sentence} Forget score {format_number(float(drop.mean()), 4)}, "
    text += f"the never-trained items' {format_number(float(other.mean()), 4)}."
    return EmbeddingVerdict(verdict.word, text, found, (*_limits(forget), *verdict.limits), verdict, evidence)


def _limits(forget: EmbeddingPair) -> tuple[str, ...]:
    order = "matched by their keys" if forget.before.named else "taken to be in the same order in both files"
    return (
        f"Rows are {order}, and both models are assumed to have seen the same views.",
        "Only these embeddings were audited: not the weights, other outputs, or copies of the data or the model. "
        "Whoever provides the embeddings may have changed them instead of the model.",
    )
