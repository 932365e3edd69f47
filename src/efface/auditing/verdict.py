"""The verdict on unlearning: a power check, two one-sided tests and a utility gate. It may be "inconclusive".

The signals are fixed in advance: the margins of the backbone, of the projector where there is one and of the
classifier; for an image-text model those of the backbone and of the image-caption pair. The tested statistic is
AUC(forget vs holdout), of the score minus the references' mean score at A1 and of the raw score at A0, in both cases
against 0.5 ± delta.

0. Power: on at least one signal, the lower end of the original's 1 - alpha interval lies above 0.5 + delta (Holm over
   signals). Otherwise the attack cannot see these examples, and the verdict is ``inconclusive``.
1. ``residue``: the subject's AUC lies above 0.5 + delta on any signal (one-sided, Holm over signals).
   ``over-forgotten``: it lies below 0.5 - delta, tested likewise; scores that are too low give members away as well.
2. ``removed``: the whole 1 - 2 alpha interval lies within ± delta on every signal, with or without power. As all of
   them must, there is no correction for multiple tests.
3. ``removed, utility lost``: removed, but kNN accuracy, the effective rank or the retrieval of image-caption pairs is
   much worse than in the original (:mod:`efface.auditing.utility_gate`).
4. Control: the model was trained on the retained examples, so the attack should see them. It was *blinded* (by noise, a
   new head or by forgetting everything) where their raw AUC against never-trained examples is clearly above 0.5 + delta
   in the mean oracle (at A0: the original) but not even above 0.5 in the subject. Then there is no ``removed``.
5. The controls of :mod:`efface.auditing.controls`: each must pass, and one that is missing has not passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from efface import stats
from efface.auditing import controls, signals
from efface.auditing.controls import Control, ControlWord
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence, Level
from efface.auditing.observations import Observations
from efface.auditing.rehearsals import RehearsedVerdict
from efface.auditing.signal_verdict import SignalVerdict, VerdictWord
from efface.auditing.utility_gate import UtilityLoss, judge_utility
from efface.auditing.verdict_sentence import describe_limits, write_sentence
from efface.errors import EffaceError

EXIT_CODES: dict[VerdictWord, int] = {
    "removed": 0,
    "validated": 0,
    "residue": 3,
    "over-forgotten": 3,
    "procedure leaves residue": 3,
    "procedure over-forgets": 3,
    "inconclusive": 4,
    "removed, utility lost": 5,
    "validated, utility lost": 5,
}
"""Exit code of the command line for each word."""


@dataclass(frozen=True)
class Verdict:
    """The verdict in a word, a sentence and numbers, with its limits."""

    word: VerdictWord
    sentence: str
    level: Level
    delta: float
    alpha: float
    signals: tuple[SignalVerdict, ...]
    utility_drop: float | None
    """Loss of kNN accuracy on test since the original, as a share; None without labels."""
    limits: tuple[str, ...]
    controls: tuple[Control, ...] = ()
    """What must also hold for ``removed``; empty in records of schema 1."""
    rehearsed: RehearsedVerdict | None = None
    """What requests like this one show of the procedure; None where none were rehearsed, and before schema 3."""
    utility_lost: str = ""
    """Why the utility counts as lost; empty if it does not."""
    utility_worse: str = ""
    """On what of its own task the model is worse by more than two points; empty if on nothing, or if it is lost."""
    utility_undecided: str = ""
    """On what there are too few examples to tell whether it is; empty if on nothing, or if it is lost."""

    @property
    def exit_code(self) -> int:
        """0: removed or validated. 3: residue or over-forgotten. 4: inconclusive. 5: one of these, and utility lost."""
        lost = bool(self.utility_lost) and EXIT_CODES[self.word] == EXIT_CODES["inconclusive"]
        return EXIT_CODES["removed, utility lost" if lost else self.word]


def judge(
    evidence: Evidence, criteria: Criteria | None = None, *, fixed: Criteria | None = None, controlled: bool = True
) -> Verdict:
    """Judge whether the subject of the evidence forgot the forget set, by the rules of this module's docstring.

    Args:
        evidence: Observations of the subject, the original and, at A1, the oracles. Oracles that are only claimed to be
            clean do not decide; see :attr:`Evidence.claimed`.
        criteria: Thresholds and signals; by default those of :class:`Criteria`.
        fixed: The criteria that were fixed before unlearning, if ``criteria`` are others.
        controlled: Whether ``removed`` needs the controls; only evidence that has no other parts does without.

    Returns:
        The verdict, with one :class:`SignalVerdict` per signal.

    Raises:
        EffaceError: If a signal, the holdout or the features are missing.

    Example:
        >>> verdict = judge(Evidence(original, unlearned, oracles=(retrained,)))
        >>> verdict.word, verdict.exit_code
        ('removed', 0)

    """
    criteria = criteria or Criteria()
    whole, evidence = evidence, evidence.verified()
    names = criteria.signals or signals.prespecified_signals(evidence.subject)
    if not names:
        raise EffaceError(
            "The observations hold no margin of the forget set and the holdout.",
            "A verdict needs the margin of backbone, projector or pair, or logits with labels, on both parts.",
            "Observe the models again, with a holdout (split: holdout > 0).",
        )
    judged = judge_signals(evidence, names, criteria)
    utility = judge_utility(evidence, names, criteria.max_utility_drop)
    checked: tuple[Control, ...] = ()
    if controlled:
        checked = controls.make_controls(
            whole, names, criteria.delta, criteria.alpha, lambda other: judge_signals(other, names, criteria)
        )
    if fixed is not None and fixed != criteria:
        checked += (_check_fixed(whole, criteria, fixed),)
    capped = cast("VerdictWord", controls.strictest(combine_signals(judged, utility), checked))
    return Verdict(
        capped,
        utility.head(write_sentence(capped, judged, evidence, criteria, utility, checked)),
        evidence.level,
        criteria.delta,
        criteria.alpha,
        judged,
        utility.drop,
        describe_limits(capped, judged, evidence, criteria, utility)
        + tuple(f"Control ({one.name}, {one.word}): {one.note}." for one in checked),
        checked,
        utility_lost=utility.lost,
        utility_worse="" if utility.lost else utility.worse,
        utility_undecided="" if utility.lost else utility.undecided,
    )


def _check_fixed(evidence: Evidence, criteria: Criteria, fixed: Criteria) -> Control:
    """Judge by the criteria that were fixed before unlearning as well; if these do not decide, it is missing."""
    before = judge(evidence, fixed).word
    word = {"removed": "passed", "inconclusive": "missing"}.get(before, "failed")
    note = controls.describe_fixed(criteria, fixed, before)
    return Control("fixed", cast("ControlWord", word), "inconclusive", note)


def delong_components(evidence: Evidence, observed: Observations, signal: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the DeLong components of forget against holdout: of calibrated scores at A1, of raw scores at A0."""
    forget, holdout = (
        signals.membership_scores(observed, evidence.references, part, signal) for part in ("forget", "holdout")
    )
    return stats.placements(forget, holdout)


def judge_signals(evidence: Evidence, names: tuple[str, ...], criteria: Criteria) -> tuple[SignalVerdict, ...]:
    """Judge each signal; tests that may make a claim on *any* signal are corrected for multiplicity (Holm)."""
    delta, alpha = criteria.delta, criteria.alpha
    before = [delong_components(evidence, evidence.original, name) for name in names]
    after = [delong_components(evidence, evidence.subject, name) for name in names]
    p_power = [stats.one_sided_p_values(*v, 0.5 + delta)[0] for v in before]
    p_above = [stats.one_sided_p_values(*v, 0.5 + delta)[0] for v in after]
    p_below = [stats.one_sided_p_values(*v, 0.5 - delta)[1] for v in after]
    power, above, below = stats.holm(p_power), stats.holm(p_above), stats.holm(p_below)
    factors = [stats.holm_factors(values) for values in (p_power, p_above, p_below)]
    judged: list[SignalVerdict] = []
    for i, name in enumerate(names):
        value, low, high = stats.interval(*after[i], level=1 - 2 * alpha)
        word = "inconclusive"
        if above[i] < alpha:
            word = "residue"
        elif below[i] < alpha:
            word = "over-forgotten"
        elif 0.5 - delta < low and high < 0.5 + delta:
            word = "removed"
        needed = None
        if word == "inconclusive":
            m, n = len(after[i][0]), len(after[i][1])
            needed = needed_examples(m, n, value, criteria, len(names))
        strength = stats.interval(*before[i], level=1 - alpha / factors[0][i])
        powered = power[i] < alpha / 2
        kept, blinded = retain_control(evidence, name, criteria)
        corrected = (
            stats.interval(*after[i], level=1 - 2 * alpha / factors[1][i])[1],
            stats.interval(*after[i], level=1 - 2 * alpha / factors[2][i])[2],
        )
        judged.append(
            SignalVerdict(name, strength, powered, value, low, high, 0.5, word, needed, kept, blinded, corrected)
        )
    return tuple(judged)


def retain_control(
    evidence: Evidence, signal: str, criteria: Criteria
) -> tuple[tuple[float, float, float] | None, bool]:
    """Check that the attack still sees the retained examples in the subject.

    Returns:
        Their AUC in the subject with its interval, and whether the attack was blinded; ``(None, False)`` where the
        attack does not see them clearly in the oracles (at A0: in the original) either.

    """
    compared = evidence.oracles or (evidence.original,)
    pairs = [signals.score_pair(observed, "retain", signal) for observed in (evidence.subject, *compared)]
    if any(pair is None for pair in pairs):
        return None, False
    subject, *others = [stats.placements(*pair) for pair in pairs if pair is not None]
    yardstick = (np.mean([v for v, _ in others], axis=0), np.mean([v for _, v in others], axis=0))
    if stats.one_sided_p_values(*yardstick, 0.5 + criteria.delta)[0] >= criteria.alpha:
        return None, False
    blinded = stats.one_sided_p_values(*subject, 0.5)[0] >= criteria.alpha
    return stats.interval(*subject, level=1 - 2 * criteria.alpha), blinded


def needed_examples(members: int, nonmembers: int, value: float, criteria: Criteria, count: int = 1) -> int | None:
    """Estimate how many forget examples would decide, if the true AUC is 0.5, or else if it is ``value``.

    Args:
        members: Forget examples so far.
        nonmembers: Holdout examples.
        value: The measured AUC.
        criteria: Thresholds.
        count: Number of signals that must all decide, together with a power of 0.8.

    Returns:
        A number above ``members``; None where no number would be enough with this holdout.

    """
    power = 0.8 ** (1 / count)
    plans = (stats.needed_n(criteria.delta, nonmembers, criteria.alpha, power, truth) for truth in (0.5, value))
    return next((plan for plan in plans if plan is not None and plan > members), None)


def combine_signals(judged: tuple[SignalVerdict, ...], utility: UtilityLoss) -> VerdictWord:
    """Combine the signals' verdicts by the rules of this module's docstring, in their order."""
    words = {one.word for one in judged}
    if not any(one.powered for one in judged):
        return "inconclusive"
    if "residue" in words:
        return "residue"
    if "over-forgotten" in words:
        return "over-forgotten"
    if words == {"removed"}:
        if utility.lost:
            return "removed, utility lost"
        return "inconclusive" if any(one.blinded for one in judged) else "removed"
    return "inconclusive"
