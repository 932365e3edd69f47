"""Turn a sealed record into the statements of a signed bundle. What could name a forgotten example is left out.

Left out are therefore the selector of the forget set, the configuration, seeds (a random forget set could be drawn
again from its seed and the data), class names, paths, warnings and the notes of findings. The record has them all, and
every statement is bound to its digest, which nobody can guess: the record holds keyed digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from efface.auditing.verdict import Verdict
from efface.errors import EffaceError
from efface.reporting.predicates import (
    BUILD_TYPE,
    BUILDER,
    PROVENANCE,
    SVR,
    TEST_RESULT,
    UNLEARNING,
    AllRequests,
    BuildDefinition,
    BuilderIdentity,
    BuildMetadata,
    ChangedPart,
    Descriptor,
    FileDigest,
    ForgetSet,
    MethodUsed,
    ModelDigests,
    Provenance,
    RecordReference,
    RunDetails,
    SignedFile,
    StatedFinding,
    Statement,
    UncheckedClaim,
    Unlearning,
    derive_svr,
    derive_test_result,
    describe_record,
)
from efface.reporting.record import Record
from efface.reporting.stated_verdict import StatedPooled, StatedRehearsals, StatedSignal, StatedVerdict, StatementPart

Release = Literal["audited", "recorded", "stated"]
NOT_COVERED = (
    "Copies that this tool does not see: backups, caches of decoded pictures, deployed models, exports, embeddings and "
    "indexes computed with an earlier model, and models trained further from it.",
    "Whether the request named every example that it should: pictures of the same person that were not named are "
    "trained on as before.",
    "Single examples: the verdict is an average over the forget set, and one of its examples may still be remembered.",
    "Whether any law is satisfied: the statements are measurements, and their signer answers for them.",
    "Whether the audit was carried out honestly: a signature shows who made a statement, not that it is true.",
)
"""What no audit of this tool covers; stated in every bundle, before the limits of the audit itself."""
RECIPE = ("objective", "backbone", "channels", "size", "epochs", "batch_size", "optim", "views", "mean", "std")
"""What the provenance states of a training recipe: nothing that holds names."""


def describe_unlearning(record: Record, digest: str, *, request_id: str, release: Release) -> Unlearning:
    """State what a sealed record holds.

    Args:
        record: The sealed record of an audited run.
        digest: SHA-256 of its file.
        request_id: The user's own name for the request; may be empty.
        release: How the released file belongs to the record; see :class:`Unlearning`.

    Raises:
        EffaceError: The record holds bare ids, or lacks something that a statement needs.

    """
    items, verdict = record.items, record.verdict
    if items.scheme == "plain":
        raise EffaceError(
            "This record cannot be signed: it holds the bare ids of the forgotten examples.",
            "A signed bundle is made to be passed on, and is bound to the record.",
            "Run `efface audit` again without --plain-ids.",
        )
    method = dict(record.request.method)
    try:
        return Unlearning(
            request_id=request_id,
            goal=record.request.goal,
            forget_set=ForgetSet(
                count=items.count,
                key_digest=items.key_digest,
                values_digest=hashlib.sha256("".join(f"{one}\n" for one in items.values).encode()).hexdigest(),
            ),
            method=MethodUsed(name=method.pop("name"), settings=method, origin=record.checkpoints["subject"].origin),
            original=_digests(record, "original"),
            unlearned=_digests(record, "subject"),
            lineage=record.lineage,
            release=release,
            changes=tuple(
                ChangedPart(
                    part=one.part,
                    numbers=one.numbers,
                    relative=one.relative,
                    largest=one.largest,
                    changed=one.changed,
                    note=one.note,
                )
                for one in record.changes
            ),
            findings=tuple(
                StatedFinding(
                    name=one.name,
                    value=one.value,
                    interval=one.interval,
                    better=one.better,
                    original=one.original,
                    oracle=one.oracle,
                    n=one.n,
                    unit=one.unit,
                )
                for one in record.findings
            ),
            verdict=StatedVerdict(
                word=verdict.word,
                level=verdict.level,
                sentence=verdict.sentence,
                delta=verdict.delta,
                alpha=verdict.alpha,
                signals=tuple(
                    StatedSignal(
                        signal=one.signal,
                        power=one.power,
                        powered=one.powered,
                        value=one.value,
                        low=one.low,
                        high=one.high,
                        word=one.word,
                        blinded=one.blinded,
                    )
                    for one in verdict.signals
                ),
                utility_drop=verdict.utility_drop,
                max_utility_drop=record.criteria.max_utility_drop,
                rehearsals=_rehearsals(verdict),
            ),
            all_requests=_all_requests(record),
            claims=_claims(record, release),
            out_of_scope=(*NOT_COVERED, *verdict.limits),
            record=RecordReference(
                sha256=digest,
                schema_version=record.schema_version,
                created=record.created.isoformat().replace("+00:00", "Z"),
                efface_version=record.efface_version,
                warnings=len(record.warnings),
            ),
        )
    except (ValidationError, KeyError) as error:
        raise EffaceError(
            "This record cannot be signed: a part that the statements need is missing or malformed.",
            _first_problem(error),
            "Run `efface audit` again.",
        ) from error


def compose_statements(
    stated: Unlearning, released: SignedFile, record: Record, recipe: Mapping[str, Any] | None
) -> list[Statement]:
    """Compose the statements of a bundle in their order.

    Args:
        stated: From :func:`describe_unlearning`.
        released: The released weights: the subject of every statement.
        record: The record that it was made from.
        recipe: The training recipe in the run's ``meta.json``; None if its digest could not be checked.

    """
    parts: list[tuple[str, StatementPart]] = [(UNLEARNING, stated), (TEST_RESULT, derive_test_result(stated))]
    if stated.passes:
        parts.append((SVR, derive_svr(stated)))
    parts.append((PROVENANCE, _provenance(stated, record, recipe)))
    return [Statement(subject=(released,), predicate_type=kind, predicate=part.content()) for kind, part in parts]


def _digests(record: Record, role: str) -> ModelDigests:
    facts = record.checkpoints[role]
    return ModelDigests(tensors=facts.digest, file=facts.sha256)


def _rehearsals(verdict: Verdict) -> StatedRehearsals | None:
    held = verdict.rehearsed
    if held is None:
        return None
    named = ("signal", "powered", "value", "low", "high", "word")
    return StatedRehearsals(
        requests=held.requests,
        examples=held.examples,
        kind=held.kind,
        word=held.word,
        signals=tuple(StatedPooled(**{name: getattr(one, name) for name in named}) for one in held.signals),
        like_them=held.like_them,
    )


def _all_requests(record: Record) -> AllRequests | None:
    sequence = record.sequence
    if sequence is None:
        return None
    return AllRequests(count=sequence.count, word=sequence.verdict.word if sequence.verdict else "")


def _claims(record: Record, release: Release) -> tuple[UncheckedClaim, ...]:
    claims = [UncheckedClaim(about=role, claim=one.claim) for role, one in record.checkpoints.items() if one.claim]
    if release == "stated":
        claims.append(UncheckedClaim(about="released file", claim="that it holds the unlearned model"))
    return tuple(claims)


def _provenance(stated: Unlearning, record: Record, recipe: Mapping[str, Any] | None) -> Provenance:
    environment = record.environment
    asked: dict[str, Any] = {"method": stated.method.content(), "count": stated.forget_set.count}
    if recipe is not None:
        asked["recipe"] = {name: recipe[name] for name in RECIPE if name in recipe}
    machine = environment.model_dump(mode="json", include={"platform", "cpu", "threads", "device"})
    used = [
        Descriptor(name="original model", digest={"sha256": stated.original.file}),
        Descriptor(name="training data", digest={"effaceData": record.data.digest}),
    ]
    if environment.packages:
        used.append(Descriptor(name="installed packages", digest={"sha256": environment.packages}))
    return Provenance(
        build_definition=BuildDefinition(
            build_type=BUILD_TYPE,
            external_parameters=asked,
            internal_parameters={"machine": machine, "sizes": dict(record.split.sizes)},
            resolved_dependencies=tuple(one.content() for one in used),
        ),
        run_details=RunDetails(
            builder=BuilderIdentity(
                id=BUILDER,
                version={"efface": record.efface_version, "python": environment.python, "torch": environment.torch},
            ),
            metadata=BuildMetadata(finished_on=stated.record.created),
            byproducts=(describe_record(stated),),
        ),
    )


def describe_release(name: str, sha256: str) -> SignedFile:
    """The released weights as the subject of statements."""
    return SignedFile(name=name, digest=FileDigest(sha256=sha256))


def _first_problem(error: ValidationError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"It has no {error.args[0]}."
    one = error.errors()[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}."
