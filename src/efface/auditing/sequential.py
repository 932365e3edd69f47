"""Drift: how far a model has come over several requests, and whether everything asked so far is forgotten.

Each request is small; what ten of them do to a model shows only against the first original. numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from efface.auditing import representations
from efface.auditing.evidence import Finding
from efface.auditing.observations import Observations
from efface.auditing.verdict import EXIT_CODES, KNN_NEIGHBORS, Verdict
from efface.schema import RecordModel

EXIT_CODE_SEVERITY = (0, 4, 3)
"""Exit codes from good to bad: nothing to tell, undecided, a trace."""


class SequenceStep(RecordModel):
    """One model on the way from the first original to the subject."""

    digest: str
    """SHA-256 over its named tensors."""
    method: dict[str, Any] | None = None
    """What made it; None for the original."""
    forgotten: int
    """Examples that had been asked to be forgotten by then, in all."""
    utility: float | None = None
    """Accuracy on test of the classifier, or of its nearest retained neighbors; None without labels."""
    cka_before: float | None = None
    """Linear CKA of its features of test to those of the model before; 1: the same up to rotation and scale."""
    cka_first: float | None = None
    """The same, to the first original's."""
    moved_before: float | None = None
    """L2 norm of the change of its weights since the model before, relative; None where shapes differ."""
    moved_first: float | None = None
    """The same, since the first original."""


class RequestSequence(RecordModel):
    """Requests that were answered one after the other: where they led, and what an attacker sees of all of them."""

    steps: tuple[SequenceStep, ...]
    """From the first original that can still be found to the subject."""
    count: int
    """Examples that were to be forgotten, in all requests."""
    verdict: Verdict | None = None
    """On all of them, against the first original; None only with a note saying why."""
    findings: tuple[Finding, ...] = Field(default=())
    """On all of them, without the arrays of figures."""
    note: str = ""

    @property
    def exit_code(self) -> int:
        """The verdict's; 4 (undecided) where there is none."""
        return EXIT_CODES["inconclusive"] if self.verdict is None else self.verdict.exit_code


def measure_step(seen: Sequence[Observations], **facts: Any) -> SequenceStep:
    """The last of ``seen``, compared with the one before it and with the first."""
    now, part = seen[-1], "test" if seen[-1].has("test", "features") else "holdout"

    def cka(other: Observations) -> float | None:
        return (
            representations.linear_cka(representations.features(now, part), representations.features(other, part))
            if len(seen) > 1
            else None
        )

    return SequenceStep(
        digest=now.model,
        utility=sequence_utility(now, part),
        cka_before=cka(seen[max(0, len(seen) - 2)]),
        cka_first=cka(seen[0]),
        **facts,
    )


def sequence_utility(observed: Observations, part: str) -> float | None:
    """Accuracy on ``part``."""
    hits = representations.accuracy(observed, part)
    if hits is None:
        voted = representations.knn_accuracy(observed, part, (KNN_NEIGHBORS,))
        hits = voted[0] if voted else None
    return hits[0] / hits[1] if hits else None


def strip_details(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings without the arrays that only figures need."""
    return tuple(replace(one, details={}) for one in findings)


def worst_exit_code(*codes: int) -> int:
    """The exit code that stands for several: a trace before undecided before nothing to tell."""
    return max(codes, key=EXIT_CODE_SEVERITY.index)
