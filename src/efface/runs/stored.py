"""What the files of run folders and of plans of references must hold to be read back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from efface.auditing.evidence import Finding
from efface.schema import FirstFormat, HexDigest, Name, SeedNumber, StoredModel, first_problem

MAX_PLANNED = 10_000
"""Most models that one call plans."""
AGAIN = "Restore it, or plan again: `efface references RUN --out DIR`."
ReferenceKind = Literal["out", "original", "in"]
TaskName = Annotated[str, StringConstraints(pattern=r"\A(out|original|in)-[0-9a-f]{12}\z")]
"""The name of a task, which is also that of its folder."""


class StoredPlan(StoredModel):
    """The content of a ``plan.json``."""

    format: FirstFormat
    data: Name | dict[str, Any]
    recipe: dict[str, Any]
    method: dict[str, Any]
    parent: HexDigest
    split: HexDigest
    seed: SeedNumber
    bf16: bool | None = None


class StoredRequest(StoredModel):
    """The content of a run's ``config.yaml``, as far as other commands read it."""

    verb: Literal["pretrain", "unlearn", "references"]
    data: Name | dict[str, Any]
    seed: SeedNumber
    device: str = "auto"
    bf16: bool | None = None
    parent: HexDigest | None = None
    forget: str | None = None
    forget_seed: SeedNumber | None = None
    method: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    split: dict[str, Any] | str | None = None
    kind: Literal["out", "original", "in", "half"] | None = None
    stop: dict[str, Any] | None = None
    source: Name | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def fits_its_verb(self) -> StoredRequest:
        """Refuse a request without what its verb needs."""
        named = isinstance(self.data, str) or any(isinstance(self.data.get(key), str) for key in ("source", "name"))
        first_problem(
            [
                (not named, "data with its source"),
                (self.verb == "unlearn" and self.source is None, "a configuration with 'from' where verb is unlearn"),
                (self.verb == "references" and self.kind is None, "a configuration with its kind"),
            ]
        )
        return self


class StoredFindings(StoredModel):
    """The content of a ``findings-NAME.json``."""

    model: Name
    split: Name
    findings: tuple[Finding, ...]
    claims: tuple[str, ...] = ()
