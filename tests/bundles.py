"""Signed bundles of synthetic audits, run folders to sign, and the reason for which a bundle is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope

from efface.reporting.predicates import SignedFile, Statement
from efface.reporting.record import Record
from efface.reporting.refusals import Reason, Refusal
from efface.reporting.signing import CryptoSigner, canonical_json, sign_statements
from efface.reporting.statements import compose_statements, describe_release, describe_unlearning
from efface.reporting.verify import verify_content
from tests import records
from tests.records import SECRET, Case

WEIGHTS = {name: f"weights of {name}".encode() * 50 for name in (*records.CASES, "other")}
TYPE = "application/vnd.in-toto+json"


def sha256(content: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@cache
def signer(name: str = "ours") -> CryptoSigner:
    """A signer; the same name gives the same key."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = CryptoSigner(key)
    made.public_key.keyid = sha256(der)
    return made


@cache
def case(name: str) -> Case:
    """A case whose record is about :data:`WEIGHTS`."""
    made = records.CASES[name]()
    digest = sha256(WEIGHTS[name])
    checkpoints = dict(made.record.checkpoints)
    for role, one in checkpoints.items():
        checkpoints[role] = one.model_copy(update={"sha256": digest if role == "subject" else sha256(role.encode())})
    record = made.record.model_copy(update={"checkpoints": checkpoints, "files": {"checkpoint.safetensors": digest}})
    return Case(record, made.observations, made.log, made.ids)


def released(name: str) -> SignedFile:
    """The subject of a case."""
    return describe_release("checkpoint.safetensors", sha256(WEIGHTS[name]))


@cache
def statements(name: str) -> tuple[Statement, ...]:
    """The statements about a case."""
    record = case(name).record
    stated = describe_unlearning(record, record.digest(), request_id="DSR-2026-0042", release="audited")
    return tuple(compose_statements(stated, released(name), record, {"epochs": 5, "class_names": ["anna"]}))


@cache
def bundle(name: str) -> bytes:
    """The signed bundle about a case."""
    return sign_statements(statements(name), signer())


def lines(name: str) -> list[bytes]:
    """The envelopes of a bundle, each with its line's end."""
    return bundle(name).splitlines(keepends=True)


def payload_of(line: bytes) -> dict[str, Any]:
    """The statement in an envelope."""
    return json.loads(base64.b64decode(json.loads(line)["payload"]))


def sealed(payload: bytes, by: str = "ours", kind: str = TYPE) -> bytes:
    """An envelope around any payload, signed by a key."""
    envelope = Envelope(payload, kind, {})
    envelope.sign(signer(by))
    return canonical_json(envelope.to_dict()) + b"\n"


def resigned(name: str, number: int, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A bundle in which the true key signed a changed statement."""
    found = lines(name)
    content = payload_of(found[number])
    change(content)
    found[number] = sealed(canonical_json(content))
    return b"".join(found)


def reason_of(content: bytes, by: str = "ours") -> Reason | None:
    """Why a bundle is refused; None if it is accepted. Any other exception is a fault of the verifier."""
    try:
        verify_content(content, signer(by).public_key)
    except Refusal as refused:
        reason, detail = refused.reason, refused.detail
    else:
        return None
    assert detail and detail.isprintable()
    return reason


def run_folder(path: Path, name: str, **changed: Any) -> Record:
    """Write the folder of an audited run; ``changed`` replaces fields of its record."""
    path.mkdir(parents=True)
    made = case(name)
    (path / "checkpoint.safetensors").write_bytes(WEIGHTS[name])
    (path / "split.json").write_text(json.dumps({"parts": {"forget": made.ids}}))
    record = made.record.model_copy(update=changed)
    record.save(path, None if record.items.scheme == "plain" else SECRET)
    return record
