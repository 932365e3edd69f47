"""Explain each verdict to readers who are new to it, and say what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from efface.auditing import signals
from efface.auditing.signal_verdict import VerdictWord
from efface.auditing.verdict import Verdict
from efface.auditing.verdict_sentence import has_few_examples


@dataclass(frozen=True)
class Wording:
    """A verdict in plain English."""

    symbol: str
    """Name of the icon next to the verdict word."""
    headline: str
    meaning: str
    then: str
    """What to do next."""

    def translated(self, gettext: Callable[[str], str]) -> Wording:
        """The same in another language."""
        return Wording(self.symbol, gettext(self.headline), gettext(self.meaning), gettext(self.then))


WORDINGS: dict[VerdictWord, Wording] = {
    "removed": Wording(
        "check",
        "No trace was found at the tested resolution.",
        "To the attack, the forgotten examples now look like examples that the model was never trained on.",
        "The new checkpoint can replace the old one. Then work through the list of other copies below.",
    ),
    "residue": Wording(
        "cross",
        "A trace remains.",
        "The attack can still tell the forgotten examples from examples that the model was never trained on.",
        "Do not treat the request as fulfilled with this checkpoint. Unlearn more strongly, use another method, or "
        "retrain without the examples.",
    ),
    "over-forgotten": Wording(
        "down",
        "The examples stand out in the opposite direction.",
        "The model now does worse on the forgotten examples than on examples it was never trained on. That also "
        "reveals them.",
        "Do not treat the request as fulfilled with this checkpoint. Unlearn less strongly, stop earlier, or retrain "
        "without the examples.",
    ),
    "validated": Wording(
        "checks",
        "The same procedure left no trace on many requests like this one.",
        "This request alone has too few examples to decide. So the procedure was tried on many requests of the same "
        "size and kind. Taken together, their examples look like examples that the model was never trained on. This "
        "request looks like one of them.",
        "The new checkpoint can replace the old one. Then work through the list of other copies below.",
    ),
    "procedure leaves residue": Wording(
        "crosses",
        "The same procedure leaves a trace on requests like this one.",
        "This request alone has too few examples to decide. So the procedure was tried on many requests of the same "
        "size and kind. Taken together, their examples can still be told from examples that the model was never "
        "trained on.",
        "Do not treat the request as fulfilled with this checkpoint. Unlearn more strongly, use another method, or "
        "retrain without the examples.",
    ),
    "procedure over-forgets": Wording(
        "downs",
        "The same procedure forgets too much on requests like this one.",
        "This request alone has too few examples to decide. So the procedure was tried on many requests of the same "
        "size and kind. Taken together, their examples look less familiar than examples that the model was never "
        "trained on. That also reveals them.",
        "Do not treat the request as fulfilled with this checkpoint. Unlearn less strongly, stop earlier, or retrain "
        "without the examples.",
    ),
    "inconclusive": Wording(
        "question",
        "The evidence is not enough to decide.",
        "There are too few examples, or the measurement is too imprecise, to say whether a trace remains.",
        "This is neither a pass nor a failure. Rehearse the procedure on many requests like this one (`efface "
        "rehearse`), audit with a reference bank, or retrain without the examples.",
    ),
    "removed, utility lost": Wording(
        "exclamation",
        "No trace was found, but the model is no longer useful.",
        "Damaging a model also makes it forget. The forgotten examples can no longer be detected, but much of what the "
        "model was good at is lost as well.",
        "Do not deploy this checkpoint. Unlearn less strongly, use another method, or retrain without the examples.",
    ),
    "validated, utility lost": Wording(
        "exclamations",
        "The procedure left no trace, but the model is no longer useful.",
        "The same procedure left nothing to tell on many requests like this one. But much of what the model was good "
        "at is lost.",
        "Do not deploy this checkpoint. Unlearn less strongly, use another method, or retrain without the examples.",
    ),
}
BLIND = Wording(
    "question",
    "The attack cannot detect these examples.",
    "Even before unlearning, it could not clearly distinguish them from never-trained examples. Finding nothing now "
    "therefore means nothing.",
    "This is neither a pass nor a failure. Audit again with retrained models for comparison, or retrain without the "
    "examples.",
)
TOO_FEW = Wording(
    "question",
    "There are too few examples to decide.",
    "Before unlearning, the attack may have been able to distinguish them from never-trained examples, or not: so few "
    "examples cannot tell. Finding nothing now therefore means nothing.",
    "This is neither a pass nor a failure. Rehearse the procedure on many requests like this one (`efface "
    "rehearse`), audit with a reference bank, or retrain without the examples.",
)
BANKED = replace(
    TOO_FEW,
    then="This is neither a pass nor a failure. Rehearse the procedure on many requests like this one (`efface "
    "rehearse`), or retrain without the examples.",
)
"""There are too few examples even for a reference bank."""
BLINDED = Wording(
    "question",
    "Unlearning disabled the attack.",
    "It no longer detects the forgotten examples, but it does not detect the retained ones either, although the model "
    "was trained on them. Added noise, a new head, or a model that forgot everything would have this effect: another "
    "attack may still find a trace.",
    "This is neither a pass nor a failure. Check what else unlearning changed, or retrain without the examples.",
)
UNPROVEN = Wording(
    "question",
    "It looks removed, but a control speaks against it.",
    "The attack does not tell the forgotten examples from the holdout. But a check of whether that means anything did "
    "not pass, or could not be made: the recorded verdict says which.",
    "This is neither a pass nor a failure. Remove the cause, or retrain without the examples.",
)
SYMBOLS: dict[str, str] = {word: words.symbol for word, words in WORDINGS.items()}
SIGNAL_PLACES = {
    "backbone.margin": "the encoder’s output",
    "projector.margin": "the projection head’s output",
    "pair.margin": "the match between an image and its caption",
    "logits.margin": "the classifier’s output",
    signals.LEARNED: "a learned combination of all signals",
}
"""What the attack reads, by signal."""


def wording_for(verdict: Verdict) -> Wording:
    """Choose the wording of a verdict.

    An inconclusive verdict has five wordings: too little evidence, examples too few to tell whether the attack has
    power (``TOO_FEW``), an attack without power even on the original (``BLIND``), an attack that unlearning disabled
    (``BLINDED``), and a control that did not pass (``UNPROVEN``). Who has a reference bank is not advised to use one.
    """
    if verdict.word != "inconclusive":
        return WORDINGS[verdict.word]
    found = _inconclusive(verdict)
    banked = any(one.signal == signals.LEARNED for one in verdict.signals) and "reference bank" in found.then
    return replace(found, then=BANKED.then) if banked else found


def _inconclusive(verdict: Verdict) -> Wording:
    """Choose among the wordings of an inconclusive verdict."""
    if has_few_examples(verdict.signals, verdict.delta):
        return TOO_FEW
    if not any(one.powered for one in verdict.signals):
        return BLIND
    blinded = any(one.blinded for one in verdict.signals) and all(one.word == "removed" for one in verdict.signals)
    if blinded:
        return BLINDED
    unproven = all(one.word == "removed" for one in verdict.signals) and verdict.controls
    return UNPROVEN if unproven else WORDINGS["inconclusive"]
