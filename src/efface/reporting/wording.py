"""What each verdict means, for someone who has never heard of it, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass

from efface.auditing.verdict import Verdict, VerdictWord


@dataclass(frozen=True)
class Wording:
    """A verdict in plain words."""

    symbol: str
    """Name of the drawing beside the word."""
    headline: str
    meaning: str
    then: str
    """What to do next."""


WORDINGS: dict[VerdictWord, Wording] = {
    "removed": Wording(
        "check",
        "No trace was found, at the resolution tested.",
        "To the attack, the forgotten examples now look like examples that the model was never trained on.",
        "The new checkpoint can take the old one’s place. Then work through the list of other copies below.",
    ),
    "residue": Wording(
        "cross",
        "A trace is left.",
        "The attack can still tell the forgotten examples from examples that the model was never trained on.",
        "Do not count the request as done with this checkpoint. Unlearn with more strength or another "
        "method, or retrain without the examples.",
    ),
    "over-forgotten": Wording(
        "down",
        "The examples stand out again, in the other direction.",
        "The model now treats the forgotten examples worse than examples it was never trained on, and "
        "standing out downwards gives them away as well.",
        "Do not count the request as done with this checkpoint. Unlearn with less strength or stop earlier, "
        "or retrain without the examples.",
    ),
    "inconclusive": Wording(
        "question",
        "The evidence does not decide.",
        "There are too few examples, or the measurement is too coarse, to say whether a trace is left.",
        "This is neither a pass nor a failure. Audit again with more never-trained examples or with "
        "retrained models to compare with, or retrain without the examples.",
    ),
    "removed, utility lost": Wording(
        "exclamation",
        "No trace was found, but the model has lost its use.",
        "A model that has been damaged forgets too. Here the forgotten examples no longer show, and neither "
        "does much of what the model was for.",
        "Do not deploy this checkpoint. Unlearn with less strength or another method, or retrain without the examples.",
    ),
}
BLIND = Wording(
    "question",
    "The attack is blind to these examples.",
    "Even before anything was unlearned it could not tell them from never-trained examples by clearly more than what "
    "counts as nothing to tell. That it sees nothing now therefore says nothing.",
    "This is neither a pass nor a failure. Audit again with retrained models to compare with, or retrain "
    "without the examples.",
)
BLINDED = Wording(
    "question",
    "The attack was blinded.",
    "It does not see the forgotten examples any more, but neither does it see the retained ones, which the model was "
    "trained on. Noise, a new head and forgetting everybody look like that: another attack may still see a trace.",
    "This is neither a pass nor a failure. Look at what was changed besides the forgotten examples, or retrain without "
    "them.",
)
SYMBOLS: dict[str, str] = {word: words.symbol for word, words in WORDINGS.items()}
SIGNAL_PLACES = {
    "backbone.margin": "the encoder’s output",
    "projector.margin": "the projection head’s output",
    "pair.margin": "how an image fits its caption",
    "logits.margin": "the classifier’s answer",
}
"""Signals as the places where an attacker looks."""


def wording_for(verdict: Verdict) -> Wording:
    """The plain words for a verdict; an inconclusive one may be undecided, blind from the start, or blinded."""
    if verdict.word != "inconclusive":
        return WORDINGS[verdict.word]
    if not any(one.powered for one in verdict.signals):
        return BLIND
    blinded = any(one.blinded for one in verdict.signals) and all(one.word == "removed" for one in verdict.signals)
    return BLINDED if blinded else WORDINGS["inconclusive"]
