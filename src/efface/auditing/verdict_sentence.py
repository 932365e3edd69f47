"""The sentences of a verdict: what was found, under which attacker, and what the evidence does not show."""

from __future__ import annotations

from collections.abc import Sequence

from efface import stats
from efface.auditing import controls
from efface.auditing.controls import Control
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Evidence
from efface.auditing.signal_verdict import SignalVerdict, VerdictWord
from efface.auditing.utility_gate import UtilityLoss


def describe_attacker(evidence: Evidence) -> str:
    """Describe the attacker that the evidence models."""
    held = len(evidence.references)
    if evidence.calibration:
        compares = f"compares each example with {held} models that never saw it"
    elif held:
        compares = f"compares with {held} model{'s' if held > 1 else ''} that never saw the forget set"
    else:
        compares = "has no other model to compare with"
    return f"threat model {evidence.level} (the attacker sees this model's scores of an example and {compares})"


def describe_signal(one: SignalVerdict, alpha: float) -> str:
    """Format a signal: ``backbone.margin: AUC 0.512 (90 % interval 0.480 to 0.544)``, with the deciding interval."""
    (low, high), corrected = one.deciding, one.deciding != (one.low, one.high)
    level = f"{100 * (1 - 2 * alpha):g} % interval{' over all signals' if corrected else ''}"
    return f"{one.signal}: AUC {one.value:.3f} ({level} {low:.3f} to {high:.3f})"


def write_sentence(
    word: VerdictWord,
    judged: tuple[SignalVerdict, ...],
    evidence: Evidence,
    criteria: Criteria,
    utility: UtilityLoss,
    checked: tuple[Control, ...] = (),
) -> str:
    """Write the verdict in plain words."""
    scope = f"evidence at resolution δ = {criteria.delta:g} under {describe_attacker(evidence)}"
    telling = [one for one in judged if one.word == word] or list(judged)
    numbers = "; ".join(describe_signal(one, criteria.alpha) for one in telling)
    blind = [one.signal for one in judged if not one.powered]
    if all(one.word == "removed" and not one.blinded for one in judged) and any(one.powered for one in judged):
        objection = controls.describe_objection(word, checked)
        if objection:
            return f"{objection}. {'So says' if word == 'residue' else 'No'} {scope}. {numbers}."
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
        what = (
            "There are too few examples to tell whether this attack sees them even before unlearning"
            if has_few_examples(judged, criteria.delta)
            else "This attack cannot see these examples even before unlearning"
        )
        return (
            f"{what}: on no signal is its AUC clearly above {0.5 + criteria.delta:g}, which is 0.5 and the δ that "
            f"counts as nothing ({strength}). No {scope}."
        )
    undecided = [one for one in judged if one.word == "inconclusive"]
    blinded = [describe_blinding(one, criteria.alpha) for one in judged if one.blinded]
    if blinded and not undecided:
        return f"The attack was blinded: {'; '.join(blinded)}. No {scope}."
    numbers = "; ".join(f"{describe_signal(one, criteria.alpha)}, {describe_needed_examples(one)}" for one in undecided)
    return f"Undecided: no {scope}. {numbers}."


def has_few_examples(judged: Sequence[SignalVerdict], delta: float) -> bool:
    """Whether the attack may see the examples in the original, and they are too few to tell.

    On no signal it has power, and on some signal its interval reaches above 0.5 + delta. Where it does not, the attack
    is known to be blind to them.
    """
    return not any(one.powered for one in judged) and any(one.power[2] > 0.5 + delta for one in judged)


def describe_blinding(one: SignalVerdict, alpha: float) -> str:
    """Describe how little the attack still sees of the retained examples."""
    value, low, high = one.retained or (0.5, 0.5, 0.5)
    return (
        f"{one.signal} does not see the retained examples any more, on which the model was trained: AUC {value:.3f} "
        f"({100 * (1 - 2 * alpha):g} % interval {low:.3f} to {high:.3f})"
    )


def describe_needed_examples(one: SignalVerdict) -> str:
    """Describe how many forget examples would decide."""
    if one.needed is None:
        return "no number of forget examples would decide with this holdout"
    return f"about {one.needed} forget examples would decide"


def describe_limits(
    word: VerdictWord, judged: tuple[SignalVerdict, ...], evidence: Evidence, criteria: Criteria, utility: UtilityLoss
) -> tuple[str, ...]:
    """List what the evidence covers and what it does not show, one sentence each."""
    m, n = evidence.subject.count("forget"), evidence.subject.count("holdout")
    held = len(evidence.references)
    level = (
        "Level A0, a first screening: no model was at hand that never saw the examples, so an attacker who trains such "
        "models may see more."
    )
    if held:
        which = (
            "models of a reference bank that never saw the example"
            if evidence.calibration
            else ("reference model(s) that never saw the forget set")
        )
        level = (
            f"Level {evidence.level}: scores are calibrated by {held} {which}; an attacker with many more references "
            "may see more."
        )
        if not evidence.calibration:
            level += " Without a reference bank no attack could be learned: one that combines all signals may see more."
    if evidence.level == "A2":
        level += f" The method was judged on {evidence.pairs} pairs of unlearned and retrained models too."
    ceiling = stats.rounded_down(stats.epsilon_ceiling(m, n))
    bound = (
        f"With {m} forgotten examples and {n} for comparison, even a perfect attack would show a leak of at most "
        f"{ceiling:g} in the measure of differential privacy (epsilon; 0 is no leak)."
        if ceiling > 0
        else f"{m} forgotten examples and {n} for comparison are too few to bound a leak in the measure of "
        "differential privacy (epsilon)."
    )
    limits = [level, bound]
    blind = [one.signal for one in judged if not one.powered]
    low = f"in the original it is not clearly right in more than {100 * (0.5 + criteria.delta):g} of 100 pairs"
    limits += [f"{signal} has no power, so what it sees now says nothing: {low}." for signal in blind]
    if not any(one.powered for one in judged):
        outside = [one.signal for one in judged if one.word in ("residue", "over-forgotten")]
        if outside:
            limits.append(f"Yet the subject itself stands out on {', '.join(outside)}: inspect it.")
    if word == "inconclusive":
        limits += [f"{o.signal}: {describe_needed_examples(o)}." for o in judged if o.word == "inconclusive"]
    limits += [f"Blinded: {describe_blinding(one, criteria.alpha)}." for one in judged if one.blinded]
    limits.append(f"Utility: {utility.note}.")
    if utility.undecided:
        limits.append(f"There are too few examples to tell if the model is worse at its own task: {utility.undecided}.")
    if utility.lost and word != "removed, utility lost":
        limits.append(f"Utility is lost: {utility.lost}.")
    limits.append(
        f"The verdict is decided on {', '.join(one.signal for one in judged)} alone, averaged over the forget set: it "
        "does not cover single examples, other attacks, other copies of the data or of the model."
    )
    return tuple(limits)
