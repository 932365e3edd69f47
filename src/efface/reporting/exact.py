"""What a signed bundle states of an exact deletion, and what follows from it. Needs neither torch nor NumPy.

An exact deletion needs no statistics: the model is the one that would have been made without the examples, by
construction, and a check repeats the making and compares. Without a check it is a claim, and no pass is certified.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from efface.reporting.predicates import (
    VERIFIER,
    Descriptor,
    Filled,
    ForgetSet,
    MethodUsed,
    ModelDigests,
    Outcome,
    RecordReference,
    Sha256,
    StatementPart,
    TestResult,
    UncheckedClaim,
    Unlearning,
    VerificationResult,
    VerifierIdentity,
    derive_svr,
    derive_test_result,
    describe_record,
)

EXACT = "urn:efface:exact-deletion:v1"
EXACT_RECORD = "exact.json"
ExactWord = Literal["removed", "residue", "unchecked"]
EXACT_OUTCOMES: dict[ExactWord, Outcome] = {"removed": "PASSED", "residue": "FAILED", "unchecked": "WARNED"}


class StatedCheck(StatementPart):
    """One repetition of the making, and how the result compares."""

    name: Filled
    what: Filled
    """What was repeated."""
    measured: Filled
    """What came out, with its unit and limit."""
    passed: bool
    created: Filled


class ExactVerdict(StatementPart):
    """Whether the deletion was found to be exact."""

    word: ExactWord
    level: Literal["exact"] = "exact"
    sentence: Filled


class ExactDeletion(StatementPart):
    """An exact deletion: what was deleted from what, how, what was checked, and what all this does not cover."""

    request_id: str = ""
    goal: Literal["exact"] = "exact"
    kind: Literal["head", "shards"]
    forget_set: ForgetSet
    method: MethodUsed
    original: ModelDigests
    unlearned: ModelDigests
    parts: dict[str, Annotated[int, Field(ge=0)]]
    """Numbers of rows, or of shards and stages, before and after."""
    checks: tuple[StatedCheck, ...]
    verdict: ExactVerdict
    release: Literal["audited"] = "audited"
    claims: tuple[UncheckedClaim, ...] = ()
    out_of_scope: tuple[Filled, ...] = Field(min_length=1)
    source: Sha256
    """Digest of what it was made from: the file of embeddings, or the data."""
    record: RecordReference

    @property
    def outcome(self) -> Outcome:
        """The outcome of the test that the checks are."""
        return EXACT_OUTCOMES[self.verdict.word]

    @property
    def passes(self) -> bool:
        """Whether a pass may be certified."""
        return self.outcome == "PASSED" and not self.claims

    def contradiction(self) -> str:
        """How the verdict contradicts its checks; empty if it does not."""
        expected = judge_checks([one.passed for one in self.checks])
        if self.verdict.word != expected:
            return f"{self.verdict.word}, but its checks say {expected}"
        return "the model is the one before the deletion" if self.original == self.unlearned else ""


def judge_checks(passed: list[bool]) -> ExactWord:
    """The word for checks that passed or not."""
    if not passed:
        return "unchecked"
    return "removed" if all(passed) else "residue"


Stated = Unlearning | ExactDeletion
"""What the first statement of a bundle holds."""


def reference_of(stated: Stated) -> dict[str, object]:
    """The record behind a statement, as a resource."""
    if isinstance(stated, Unlearning):
        return describe_record(stated)
    used = {"level": stated.verdict.level}
    return Descriptor(name=EXACT_RECORD, digest={"sha256": stated.record.sha256}, annotations=used).content()


def test_result_of(stated: Stated) -> TestResult:
    """The test result that follows from a statement."""
    if isinstance(stated, Unlearning):
        return derive_test_result(stated)
    return TestResult(
        result=stated.outcome,
        configuration=(reference_of(stated),),
        passed_tests=tuple(sorted(one.name for one in stated.checks if one.passed)),
        warned_tests=() if stated.checks else ("unchecked",),
        failed_tests=tuple(sorted(one.name for one in stated.checks if not one.passed)),
    )


def svr_of(stated: Stated) -> VerificationResult:
    """The verification result that follows from a statement that passes."""
    if isinstance(stated, Unlearning):
        return derive_svr(stated)
    return VerificationResult(
        verifier=VerifierIdentity(id=VERIFIER),
        time_created=stated.record.created,
        properties=(f"EFFACE_EXACT_DELETION_OF_{stated.kind.upper()}",),
    )


def exact_schema() -> dict[str, Any]:
    """The JSON schema of the predicate, as packaged in ``schemas/exact-deletion-v1.schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": EXACT}
    return head | ExactDeletion.model_json_schema(mode="validation")
