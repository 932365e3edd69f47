"""The verdict on one signal, and the words of a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VerdictWord = Literal[
    "removed",
    "validated",
    "residue",
    "over-forgotten",
    "procedure leaves residue",
    "procedure over-forgets",
    "inconclusive",
    "removed, utility lost",
    "validated, utility lost",
]


@dataclass(frozen=True)
class SignalVerdict:
    """The verdict on one signal: its power in the original, and its AUC in the subject."""

    signal: str
    power: tuple[float, float, float]
    """AUC of the original, and its 1 - alpha interval, corrected for the number of signals as the test of power is:
    ``(value, low, high)``. The low end is above 0.5 + delta exactly where there is power."""
    powered: bool
    """Whether the original's AUC is significantly above 0.5 + delta, corrected for the number of signals."""
    value: float
    """AUC of the subject."""
    low: float
    """Lower end of the subject's 1 - 2 alpha interval (90 %)."""
    high: float
    """Upper end of that interval."""
    reference: float
    """AUC of no difference: 0.5, also at A1, where the references are already part of the score."""
    word: str
    """Verdict of this signal alone: ``removed``, ``residue``, ``over-forgotten`` or ``inconclusive``."""
    needed: int | None
    """Number of forget examples that would probably decide; None if decided, or if no number would be enough."""
    retained: tuple[float, float, float] | None = None
    """Raw AUC of the retained examples in the subject, and its 1 - 2 alpha interval; None without this control."""
    blinded: bool = False
    """Whether the attack sees the retained examples in the reference models, but no longer in the subject."""
    corrected: tuple[float, float] | None = None
    """The subject's 1 - 2 alpha interval, corrected for the number of signals (Holm): it lies above 0.5 + delta exactly
    for ``residue``, and below 0.5 - delta exactly for ``over-forgotten``. None in records of older releases."""

    @property
    def deciding(self) -> tuple[float, float]:
        """The interval that the word of this signal rests on."""
        return (self.low, self.high) if self.word == "removed" or self.corrected is None else self.corrected
