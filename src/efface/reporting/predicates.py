"""What a signed bundle states: the four in-toto predicates as models, and what follows from the first one.

A bundle holds, in this order, one statement each of ``UNLEARNING`` (ours, the whole evidence), ``TEST_RESULT``,
``SVR`` (only for a pass) and ``PROVENANCE``, all about the same file. The second and the third are derived from the
first by :func:`derive_test_result` and :func:`derive_svr`, when signing and again when verifying, so that no two
statements of a bundle can disagree. Needs neither torch nor NumPy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from efface.reporting.stated_verdict import Filled, Sha256, StatedVerdict, StatementPart

STATEMENT = "https://in-toto.io/Statement/v1"
UNLEARNING = "urn:efface:unlearning:v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
SVR = "https://in-toto.io/attestation/svr/v0.1"
PROVENANCE = "https://slsa.dev/provenance/v1"
VERIFIER = "urn:efface:audit:v1"
BUILD_TYPE = "urn:efface:unlearn:v1"
BUILDER = "urn:efface:cli"
RECORD_NAME = "record.json"

Outcome = Literal["PASSED", "WARNED", "FAILED"]
OUTCOMES: dict[str, Outcome] = {
    "removed": "PASSED",
    "residue": "FAILED",
    "over-forgotten": "FAILED",
    "removed, utility lost": "FAILED",
    "validated": "PASSED",
    "validated, utility lost": "FAILED",
    "procedure leaves residue": "FAILED",
    "procedure over-forgets": "FAILED",
}
"""Outcome of the test by verdict word; every other word, such as ``inconclusive``, is ``WARNED``, never a pass."""
_WORST_LAST: tuple[Outcome, ...] = ("PASSED", "WARNED", "FAILED")


class FileDigest(StatementPart):
    """Digest of a file's bytes, as ``sha256sum`` prints it."""

    sha256: Sha256


class SignedFile(StatementPart):
    """A file that statements are about."""

    name: Filled
    digest: FileDigest


class Statement(StatementPart):
    """An in-toto Statement v1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default=STATEMENT, alias="_type")
    subject: tuple[SignedFile, ...] = Field(min_length=1, max_length=1)
    """The released weights."""
    predicate_type: Filled
    predicate: dict[str, Any]


class ForgetSet(StatementPart):
    """A commitment to the forgotten examples. Without the record's key it reveals their number and nothing else."""

    scheme: Literal["hmac-sha256"] = "hmac-sha256"
    count: Annotated[int, Field(ge=1)]
    key_digest: Sha256
    """SHA-256 of the key."""
    values_digest: Sha256
    """SHA-256 of the record's sorted ``items.values``, one HMAC in hexadecimal on each line."""


class ModelDigests(StatementPart):
    """One model: digest of its named tensors, and of the file that the audit read."""

    tensors: Sha256
    file: Sha256


class MethodUsed(StatementPart):
    """The unlearning method."""

    name: Filled
    settings: dict[str, Any]
    origin: str = ""
    """The package that provides it; empty for the methods of efface."""


class ChangedPart(StatementPart):
    """How much unlearning changed one part of the model."""

    part: Filled
    numbers: int
    relative: float
    largest: float
    changed: bool
    note: str = ""


class StatedFinding(StatementPart):
    """A measured number; notes and arrays stay in the record."""

    name: Filled
    value: float | None
    """None if it could not be measured."""
    interval: tuple[float, float] | None
    better: Literal["lower", "higher", "closer"] | None
    original: float | None
    oracle: float | None
    n: tuple[int, ...]
    unit: str


class AllRequests(StatementPart):
    """All requests together, if this was not the first."""

    count: int
    word: str
    """Verdict on all of them; empty if there could be none."""


class UncheckedClaim(StatementPart):
    """Something that a person stated and nobody checked."""

    about: Filled
    claim: Filled


class DownstreamArtefact(StatementPart):
    """What became of artefacts that still remembered after the release: caches, indexes, checkpoints. No names."""

    kind: Filled
    outcome: Literal["removed", "rewritten", "listed", "absent", "failed"]
    artefacts: Annotated[int, Field(ge=1)]
    """How many of them."""
    entries: Annotated[int, Field(ge=0)]
    """How many of their entries were about the forgotten; 0 where that has no meaning."""


class RecordReference(StatementPart):
    """The record that the statement was made from."""

    sha256: Sha256
    schema_version: int
    created: Filled
    efface_version: Filled
    warnings: int
    """How many warnings it has."""


class Unlearning(StatementPart):
    """An unlearning request, what was done about it, what an audit found, and what all this does not cover."""

    request_id: str = ""
    goal: str = ""
    forget_set: ForgetSet
    method: MethodUsed
    original: ModelDigests
    unlearned: ModelDigests
    lineage: tuple[Sha256, ...]
    release: Literal["audited", "recorded", "stated"]
    """How the signed file belongs to the unlearned model: the audit read this file; the record lists it; or only the
    signer says so, which is then a claim as well."""
    changes: tuple[ChangedPart, ...]
    findings: tuple[StatedFinding, ...]
    verdict: StatedVerdict
    all_requests: AllRequests | None = None
    claims: tuple[UncheckedClaim, ...]
    out_of_scope: tuple[Filled, ...] = Field(min_length=1)
    """What the evidence does not cover; never empty."""
    downstream: tuple[DownstreamArtefact, ...] = ()
    """What became of what still remembered, if it was erased after the release."""
    record: RecordReference

    @property
    def outcome(self) -> Outcome:
        """The outcome of the test: the worse one of this request and of all requests together."""
        words = [self.verdict.word] + ([self.all_requests.word] if self.all_requests else [])
        outcomes: list[Outcome] = [OUTCOMES.get(word, "WARNED") for word in words]
        return max(outcomes, key=_WORST_LAST.index)

    @property
    def passes(self) -> bool:
        """Whether a pass may be certified: the test passed, and rests on nothing that nobody checked."""
        return self.outcome == "PASSED" and not self.claims

    def contradiction(self) -> str:
        """How the verdict contradicts its own numbers, by what every verdict obeys; empty if it does not."""
        verdict, words = self.verdict, {one.word for one in self.verdict.signals}
        low, high = 0.5 - verdict.delta, 0.5 + verdict.delta
        if self.release == "stated" and not self.claims:
            return "the file is only stated to hold the model, but no claim says so"
        if verdict.word in ("residue", "over-forgotten"):
            return "" if verdict.word in words else f"{verdict.word}, but no signal is"
        if verdict.word.startswith(("validated", "procedure ")):
            return self._contradicts_rehearsals(words)
        if verdict.word not in OUTCOMES:
            return ""
        outside = [one.signal for one in verdict.signals if not low < one.low <= one.high < high]
        if outside:
            return f"removed, but the interval of {outside[0]} is not within 0.5 ± {verdict.delta:g}"
        if words != {"removed"}:
            return "removed, but a signal is not"
        if not any(one.powered for one in verdict.signals):
            return "removed, but no signal has power"
        blinded = verdict.word == "removed" and any(one.blinded for one in verdict.signals)
        return "removed, but a signal is blinded" if blinded else ""

    def _contradicts_rehearsals(self, words: set[str]) -> str:
        word, held = self.verdict.word, self.verdict.rehearsals
        if held is None:
            return f"{word}, but there are no rehearsals"
        if words & {"residue", "over-forgotten"} or any(one.blinded for one in self.verdict.signals):
            return f"{word}, but the request itself says something else"
        if word.startswith("validated"):
            why = held.contradiction(self.verdict.delta)
            return f"validated, but {why}" if why else ""
        expected = {"procedure leaves residue": "residue", "procedure over-forgets": "over-forgotten"}.get(word)
        return "" if held.word == expected else f"{word}, but the rehearsals say '{held.word}'"


class Descriptor(StatementPart):
    """A resource, by a digest."""

    name: Filled
    digest: dict[str, Filled] = Field(min_length=1)
    annotations: dict[str, Any] | None = None

    def content(self) -> dict[str, Any]:
        """The descriptor as JSON types, without what it does not have."""
        return self.model_dump(mode="json", exclude_none=True)


class TestResult(StatementPart):
    """The predicate of ``TEST_RESULT``."""

    __test__ = False  # not a test, whatever pytest thinks

    result: Outcome
    configuration: tuple[dict[str, Any], ...]
    passed_tests: tuple[str, ...]
    warned_tests: tuple[str, ...]
    failed_tests: tuple[str, ...]


class VerifierIdentity(StatementPart):
    """Who verified."""

    id: Filled


class VerificationResult(StatementPart):
    """The predicate of ``SVR``, a simple verification result."""

    verifier: VerifierIdentity
    time_created: Filled
    properties: tuple[Filled, ...] = Field(min_length=1)


class BuildDefinition(StatementPart):
    """What was asked for, and from what."""

    build_type: Literal["urn:efface:unlearn:v1"]
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: tuple[dict[str, Any], ...]


class BuilderIdentity(StatementPart):
    """The program that did it."""

    id: Literal["urn:efface:cli"]
    version: dict[str, str]


class BuildMetadata(StatementPart):
    """When it was done."""

    finished_on: Filled


class RunDetails(StatementPart):
    """How it was done."""

    builder: BuilderIdentity
    metadata: BuildMetadata
    byproducts: tuple[dict[str, Any], ...] = Field(min_length=1)


class Provenance(StatementPart):
    """The predicate of ``PROVENANCE``: SLSA provenance v1."""

    build_definition: BuildDefinition
    run_details: RunDetails


PREDICATES: dict[str, type[StatementPart]] = {
    UNLEARNING: Unlearning,
    TEST_RESULT: TestResult,
    SVR: VerificationResult,
    PROVENANCE: Provenance,
}
"""Predicate type to its model."""


class Certifiable(Protocol):
    """What the first statement of a bundle holds."""

    @property
    def passes(self) -> bool:
        """Whether a pass may be certified."""
        ...


def expected_types(stated: Certifiable, first: str = UNLEARNING) -> tuple[str, ...]:
    """The statements of a bundle, in their order."""
    return (first, TEST_RESULT, *((SVR,) if stated.passes else ()), PROVENANCE)


def describe_record(stated: Unlearning) -> dict[str, Any]:
    """The record as a resource, with the thresholds that its audit used."""
    verdict = stated.verdict
    used = {"delta": verdict.delta, "alpha": verdict.alpha, "level": verdict.level}
    return Descriptor(name=RECORD_NAME, digest={"sha256": stated.record.sha256}, annotations=used).content()


def derive_test_result(stated: Unlearning) -> TestResult:
    """The test result that follows from an unlearning statement: one test for each signal, and one for all requests."""
    tests = {one.signal: OUTCOMES.get(one.word, "WARNED") for one in stated.verdict.signals}
    tests |= {f"{one.signal}.control": "WARNED" for one in stated.verdict.signals if one.blinded}
    if stated.verdict.word.endswith(", utility lost"):
        tests["utility"] = "FAILED"
    if stated.verdict.rehearsals is not None:
        tests["procedure"] = OUTCOMES.get(stated.verdict.rehearsals.word, "WARNED")
    if stated.all_requests is not None:
        tests["all requests"] = OUTCOMES.get(stated.all_requests.word, "WARNED")
    named = {outcome: tuple(sorted(name for name, one in tests.items() if one == outcome)) for outcome in _WORST_LAST}
    return TestResult(
        result=stated.outcome,
        configuration=(describe_record(stated),),
        passed_tests=named["PASSED"],
        warned_tests=named["WARNED"],
        failed_tests=named["FAILED"],
    )


def derive_svr(stated: Unlearning) -> VerificationResult:
    """The verification result that follows from an unlearning statement that passes."""
    return VerificationResult(
        verifier=VerifierIdentity(id=VERIFIER),
        time_created=stated.record.created,
        properties=(f"EFFACE_NO_TRACE_FOUND_{stated.verdict.level}", "EFFACE_UTILITY_KEPT"),
    )


def predicate_schema() -> dict[str, Any]:
    """The JSON schema of our predicate, as packaged in ``schemas/unlearning-v1.schema.json``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": UNLEARNING}
    return head | Unlearning.model_json_schema(mode="validation")
