"""Sign the record of an exact deletion: of the last one from a head, or of a run that retrained shards. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError
from efface.files import WEIGHTS, file_digest
from efface.reporting.exact import EXACT_RECORD, ExactDeletion
from efface.reporting.exact_record import ExactRecord, compose_exact_statements, describe_exact
from efface.reporting.redaction import read_key
from efface.reporting.refusals import REASONS, Refusal
from efface.reporting.signing import sign_statements
from efface.reporting.verify import verify_content
from efface.runs.head_store import HEAD_FILE, HeadStore
from efface.runs.sign import BUNDLE_SUFFIX, write_bundle

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner


@dataclass(frozen=True)
class SignedDeletion:
    """A bundle about an exact deletion that was written."""

    path: Path
    released: Path
    stated: ExactDeletion
    key: str

    def as_dict(self) -> dict[str, Any]:
        """The bundle as a JSON object."""
        return {
            "bundle": str(self.path),
            "weights": str(self.released),
            "verdict": self.stated.verdict.word,
            "outcome": self.stated.outcome,
            "certified": self.stated.passes,
            "claims": [],
            "key": self.key,
        }

    def lines(self) -> list[str]:
        """The bundle as lines to print."""
        certified = "a pass is certified" if self.stated.passes else "no pass is certified"
        return [
            f"Signed for {self.released}: {self.stated.verdict.word} (exact), {self.stated.outcome}; {certified}",
            f"Key: {self.key}",
            f"Bundle: {self.path}",
        ]


def is_head(folder: Path) -> bool:
    """Whether a folder is that of a head."""
    return (Path(folder) / HEAD_FILE).is_file()


def sign_exact(
    folder: Path, signer: CryptoSigner, *, request_id: str = "", out: Path | None = None, force: bool = False
) -> SignedDeletion:
    """Sign what the record of an exact deletion states.

    Args:
        folder: The folder of a head, or of a run of the method ``shards``.
        signer: From :func:`efface.reporting.signing.load_signer`.
        request_id: The user's own name for the request.
        out: The bundle to write; by default named after the released file, in the folder.
        force: Replace a bundle that states something else.

    Raises:
        EffaceError: There is no record, or the folder was changed since.

    """
    folder = Path(folder)
    released = folder / (HEAD_FILE if is_head(folder) else WEIGHTS)
    path = _record_of(folder)
    record, digest = ExactRecord.load(path), file_digest(path)
    if not released.is_file() or file_digest(released) != record.unlearned[1]:
        raise EffaceError(
            f"{released} is not the file that {path.name} is about.",
            "It was changed after the deletion, and a signature would vouch for something else.",
            "Restore it, or delete again.",
        )
    if is_head(folder):
        _require_arrays(folder)
    _require_no_id(record, path, request_id.strip())
    stated = describe_exact(record, digest, request_id=request_id.strip())
    content = sign_statements(compose_exact_statements(stated, released.name, record), signer)
    try:
        verify_content(content, signer.public_key)
    except Refusal as refused:
        raise EffaceError(
            f"{path} cannot be signed: {REASONS[refused.reason]}.", refused.detail, "Restore it from a backup."
        ) from refused
    target = Path(out) if out is not None else folder / f"{released.name}{BUNDLE_SUFFIX}"
    write_bundle(target, content, force=force)
    return SignedDeletion(target, released, stated, signer.public_key.keyid)


def _record_of(folder: Path) -> Path:
    """The record to sign: the last one of a head, or that of a run."""
    if not is_head(folder):
        if (folder / EXACT_RECORD).is_file():
            return folder / EXACT_RECORD
        raise EffaceError(
            f"{folder} has no {EXACT_RECORD}.",
            "Only runs of the method shards have the record of an exact deletion.",
            "Leave out --exact to sign the record of an audit.",
        )
    deletions = HeadStore(folder).describe().deletions
    if not deletions:
        raise EffaceError(
            f"Nothing was deleted from {folder} yet.", "There is nothing to sign.", "Run `efface heads delete` first."
        )
    return folder / deletions[-1].record


def _require_arrays(folder: Path) -> None:
    """Read every array of a head; one that is missing or was changed raises."""
    store = HeadStore(folder)
    described = store.describe()
    for files in described.arrays.values():
        for one in files:
            store.read_file(one)


def _require_no_id(record: ExactRecord, path: Path, request_id: str) -> None:
    """Refuse a name of the request that is one of the deleted keys."""
    key = path.with_suffix(".key")
    if request_id and key.exists() and record.items.contains(request_id, read_key(key)):
        raise EffaceError(
            "--request-id is the key of one of the deleted examples.",
            "A signed bundle is made to be passed on, and must not say who or what was deleted.",
            "Use a name that has nothing to do with them, such as the number of the request.",
        )
