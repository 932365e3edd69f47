"""The record of an exact deletion, as one versioned JSON file, and the statements that are signed from it.

Like the record of an audit it lists the deleted examples as keyed digests only; the key lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from efface._version import __version__
from efface.errors import EffaceError
from efface.files import read_json, write_text
from efface.reporting.environment import Environment
from efface.reporting.exact import (
    EXACT,
    ExactDeletion,
    ExactVerdict,
    StatedCheck,
    judge_checks,
    reference_of,
    svr_of,
    test_result_of,
)
from efface.reporting.predicates import (
    BUILD_TYPE,
    BUILDER,
    PROVENANCE,
    SVR,
    TEST_RESULT,
    BuildDefinition,
    BuilderIdentity,
    BuildMetadata,
    Descriptor,
    FileDigest,
    ForgetSet,
    MethodUsed,
    ModelDigests,
    Provenance,
    RecordReference,
    RunDetails,
    SignedFile,
    Statement,
)
from efface.reporting.redaction import Items, new_secret
from efface.schema import FirstFormat, HexDigest, RecordModel

_COPIES = (
    "Copies that this tool does not see: backups, caches of decoded pictures, deployed models, exports, embeddings and "
    "indexes computed with an earlier model, and models trained further from it.",
    "Whether the request named every example that it should: pictures of the same person that were not named are "
    "used as before.",
    "Whether any law is satisfied: the statements are measurements, and their signer answers for them.",
    "Whether the deletion was carried out honestly: a signature shows who made a statement, not that it is true.",
)
LIMITS: dict[str, tuple[str, ...]] = {
    "head": (
        "The encoder under the head: it is as it was, and may have been trained on the deleted examples itself.",
        *_COPIES,
    ),
    "shards": (
        "Choices that people made while they had the examples, such as the recipe: they are kept.",
        *_COPIES,
    ),
}
"""What an exact deletion does not cover, by its kind."""
SENTENCES = {
    "removed": "The model is the one that is made without the deleted examples: {}.",
    "residue": "The model is not the one that is made without the deleted examples: {}.",
    "unchecked": "The model was made without the deleted examples by construction; nobody repeated it to check.",
}


class ExactCheck(RecordModel):
    """One repetition of the making, and how the result compares."""

    name: str
    what: str
    measured: str
    passed: bool
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))


class ExactRecord(RecordModel):
    """What was deleted exactly, from what, and what was checked."""

    schema_version: FirstFormat = 1
    efface_version: str = __version__
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    goal: Literal["exact"] = "exact"
    kind: Literal["head", "shards"]
    method: dict[str, Any]
    """``name`` and settings."""
    items: Items
    original: tuple[HexDigest, HexDigest]
    """Digest of the statistics or tensors before, and SHA-256 of their file."""
    unlearned: tuple[HexDigest, HexDigest]
    """The same after."""
    parts: dict[str, int]
    source: HexDigest
    environment: Environment
    checks: tuple[ExactCheck, ...] = ()
    content_digest: str = ""

    def with_check(self, check: ExactCheck) -> ExactRecord:
        """The record with a check; one of the same name is replaced."""
        others = tuple(one for one in self.checks if one.name != check.name)
        return self.model_copy(update={"checks": (*others, check)})

    def save(self, path: Path) -> None:
        """Write the record, with the digest of its content."""
        bound = self.model_copy(update={"content_digest": _content_digest(self.model_dump(mode="json"))})
        write_text(path, json.dumps(bound.model_dump(mode="json"), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> ExactRecord:
        """Read what :meth:`save` wrote; a record that is damaged or was edited raises."""
        again = "Restore it from a backup."
        content = read_json(path, "record of an exact deletion", schema=ExactRecord, remedy=again)
        found = ExactRecord.model_validate(content)
        if found.content_digest != _content_digest(content):
            raise EffaceError(f"{path} was edited or damaged.", "Its content does not match its own digest.", again)
        return found


def seal_items(keys: Sequence[str]) -> tuple[Items, bytes]:
    """Digest keys under a new secret."""
    secret = new_secret()
    return Items.of(keys, secret), secret


def write_secret(path: Path, secret: bytes) -> None:
    """Write the secret of a record, readable by its owner only; another one is never replaced silently."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secret.hex() + "\n")


def describe_exact(record: ExactRecord, digest: str, *, request_id: str = "") -> ExactDeletion:
    """State what a record holds.

    Args:
        record: The record.
        digest: SHA-256 of its file.
        request_id: The user's own name for the request; may be empty.

    """
    word, method = judge_checks([one.passed for one in record.checks]), dict(record.method)
    measured = "; ".join(one.measured for one in record.checks)
    items = record.items
    return ExactDeletion(
        request_id=request_id,
        kind=record.kind,
        forget_set=ForgetSet(
            count=items.count,
            key_digest=items.key_digest,
            values_digest=hashlib.sha256("".join(f"{one}\n" for one in items.values).encode()).hexdigest(),
        ),
        method=MethodUsed(name=method.pop("name"), settings=method),
        original=ModelDigests(tensors=record.original[0], file=record.original[1]),
        unlearned=ModelDigests(tensors=record.unlearned[0], file=record.unlearned[1]),
        parts=record.parts,
        checks=tuple(
            StatedCheck(
                name=one.name, what=one.what, measured=one.measured, passed=one.passed, created=_time(one.created)
            )
            for one in record.checks
        ),
        verdict=ExactVerdict(word=word, sentence=SENTENCES[word].format(measured)),
        out_of_scope=LIMITS[record.kind],
        source=record.source,
        record=RecordReference(
            sha256=digest,
            schema_version=record.schema_version,
            created=_time(record.created),
            efface_version=record.efface_version,
            warnings=0,
        ),
    )


def compose_exact_statements(stated: ExactDeletion, name: str, record: ExactRecord) -> list[Statement]:
    """Compose the statements of a bundle about an exact deletion, in their order.

    Args:
        stated: From :func:`describe_exact`.
        name: Name of the released file, whose digest is ``stated.unlearned.file``.
        record: The record that it was made from.

    """
    released = SignedFile(name=name, digest=FileDigest(sha256=stated.unlearned.file))
    parts: list[tuple[str, Mapping[str, Any]]] = [
        (EXACT, stated.content()),
        (TEST_RESULT, test_result_of(stated).content()),
    ]
    if stated.passes:
        parts.append((SVR, svr_of(stated).content()))
    environment = record.environment
    used = [
        Descriptor(name="original model", digest={"sha256": stated.original.file}),
        Descriptor(name="training data", digest={"effaceData": record.source}),
        Descriptor(name="installed packages", digest={"sha256": environment.packages}),
    ]
    made = Provenance(
        build_definition=BuildDefinition(
            build_type=BUILD_TYPE,
            external_parameters={"method": stated.method.content(), "count": stated.forget_set.count},
            internal_parameters={
                "machine": environment.model_dump(mode="json", include={"platform", "cpu", "threads", "device"}),
                "sizes": stated.parts,
            },
            resolved_dependencies=tuple(one.content() for one in used),
        ),
        run_details=RunDetails(
            builder=BuilderIdentity(
                id=BUILDER,
                version={"efface": record.efface_version, "python": environment.python, "torch": environment.torch},
            ),
            metadata=BuildMetadata(finished_on=stated.record.created),
            byproducts=(reference_of(stated),),
        ),
    )
    parts.append((PROVENANCE, made.content()))
    return [Statement(subject=(released,), predicate_type=kind, predicate=dict(part)) for kind, part in parts]


def _content_digest(content: Mapping[str, Any]) -> str:
    """Digest of everything but the digest itself, as JSON values."""
    others = {name: value for name, value in content.items() if name != "content_digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _time(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")
