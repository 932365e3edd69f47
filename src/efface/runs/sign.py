"""The verb ``sign``: check that a run is still what its audit saw, and sign what the record states about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError
from efface.files import SPLIT, disk_errors, file_digest, read_json
from efface.reporting import redaction
from efface.reporting.bundle import require_record
from efface.reporting.predicates import Unlearning
from efface.reporting.record import RECORD, Record
from efface.reporting.redaction import KEY_FILE, KEYED, Redactor, hmac_digest
from efface.reporting.refusals import REASONS, Refusal
from efface.reporting.signing import sign_statements
from efface.reporting.statements import Release, compose_statements, describe_release, describe_unlearning
from efface.reporting.verify import verify_content

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

_WEIGHTS, _HANDED_BACK, _META = "checkpoint.safetensors", "foreign", "meta.json"
BUNDLE_SUFFIX = ".intoto.jsonl"


@dataclass(frozen=True)
class SignedBundle:
    """A bundle that was written."""

    path: Path
    weights: Path
    stated: Unlearning
    key: str
    """Id of the key that signed it."""

    def as_dict(self) -> dict[str, Any]:
        """The bundle as a JSON object."""
        return {
            "bundle": str(self.path),
            "weights": str(self.weights),
            "verdict": self.stated.verdict.word,
            "outcome": self.stated.outcome,
            "certified": self.stated.passes,
            "claims": [one.content() for one in self.stated.claims],
            "key": self.key,
        }

    def lines(self) -> list[str]:
        """The bundle as lines to print."""
        verdict = self.stated.verdict
        certified = "a pass is certified" if self.stated.passes else "no pass is certified"
        claims = [f"Nobody checked: {one.about}: {one.claim}" for one in self.stated.claims]
        return [
            f"Signed for {self.weights}: {verdict.word} ({verdict.level}), {self.stated.outcome}; {certified}",
            *claims,
            f"Key: {self.key}",
            f"Bundle: {self.path}",
        ]


def sign_run(
    run: Path,
    signer: CryptoSigner,
    *,
    weights: Path | None = None,
    request_id: str = "",
    out: Path | None = None,
    force: bool = False,
) -> SignedBundle:
    """Sign what the record of an audited run states about its released weights.

    Args:
        run: An audited run.
        signer: From :func:`efface.reporting.signing.load_signer`.
        weights: The released file; by default the run's own. Necessary where a file was handed back in the layout of
            another library, since either of the two may be released.
        request_id: The user's own name for the request.
        out: The bundle to write; by default named after the weights, in the run folder.
        force: Replace a bundle that states something else.

    Raises:
        EffaceError: The run was not audited, or was changed since; its verdict does not follow from its numbers; or
            the bundle exists.

    """
    run = Path(run)
    record, digest = _read_record(run)
    recipe = _require_unchanged(run, record)
    released = _released(run, weights)
    try:
        sha256 = file_digest(released)
    except OSError as error:
        raise EffaceError(f"The weights {released} cannot be read.", error.strerror or str(error)) from error
    release = _release(run, record, released, sha256)
    stated = describe_unlearning(record, digest, request_id=request_id.strip(), release=release)
    _require_no_ids(run, record, {"--request-id": request_id, "the goal": stated.goal, "--weights": released.name})
    statements = compose_statements(stated, describe_release(released.name, sha256), record, recipe)
    content = sign_statements(statements, signer)
    try:
        verify_content(content, signer.public_key)
    except Refusal as refused:  # an edited record, for example
        raise EffaceError(
            f"The record of {run} cannot be signed: {REASONS[refused.reason]}.",
            refused.detail,
            f"Run `efface audit {run}` again.",
        ) from refused
    path = Path(out) if out is not None else run / f"{released.name}{BUNDLE_SUFFIX}"
    write_bundle(path, content, force=force)
    return SignedBundle(path, released, stated, signer.public_key.keyid)


def _read_record(run: Path) -> tuple[Record, str]:
    """The record, and the digest of its file."""
    record, path = require_record(run), Path(run) / RECORD
    before = file_digest(path)
    if Record.load(path) != record or file_digest(path) != before:
        raise EffaceError(f"{path} is being written.", "An audit is running.", "Wait until it has ended.")
    return record, before


def _require_unchanged(run: Path, record: Record) -> dict[str, Any] | None:
    """Check the files of the run against the record; returns the recipe, if the digest of its file was checked.

    Digests of files that list ids are keyed; where the key was destroyed, they cannot be checked any more.
    """
    key = run / KEY_FILE
    secret = redaction.read_key(key) if key.exists() else None
    checked: set[str] = set()
    for name, recorded in record.files.items():
        if not (run / name).is_file():
            continue
        found = file_digest(run / name)
        if recorded.startswith(KEYED):
            if secret is None:
                continue
            found = f"{KEYED}{hmac_digest(secret, found)}"
        if found != recorded:
            raise EffaceError(
                f"{run / name} is not the file that was audited.",
                "It was changed after the audit, and a signature would vouch for something that nobody looked at.",
                f"Restore it, or run `efface audit {run}` again.",
            )
        checked.add(name)
    subject = record.checkpoints.get("subject")
    if _WEIGHTS not in checked or subject is None or subject.sha256 != record.files[_WEIGHTS]:
        raise EffaceError(
            f"{run} cannot be signed: its {_WEIGHTS} is missing, or the record has no digest of it.",
            remedy=f"Restore it, and run `efface audit {run}` again.",
        )
    return read_json(run / _META, "description of a checkpoint").get("recipe") if _META in checked else None


def _released(run: Path, weights: Path | None) -> Path:
    """The released file: the given one, or the run's own if there is no other."""
    if weights is not None:
        return Path(weights)
    others = sorted(one for one in (run / _HANDED_BACK).glob("**/*") if one.is_file())
    if others:
        raise EffaceError(
            f"{run} has two forms of the unlearned model, and only one file can be signed for at a time.",
            f"{_WEIGHTS}, and in another library's layout {', '.join(one.name for one in others[:3])}.",
            f"Say which one is released: --weights {others[0]} or --weights {run / _WEIGHTS}.",
        )
    return run / _WEIGHTS


def _release(run: Path, record: Record, released: Path, sha256: str) -> Release:
    """How the released file belongs to the record."""
    if sha256 == record.checkpoints["subject"].sha256:
        return "audited"
    try:
        name = released.resolve().relative_to(run.resolve()).as_posix()
    except ValueError:
        return "stated"
    recorded = record.files.get(name, "")
    if recorded.startswith(KEYED) and (run / KEY_FILE).exists():
        sha256 = f"{KEYED}{hmac_digest(redaction.read_key(run / KEY_FILE), sha256)}"
    return "recorded" if recorded == sha256 else "stated"


def _require_no_ids(run: Path, record: Record, texts: dict[str, str]) -> None:
    """Refuse texts of the user's own that name a forgotten example or are otherwise its id."""
    path, key = run / SPLIT, run / KEY_FILE
    parts = read_json(path, "split").get("parts", {}) if path.exists() else {}
    redact = Redactor(parts.get("forget", ()), redaction.new_secret())
    secret = redaction.read_key(key) if key.exists() else None
    for name, text in texts.items():
        named = redact(text) != text or (secret is not None and record.items.contains(text, secret))
        if text and named:
            raise EffaceError(
                f"{name} names one of the examples to forget.",
                "A signed bundle is made to be passed on, and must not say who or what was forgotten.",
                "Use a name that has nothing to do with them, such as the number of the request.",
            )


def write_bundle(path: Path, content: bytes, *, force: bool) -> None:
    """Write the bundle atomically; one that states something else is replaced only on request."""
    if path.exists() and not force and (not path.is_file() or path.read_bytes() != content):
        raise EffaceError(
            f"{path} exists already, and states something else.",
            "A bundle may have been passed on.",
            "Choose another --out, or add --force.",
        )
    fresh = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
