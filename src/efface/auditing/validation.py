"""Decide a request that is too small by the rehearsals of its procedure.

    direct verdict            rehearsals                   word
    decided                   any                          as it is
    inconclusive              nothing left, and the        ``validated``: this request alone is too small, the same
                              request is like them         procedure left nothing to tell on many requests like it
    inconclusive              they can be told             ``procedure leaves residue``
    inconclusive              they are too unfamiliar      ``procedure over-forgets``
    inconclusive              undecided, or the request    ``inconclusive``
                              is unlike them

Nothing is validated where a control of the request itself failed (but for those that a small request cannot pass), or
where the attack was blinded. Criteria that were chosen after unlearning validate nothing that those before do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from efface.auditing.controls import Control
from efface.auditing.rehearsals import PooledSignal, RehearsedVerdict
from efface.auditing.signal_verdict import VerdictWord
from efface.auditing.verdict import Verdict

BLOCKING = ("unseen", "withheld", "claimed", "alignment", "fixed")
"""Controls of a request whose failure is evidence, however few its examples are. Others fail if they become residue."""


def decide_with_rehearsals(direct: Verdict, rehearsed: RehearsedVerdict) -> Verdict:
    """Combine a direct verdict with the rehearsals of its procedure, by the table of this module.

    Args:
        direct: The verdict on the request itself.
        rehearsed: The verdict on the procedure, with the release check of this request.

    Returns:
        The verdict, with the rehearsals in it.

    """
    word, why = combine_words(direct, rehearsed)
    if word == "validated" and direct.utility_lost:
        word = "validated, utility lost"
    sentence = direct.sentence
    if word != direct.word:
        sentence = f"{describe_procedure(word, direct, rehearsed)} This request by itself: {direct.sentence}"
    limits = (*direct.limits, *describe_rehearsals(rehearsed, why))
    return replace(direct, word=word, sentence=sentence, limits=limits, rehearsed=rehearsed)


def combine_words(direct: Verdict, rehearsed: RehearsedVerdict) -> tuple[VerdictWord, str]:
    """Return the word of the combined verdict, and why the rehearsals did not decide (empty if they did)."""
    if direct.word != "inconclusive":
        return direct.word, "The request was decided by its own examples."
    if rehearsed.word == "residue":
        return "procedure leaves residue", ""
    if rehearsed.word == "over-forgotten":
        return "procedure over-forgets", ""
    failed = [one.name for one in direct.controls if stands_against(one)]
    if failed:
        return "inconclusive", f"Not validated: the control of the request itself failed ({', '.join(failed)})."
    if any(one.blinded for one in direct.signals):
        return "inconclusive", "Not validated: in the request's own model the attack was blinded."
    if rehearsed.word == "inconclusive":
        return "inconclusive", "The rehearsals do not decide either."
    if not rehearsed.release:
        return "inconclusive", "Not validated: nothing compares this request with the rehearsals."
    if not rehearsed.like_them:
        odd = "; ".join(
            f"{one.name}: {one.value:.3f}, expected {one.low:.3f} to {one.high:.3f}"
            for one in rehearsed.release
            if not one.inside
        )
        return "inconclusive", f"Not validated: this request is unlike its rehearsals ({odd})."
    return cast("VerdictWord", "validated"), ""


def stands_against(control: Control) -> bool:
    """Whether a control of a request forbids to validate it; one that few examples could not pass does not."""
    return control.word == "failed" and (control.name in BLOCKING or control.becomes == "residue")


def describe_procedure(word: str, direct: Verdict, rehearsed: RehearsedVerdict) -> str:
    """Say in plain words what the rehearsals showed."""
    numbers = "; ".join(describe_pooled(one, rehearsed.alpha) for one in rehearsed.signals)
    many = (
        f"on {rehearsed.requests} requests like it ({rehearsed.kind})"
        if rehearsed.kind
        else (f"on {rehearsed.requests} requests like it")
    )
    if word.startswith("validated"):
        return (
            f"This request alone is too small to decide. The same procedure, rehearsed {many}, left nothing to tell "
            f"within {0.5 - direct.delta:g} to {0.5 + direct.delta:g} ({numbers}), and this request looks like one of "
            "them."
        )
    if word == "procedure leaves residue":
        return f"The same procedure, rehearsed {many}, leaves examples that can still be told ({numbers})."
    return (
        f"The same procedure, rehearsed {many}, makes forgotten examples stand out as less familiar than "
        f"examples never trained on ({numbers})."
    )


def describe_pooled(one: PooledSignal, alpha: float) -> str:
    """Format a signal: ``backbone.margin: AUC 0.497, 90 % interval 0.468 to 0.526``."""
    return f"{one.signal}: AUC {one.value:.3f}, {100 * (1 - 2 * alpha):g} % interval {one.low:.3f} to {one.high:.3f}"


def describe_rehearsals(rehearsed: RehearsedVerdict, why: str) -> tuple[str, ...]:
    """List what the rehearsals cover, one sentence each."""
    found = [
        f"Rehearsals: {rehearsed.requests} requests, {rehearsed.examples} examples together"
        f"{f' ({rehearsed.kind})' if rehearsed.kind else ''}: {rehearsed.word}. They speak for the procedure on "
        "requests of this kind, not for the single examples of this request."
    ]
    found += [f"Rehearsal control ({one.name}, {one.word}): {one.note}." for one in rehearsed.controls]
    undecided = [one for one in rehearsed.signals if one.word == "inconclusive"]
    found += [
        f"{describe_pooled(one, rehearsed.alpha)}: "
        + (f"about {one.needed} rehearsals would decide." if one.needed else "no number of rehearsals would decide.")
        for one in undecided
    ]
    return (*found, *([why] if why else []))
