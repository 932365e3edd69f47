"""What the ``outcome.json`` of a task of a bench must hold to be read back."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from efface.auditing.evidence import Finding
from efface.auditing.verdict import Verdict
from efface.bench.selection import SelectionScore
from efface.schema import NotNegative, StoredModel, Tally, first_problem


class TaskCost(StoredModel):
    """What the model of a task cost."""

    steps: Tally
    examples: Tally
    seconds: NotNegative


class StoredOutcome(StoredModel):
    """The content of an ``outcome.json``: an error, or a cost and, for a judgment, what was found."""

    error: str | None = None
    traceback: str | None = None
    cost: TaskCost | None = None
    verdict: Verdict | None = None
    findings: tuple[Finding, ...] | None = None
    choice: SelectionScore | None = None
    curves: dict[str, dict[str, tuple[float, ...]]] | None = None

    @model_validator(mode="after")
    def is_complete(self) -> StoredOutcome:
        """Refuse a result without its cost, and a judgment without one of its parts."""
        judged: list[Any] = [self.verdict, self.findings, self.choice, self.curves]
        parts = [one is not None for one in judged]
        first_problem(
            [
                (self.error is None and self.cost is None, "an error or a cost"),
                (any(parts) and not all(parts), "a judgment with verdict, findings, choice and curves"),
            ]
        )
        return self
