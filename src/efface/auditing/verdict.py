"""The verdict: power first, then two one-sided tests, then the utility gate. It can answer "inconclusive".

The signals are named before looking: the margin of the backbone, of the projector where there is one, and of
the classifier; of an image-text model those of the backbone and of image and caption. The number tested is
AUC(forget vs holdout): at A1 of the score minus the references' mean score, at A0 of the raw score, in both
cases against 0.5 ± delta.

0. Power: on the original, the lower end of the 1 - alpha interval lies above 0.5 + delta (Holm over signals)
   for at least one signal; otherwise this attack is blind to these examples and the answer is
   ``inconclusive``.
1. ``residue``: on any signal the subject's AUC lies above 0.5 + delta (one-sided, Holm over signals).
   ``over-forgotten``: below 0.5 - delta, likewise: standing out downwards is standing out.
2. ``removed``: on every signal, also those without power, the whole 1 - 2 alpha interval lies within ± delta
   (all of them must, so nothing is corrected).
3. ``removed, utility lost``: removed, but the features are no longer good for what the original's were, or images
   and captions of the test part no longer find each other as they did.
4. Control: the retained examples are still trained on. Where the attack sees them in what the subject is compared with
   (the mean oracle, or at A0 the original: their raw AUC against never-trained ones clearly above 0.5 + delta) but not
   in the subject (not even above 0.5), it was blinded, by noise, a new head or forgetting everybody: no ``removed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from efface import stats
from efface.auditing import representations
from efface.auditing import signals as auditing_signals
from efface.auditing.evidence import Evidence, Level
from efface.auditing.observations import Observations
from efface.errors import EffaceError

VerdictWord = Literal["removed", "residue", "over-forgotten", "inconclusive", "removed, utility lost"]
EXIT_CODES: dict[VerdictWord, int] = {
    "removed": 0,
    "residue": 3,
    "over-forgotten": 3,
    "inconclusive": 4,
    "removed, utility lost": 4,
}
KNN_NEIGHBORS = 20
"""Neighbors that vote in the utility gate."""
COLLAPSED = 0.1
"""An effective rank near 1 with less than this share of the original's (above 1) left is a collapse."""
RECALLED = 10
"""Nearest captions (images) among which an image's (caption's) own one counts as found, in the utility gate."""
RANK_LEFT = 0.25
"""Without labels, the share of the original's effective rank (above 1) that must be left."""
CKA_LEFT = 0.2
"""Without labels, the linear CKA to the original that must be left."""


@dataclass(frozen=True)
class Criteria:
    """What counts as removed; fixed before looking."""

    delta: float = 0.05
    """Resolution δ: the largest distance of an AUC from 0.5 that counts as nothing to tell."""
    alpha: float = 0.05
    """Probability of error allowed to each claim."""
    max_utility_drop: float = 0.05
    """Largest loss of kNN accuracy on test, and of recall@10 of image-text models, as a share (0.05: five points)."""
    signals: tuple[str, ...] | None = None
    """Signals to decide on; None: the margin of backbone, projector and classifier, where observed."""

    def __post_init__(self) -> None:
        """Refuse thresholds that no interval could ever meet, or every interval would."""
        for name in ("delta", "alpha"):
            value = getattr(self, name)
            if not 0 < value < 0.5:
                raise EffaceError(f"{name} = {value} is no threshold.", "It must lie between 0 and 0.5.")
        if self.signals is not None and (not self.signals or len(set(self.signals)) < len(self.signals)):
            raise EffaceError(
                f"A verdict cannot rest on the signals {list(self.signals)}.",
                "There is none, or one is named twice.",
            )


@dataclass(frozen=True)
class SignalVerdict:
    """One pre-named signal: what it could see in the original, and what it sees in the subject."""

    signal: str
    power: tuple[float, float, float]
    """AUC of the original, and its 1 - alpha interval (95 %)."""
    powered: bool
    """Whether that interval lies above 0.5 + delta, corrected for the number of signals."""
    value: float
    """AUC of the subject."""
    low: float
    high: float
    """Its 1 - 2 alpha interval (90 %)."""
    reference: float
    """What it is compared with: 0.5, because at A1 the references are already in the score."""
    word: str
    """This signal's own ``removed``, ``residue``, ``over-forgotten`` or ``inconclusive``."""
    needed: int | None
    """Forget examples that would probably decide; None: decided, or no number would with this holdout."""
    retained: tuple[float, float, float] | None = None
    """AUC of the retained in the subject (raw) with its 1 - 2 alpha interval; None where there is no such control."""
    blinded: bool = False
    """Whether the attack sees the retained in what the subject is compared with, and no more in the subject."""


@dataclass(frozen=True)
class Verdict:
    """The answer, in a word, a sentence and numbers, with its limits."""

    word: VerdictWord
    sentence: str
    level: Level
    delta: float
    alpha: float
    signals: tuple[SignalVerdict, ...]
    utility_drop: float | None
    """kNN accuracy on test lost since the original, as a share; None without labels."""
    limits: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 removed; 3 residue or over-forgotten; 4 inconclusive, or removed with the utility lost."""
        return EXIT_CODES[self.word]


@dataclass(frozen=True)
class UtilityLoss:
    """What is left of the features: the ``drop`` where there are labels, and ``lost``: why, or empty."""

    drop: float | None
    lost: str
    note: str


def judge(evidence: Evidence, criteria: Criteria = Criteria()) -> Verdict:
    """The verdict on ``evidence.subject``; raises where a signal, the holdout or the features are missing."""
    names = criteria.signals or auditing_signals.prespecified_signals(evidence.subject)
    if not names:
        raise EffaceError(
            "The observations hold no margin of the forget set and the holdout.",
            "A verdict needs the margin of backbone, projector or pair, or logits with labels, on both parts.",
            "Observe the models again, with a holdout (split: holdout > 0).",
        )
    judged = judge_signals(evidence, names, criteria)
    utility = judge_utility(evidence, names, criteria)
    word = combine_signals(judged, utility)
    return Verdict(
        word,
        write_sentence(word, judged, evidence, criteria, utility),
        evidence.level,
        criteria.delta,
        criteria.alpha,
        judged,
        utility.drop,
        describe_limits(word, judged, evidence, criteria, utility),
    )


def delong_components(evidence: Evidence, observed: Observations, signal: str) -> tuple[np.ndarray, np.ndarray]:
    """DeLong components of forget against holdout: of the calibrated score at A1, of the raw one at A0."""
    if evidence.oracles:
        sides = [
            auditing_signals.calibrated_scores(observed, evidence.oracles, p, signal) for p in ("forget", "holdout")
        ]
    else:
        sides = [auditing_signals.scores(observed, p, signal) for p in ("forget", "holdout")]
    return stats.placements(sides[0], sides[1])


def judge_signals(evidence: Evidence, names: tuple[str, ...], criteria: Criteria) -> tuple[SignalVerdict, ...]:
    """Each signal's verdict, with the tests that may claim something on *any* signal corrected by Holm."""
    delta, alpha = criteria.delta, criteria.alpha
    before = [delong_components(evidence, evidence.original, name) for name in names]
    after = [delong_components(evidence, evidence.subject, name) for name in names]
    power = stats.holm([stats.one_sided_p_values(*v, 0.5 + delta)[0] for v in before])
    above = stats.holm([stats.one_sided_p_values(*v, 0.5 + delta)[0] for v in after])
    below = stats.holm([stats.one_sided_p_values(*v, 0.5 - delta)[1] for v in after])
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
        strength = stats.interval(*before[i], level=1 - alpha)
        powered = power[i] < alpha / 2
        kept, blinded = retain_control(evidence, name, criteria)
        judged.append(SignalVerdict(name, strength, powered, value, low, high, 0.5, word, needed, kept, blinded))
    return tuple(judged)


def retain_control(
    evidence: Evidence, signal: str, criteria: Criteria
) -> tuple[tuple[float, float, float] | None, bool]:
    """What the attack sees of the retained in the subject, and whether it was blinded; ``(None, False)`` where it sees
    too little of them even in the oracles (at A0: in the original) to tell.
    """
    compared = evidence.oracles or (evidence.original,)
    pairs = [auditing_signals.score_pair(observed, "retain", signal) for observed in (evidence.subject, *compared)]
    if any(pair is None for pair in pairs):
        return None, False
    own, *others = [stats.placements(*pair) for pair in pairs if pair is not None]
    yardstick = (np.mean([v for v, _ in others], axis=0), np.mean([v for _, v in others], axis=0))
    if stats.one_sided_p_values(*yardstick, 0.5 + criteria.delta)[0] >= criteria.alpha:
        return None, False
    return stats.interval(*own, level=1 - 2 * criteria.alpha), stats.one_sided_p_values(*own, 0.5)[0] >= criteria.alpha


def needed_examples(members: int, nonmembers: int, value: float, criteria: Criteria, count: int = 1) -> int | None:
    """Forget examples that would decide: if nothing is left to see, or else if ``value`` is the truth.

    ``count``: signals that must all decide; each has to often enough that all of them do four times in five.
    """
    power = 0.8 ** (1 / count)
    plans = (stats.needed_n(criteria.delta, nonmembers, criteria.alpha, power, truth) for truth in (0.5, value))
    return next((plan for plan in plans if plan is not None and plan > members), None)


def combine_signals(judged: tuple[SignalVerdict, ...], utility: UtilityLoss) -> VerdictWord:
    """The rules of this module's docstring, in their order."""
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


# ---- the utility gate ----


def judge_utility(evidence: Evidence, names: tuple[str, ...], criteria: Criteria) -> UtilityLoss:
    """Whether the subject's features still serve: kNN on test; without labels, effective rank and CKA."""
    subject, original = evidence.subject, evidence.original
    seen = next((p for p in ("test", "valid", "holdout") if subject.has(p, "features")), None)
    if seen is None:
        raise EffaceError(
            "The observations hold no features of any never-trained part.",
            "Without them a collapsed encoder cannot be told from one that forgot.",
            "Observe the models again, with a test part or a holdout.",
        )
    now, before = representations.features(subject, seen), representations.features(original, seen)
    rank, full = representations.effective_rank(now), representations.effective_rank(before)
    left = (rank - 1) / (full - 1) if full > 1 else 1.0
    shown = f"effective rank {rank:.1f}, the original's {full:.1f}"
    lost = ""
    flat = rank < 1.5 and left < COLLAPSED
    if flat or representations.is_collapsed(now) or any(is_constant_score(subject, name) for name in names):
        lost = f"the embedding is collapsed ({shown})"
    found, told = retrieval_loss(original, subject, seen, criteria)
    lost = lost or found
    labelled = next((p for p in ("test", "valid") if representations.knn_accuracy(subject, p, (KNN_NEIGHBORS,))), None)
    if labelled is None:
        cka = representations.linear_cka(now, before)
        note = f"no labels: judged by collapse alone ({shown}; linear CKA to the original {cka:.2f}){told}"
        return UtilityLoss(None, lost or (note if left < RANK_LEFT or cka < CKA_LEFT else ""), note)
    accuracies = [
        right / of for o in (original, subject) for right, of in representations.knn_accuracy(o, labelled) or []
    ]
    drop = accuracies[0] - accuracies[1]
    note = f"kNN accuracy on {labelled} {accuracies[1]:.3f}, the original's {accuracies[0]:.3f}{told}"
    return UtilityLoss(drop, lost or (note if drop > criteria.max_utility_drop else ""), note)


def retrieval_loss(original: Observations, subject: Observations, part: str, criteria: Criteria) -> tuple[str, str]:
    """Whether images and captions of a part find each other less than before: why, or empty; and what to say of it."""
    before, now = (representations.mean_retrieval_recall(o, part, RECALLED) for o in (original, subject))
    if before is None or now is None:
        return "", ""
    note = f"recall@{RECALLED} of pairs on {part} {now:.3f}, the original's {before:.3f}"
    return (note if before - now > criteria.max_utility_drop else ""), f"; {note}"


def is_constant_score(observed: Observations, signal: str) -> bool:
    """Whether the raw score is the same for everybody, but for rounding."""
    every = np.concatenate([auditing_signals.scores(observed, part, signal) for part in ("forget", "holdout")])
    return len(every) > 1 and float(np.ptp(every)) <= 1e-6 * max(1e-6, float(np.abs(every).max()))


# ---- in words ----


def describe_attacker(evidence: Evidence) -> str:
    """The attacker this evidence is about."""
    held = len(evidence.oracles)
    compares = (
        f"compares with {held} model{'s' if held > 1 else ''} that never saw the forget set"
        if held
        else "has no other model to compare with"
    )
    return f"threat model {evidence.level} (the attacker sees this model's scores of an example and {compares})"


def describe_signal(one: SignalVerdict, alpha: float) -> str:
    """``backbone.margin: AUC 0.512 (90 % interval 0.480 to 0.544)``."""
    level = f"{100 * (1 - 2 * alpha):g} %"
    return f"{one.signal}: AUC {one.value:.3f} ({level} interval {one.low:.3f} to {one.high:.3f})"


def write_sentence(
    word: VerdictWord, judged: tuple[SignalVerdict, ...], evidence: Evidence, criteria: Criteria, utility: UtilityLoss
) -> str:
    """The verdict in plain words."""
    scope = f"evidence at resolution δ = {criteria.delta:g} under {describe_attacker(evidence)}"
    telling = [one for one in judged if one.word == word] or list(judged)
    numbers = "; ".join(describe_signal(one, criteria.alpha) for one in telling)
    blind = [one.signal for one in judged if not one.powered]
    if word in ("removed", "removed, utility lost"):
        text = f"The forgotten examples look like examples never trained on: {scope}. {numbers}."
        if blind:
            text += f" Without power in the original, so adding nothing: {', '.join(blind)}."
        return text + (f" But the model's utility is lost: {utility.lost}." if utility.lost else "")
    if word == "residue":
        return f"The forgotten examples can still be told from examples never trained on: {scope}. {numbers}."
    if word == "over-forgotten":
        return (
            "The forgotten examples stand out by being treated worse than examples never trained on, "
            f"which gives them away as well: {scope}. {numbers}."
        )
    if not any(one.powered for one in judged):
        strength = "; ".join(
            f"{o.signal}: AUC {o.power[0]:.3f}, interval {o.power[1]:.3f} to {o.power[2]:.3f}" for o in judged
        )
        return (
            f"This attack cannot see these examples even before unlearning: on no signal is its AUC clearly above "
            f"{0.5 + criteria.delta:g}, which is 0.5 and the δ that counts as nothing ({strength}). No {scope}."
        )
    open_ = [one for one in judged if one.word == "inconclusive"]
    dark = [one for one in judged if one.blinded]
    if dark and not open_:
        return (
            f"The attack was blinded: {'; '.join(describe_blinding(one, criteria.alpha) for one in dark)}. No {scope}."
        )
    numbers = "; ".join(f"{describe_signal(one, criteria.alpha)}, {describe_needed_examples(one)}" for one in open_)
    return f"Undecided: no {scope}. {numbers}."


def describe_blinding(one: SignalVerdict, alpha: float) -> str:
    """How little is still seen of the retained."""
    value, low, high = one.retained or (0.5, 0.5, 0.5)
    return (
        f"{one.signal} does not see the retained examples any more, on which the model was trained: AUC {value:.3f} "
        f"({100 * (1 - 2 * alpha):g} % interval {low:.3f} to {high:.3f})"
    )


def describe_needed_examples(one: SignalVerdict) -> str:
    """How many forget examples would decide."""
    if one.needed is None:
        return "no number of forget examples would decide with this holdout"
    return f"about {one.needed} forget examples would decide"


def describe_limits(
    word: VerdictWord, judged: tuple[SignalVerdict, ...], evidence: Evidence, criteria: Criteria, utility: UtilityLoss
) -> tuple[str, ...]:
    """What this evidence is, how far it reaches, and what it does not show; one plain sentence each."""
    m, n = evidence.subject.count("forget"), evidence.subject.count("holdout")
    held = len(evidence.oracles)
    level = "Level A0, a screen: no reference model, so an attacker who trains references may see more."
    if held:
        level = (
            f"Level {evidence.level}: scores are calibrated by {held} reference model(s) that never saw the forget "
            "set; an attacker with many more references may see more."
        )
    if evidence.level == "A2":
        level += f" The method was judged on {evidence.pairs} pairs of unlearned and retrained models too."
    ceiling = stats.rounded_down(stats.epsilon_ceiling(m, n))
    bound = (
        f"Ceiling: with {m} forget and {n} holdout examples even a perfect attack would show a leak of at "
        f"most epsilon = {ceiling:g}."
        if ceiling > 0
        else f"Ceiling: {m} forget and {n} holdout examples are too few to bound any leak in epsilon."
    )
    said = [level, bound]
    blind = [one.signal for one in judged if not one.powered]
    low = f"its AUC in the original is not clearly above {0.5 + criteria.delta:g} (0.5 + δ)"
    said += [f"{signal} has no power, so what it sees now says nothing: {low}." for signal in blind]
    if not any(one.powered for one in judged):
        outside = [one.signal for one in judged if one.word in ("residue", "over-forgotten")]
        if outside:
            said.append(f"Yet the subject itself stands out on {', '.join(outside)}: look at it.")
    if word == "inconclusive":
        said += [f"{o.signal}: {describe_needed_examples(o)}." for o in judged if o.word == "inconclusive"]
    said += [f"Blinded: {describe_blinding(one, criteria.alpha)}." for one in judged if one.blinded]
    said.append(f"Utility: {utility.note}.")
    if utility.lost and word != "removed, utility lost":
        said.append(f"Utility is lost: {utility.lost}.")
    said.append(
        f"The verdict is decided on {', '.join(one.signal for one in judged)} alone, averaged over the forget set: it "
        "does not cover single examples, other attacks, other copies of the data or of the model."
    )
    return tuple(said)
