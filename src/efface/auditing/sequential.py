"""Sequential unlearning: how much a model drifts over several requests, and whether all of them are forgotten.

Each request changes a model little; the effect of ten of them shows only in comparison with the first original. NumPy
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from efface.auditing import representations
from efface.auditing.evidence import Finding
from efface.auditing.observations import Observations
from efface.auditing.utility_gate import KNN_NEIGHBORS
from efface.auditing.verdict import EXIT_CODES, Verdict
from efface.schema import RecordModel

EXIT_CODE_SEVERITY = (0, 4, 5, 3)
"""Exit codes from best to worst: removed, undecided, utility lost, residue."""


class SequenceStep(RecordModel):
    """One model in the chain from the first original to the subject."""

    digest: str
    """SHA-256 of its named tensors."""
    method: dict[str, Any] | None = None
    """Settings of the unlearning method that made it; None for the original."""
    forgotten: int
    """Total number of examples in the requests so far."""
    utility: float | None = None
    """Test accuracy of the classifier, or of kNN on its features; None without labels."""
    cka_before: float | None = None
    """Linear CKA of its test features to those of the previous model; 1: equal up to rotation and scale."""
    cka_first: float | None = None
    """Linear CKA of its test features to those of the first original."""
    moved_before: float | None = None
    """Relative L2 norm of the change of its weights since the previous model; None where shapes differ."""
    moved_first: float | None = None
    """Relative L2 norm of the change of its weights since the first original."""


class RequestSequence(RecordModel):
    """Unlearning requests answered one after the other, and the audit of all of them together."""

    steps: tuple[SequenceStep, ...]
    """From the earliest original that can still be found to the subject."""
    count: int
    """Total number of examples to forget in all requests."""
    verdict: Verdict | None = None
    """Verdict on all requests, compared with the first original; None only with a note that says why."""
    findings: tuple[Finding, ...] = Field(default=())
    """Findings on all requests, without the arrays of figures."""
    note: str = ""

    @property
    def exit_code(self) -> int:
        """The verdict's exit code; 4 (undecided) without a verdict."""
        return EXIT_CODES["inconclusive"] if self.verdict is None else self.verdict.exit_code


def measure_step(seen: Sequence[Observations], **facts: Any) -> SequenceStep:
    """Compare the last model of ``seen`` with the previous one and with the first; ``facts`` are the other fields."""
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
    """Return the accuracy on ``part`` of the classifier, or else of kNN; None without labels."""
    hits = representations.accuracy(observed, part)
    if hits is None:
        voted = representations.knn_accuracy(observed, part, (KNN_NEIGHBORS,))
        hits = voted[0] if voted else None
    return hits[0] / hits[1] if hits else None


def strip_details(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings without the arrays that only figures need."""
    return tuple(replace(one, details={}) for one in findings)


def worst_exit_code(*codes: int) -> int:
    """Return the worst of several exit codes: residue, then utility lost, then undecided, then removed."""
    return max(codes, key=EXIT_CODE_SEVERITY.index)
