"""The verdict in a signed statement: its signals, and the rehearsals of a procedure where a request is too small."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from efface.schema import RecordModel

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Filled = Annotated[str, Field(min_length=1, pattern=r"\S")]


class StatementPart(RecordModel):
    """A part of a statement: field names are in camelCase, as in-toto writes them."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )

    def content(self) -> dict[str, Any]:
        """The part as JSON types."""
        return self.model_dump(mode="json")


class StatedSignal(StatementPart):
    """The verdict on one signal."""

    signal: Filled
    power: tuple[float, float, float]
    """AUC of the original with its interval: value, low, high."""
    powered: bool
    value: float
    low: float
    high: float
    word: Filled
    blinded: bool


class StatedPooled(StatementPart):
    """What all rehearsals together say on one signal."""

    signal: Filled
    powered: bool
    value: float
    low: float
    high: float
    word: Filled


class StatedRehearsals(StatementPart):
    """The rehearsals of the procedure, where a request alone is too small."""

    requests: Annotated[int, Field(ge=1)]
    examples: Annotated[int, Field(ge=1)]
    kind: str
    word: Filled
    signals: tuple[StatedPooled, ...] = Field(min_length=1)
    like_them: bool
    """Whether the request looked like one of its rehearsals."""

    def contradiction(self, delta: float) -> str:
        """Why they do not validate a procedure; empty if they do."""
        low, high = 0.5 - delta, 0.5 + delta
        outside = [one.signal for one in self.signals if not low < one.low <= one.high < high or one.word != "removed"]
        if outside:
            return f"the interval of {outside[0]} over its rehearsals is not within 0.5 ± {delta:g}"
        if self.word != "removed" or not any(one.powered for one in self.signals):
            return "its rehearsals do not show it"
        return "" if self.like_them else "the request is unlike its rehearsals"


class StatedVerdict(StatementPart):
    """The verdict of the audit, and the thresholds that were fixed before it."""

    word: Filled
    level: Annotated[str, Field(pattern="^A[0-9]$")]
    sentence: Filled
    delta: Annotated[float, Field(gt=0, lt=0.5)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    signals: tuple[StatedSignal, ...] = Field(min_length=1)
    utility_drop: float | None
    max_utility_drop: float
    rehearsals: StatedRehearsals | None = None
