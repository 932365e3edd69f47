"""The one exception family: every message says what happened, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EffaceError(Exception):
    """Something the user can mend. ``what`` happened, ``why``, and what to do (``remedy``).

    The command line prints the three lines and exits with ``exit_code`` (2: the input is wrong).
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.remedy) if part)


class DivergenceError(EffaceError):
    """A loss stopped being a finite number. ``terms`` holds the value of every named term."""

    def __init__(self, terms: dict[str, float], step: int, remedy: str = "") -> None:
        shown = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        guilty = [name for name, value in terms.items() if value != value or abs(value) == float("inf")]
        super().__init__(
            f"The loss is no longer a finite number at step {step}: {shown}.",
            f"The term that diverged: {', '.join(guilty) or 'their sum'}.",
            remedy or "Lower the learning rate or the weight of that term, then run again.",
        )
        self.terms, self.step = terms, step


def suggest_name(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> EffaceError:
    """The error for a ``kind`` (``"method"``, ``"data set"`` ...) whose ``name`` nobody knows."""
    known = sorted(known)
    return EffaceError(
        f"There is no {kind} called '{name}'.{suggest_name(name, known)}",
        f"Known: {', '.join(known)}.",
    )
