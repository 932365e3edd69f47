"""The evidence of a batch: the record and the report of its audit, bound by their digests in the ledger.

The record is signed as well. The report is made from it for people; what the ledger says of it shows whether it was
edited since.
"""

from __future__ import annotations

from pathlib import Path

from efface.desk.store import DeskStore
from efface.desk.views import RequestBatch
from efface.errors import EffaceError
from efface.files import file_digest

EVIDENCE = ("record.json", "report.html")


def evidence_digests(run: Path) -> dict[str, str]:
    """SHA-256 of each file of evidence in a run folder."""
    return {name: file_digest(run / name) for name in EVIDENCE if (run / name).is_file()}


def require_evidence(desk: DeskStore, batch: RequestBatch) -> None:
    """Raise if the record or the report of a batch is not the one that its audit wrote.

    A file that is gone shows nothing, and is no error here; batches of an older efface have no digests.

    Raises:
        EffaceError: One of them was edited or replaced.

    """
    audited = [one for one in desk.ledger.events(f"batch {batch.number}") if one.action == "audited"]
    known = audited[-1].details.get("evidence", {}) if audited else {}
    now = evidence_digests(Path(batch.folder))
    for name, digest in known.items():
        if now.get(name, digest) != digest:
            raise EffaceError(
                f"{Path(batch.folder) / name} is not the one that the audit of batch {batch.number} wrote.",
                f"It was edited or replaced: the ledger has sha256 {digest[:16]}, and the file {now[name][:16]}.",
                "Restore it from a backup.",
            )
