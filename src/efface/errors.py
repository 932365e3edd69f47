"""The package's exceptions: every message says what happened, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class EffaceError(Exception):
    """An error that the user can fix.

    The command line prints the three parts on separate lines and exits with ``exit_code`` (2: the input is wrong).

    Args:
        what: What happened, with the user's own names and numbers.
        why: The cause.
        remedy: What to do about it.

    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what, self.why, self.remedy = what, why, remedy

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.remedy) if part)


class DiskError(EffaceError):
    """The disk is full, or a folder cannot be written; it says nothing about what was to be written there."""


class DivergenceError(EffaceError):
    """A loss became NaN or infinite.

    Args:
        terms: The value of every loss term, by name.
        step: The training step at which it happened.
        remedy: What to do; by default, lower the learning rate or the weight of the term.

    """

    def __init__(self, terms: dict[str, float], step: int, remedy: str = "") -> None:
        shown = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        diverged = [name for name, value in terms.items() if value != value or abs(value) == float("inf")]
        super().__init__(
            f"The loss is no longer a finite number at step {step}: {shown}.",
            f"The term that diverged: {', '.join(diverged) or 'their sum'}.",
            remedy or "Lower the learning rate or the weight of that term, then run again.",
        )
        self.terms, self.step = terms, step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.terms, self.step, self.remedy)  # its arguments are not those of its base class


@contextmanager
def optional_imports(purpose: str, extra: str, otherwise: str = "") -> Iterator[None]:
    """Import libraries of an extra in this block; of one that cannot be imported it is said how to install it.

    Args:
        purpose: What they are needed for: ``"signing and verifying"``.
        extra: The extra of this package that brings them.
        otherwise: What can be done without them: a sentence.

    Raises:
        EffaceError: One is not installed, or it is and does not load. Faults of this package's own modules pass.

    Example:
        >>> with optional_imports("exact arithmetic", "sign"):
        ...     import fractions

    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name == "efface":
            raise
        brought = f"'efface[{extra}]'"
        if isinstance(error, ModuleNotFoundError):
            what, why, remedy = f"The library {name} is not installed.", "", f"Install it: pip install {brought}."
        else:
            what = f"The library {name} cannot be loaded." if name else "A library cannot be loaded."
            why, remedy = f" It says: {error}.", f"Install it anew, and what it names: pip install -U {brought}."
        raise EffaceError(what, f"It is needed for {purpose}.{why}", f"{remedy} {otherwise}".rstrip()) from error


MEMORY_WORDS = ("can't allocate memory", "out of memory", "not enough memory")
"""What the messages of torch and of the system say when memory ends."""


def explain_memory(error: Exception, *, images: int | None = None) -> EffaceError | None:
    """The error for a step or a file that memory does not suffice for; None if that is not what happened.

    Args:
        error: What was raised.
        images: How many images went through the network at once in a step of training; None if it was none.

    """
    text = str(error)
    ended = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not ended and not (isinstance(error, RuntimeError) and any(words in text.lower() for words in MEMORY_WORDS)):
        return None
    what = "The memory does not suffice" + (f" for a step on {images} images." if images else ".")
    why = (text.strip().splitlines() or ["It ended while something was computed."])[0][:200]
    if images is not None and images > 1:
        return EffaceError(
            what,
            why,
            f"Add --set recipe.micro_batch={max(1, images // 4)}: so many images go through the network at once, with "
            "the gradient of the whole batch. Or set a smaller batch_size, or use smaller images.",
        )
    return EffaceError(
        what,
        why,
        "Compute on fewer images at once: --set recipe.micro_batch=N for pretrain and unlearn (the gradient stays that "
        "of the whole batch), or a smaller --set method.batch_size=N or --set recipe.batch_size=N; --batch-size N for "
        "embed and compat. Or use smaller images, or another device.",
    )


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> EffaceError:
    """Build the error for an unknown ``name``; ``kind`` says what it should be (``"method"``, ``"data set"`` ...)."""
    known = sorted(known)
    return EffaceError(
        f"There is no {kind} called '{name}'.{suggest_name(name, known)}",
        f"Known: {', '.join(known)}.",
    )
