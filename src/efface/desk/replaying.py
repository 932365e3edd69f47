"""Find what a restored backup brought back: models and files that had been replaced or erased, events that are lost.

A backup is a copy of a time before a request was answered. Whoever restores one restores what was to be forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from efface.desk.journal import JournalLine
from efface.desk.ledger import Ledger, LedgerEvent, LedgerWriter
from efface.desk.states import BatchState
from efface.desk.store import DeskStore
from efface.desk.tables import DESK_ARTEFACTS, DESK_EVENTS, WRITING
from efface.desk.views import RequestBatch
from efface.errors import EffaceError
from efface.files import META, WEIGHTS, file_digest, read_json

MADE = (BatchState.UNLEARNED, BatchState.AUDITED, BatchState.RELEASED)


@dataclass(frozen=True)
class ReplayItem:
    """Something that is no longer as the ledger or its journal says."""

    what: Literal["event lost", "model missing", "model replaced", "erased file is back", "folder is back"]
    request: str
    """The request that it is about; empty if it is about none."""
    place: str
    """The file or folder; for a lost event, what it is about."""
    detail: str
    todo: str
    """What has to be done about it."""

    def as_dict(self) -> dict[str, Any]:
        """The item as a JSON object."""
        return asdict(self)

    def line(self) -> str:
        """The item as a line to print."""
        about = f"{self.request}: " if self.request else ""
        return f"{about}{self.what}: {self.place} ({self.detail}). {self.todo}"


def find_replays(desk: DeskStore, *, apply: bool, actor: str) -> list[ReplayItem]:
    """Find what a restored backup brought back; see ``Desk.replay``."""
    lost = lost_events(desk.ledger)
    items = [_lost_item(one) for one in lost]
    if lost and apply:
        restore_events(desk.ledger, lost, actor)
    if lost and not apply:
        return items  # what else is to be done follows from the events that are lost
    for batch in desk.batches():
        items += _changed_run(batch)
    items += _back_again(desk)
    return items


def lost_events(ledger: Ledger) -> list[JournalLine]:
    """The events of the journal that the ledger lacks.

    Raises:
        EffaceError: The two do not go together: the ledger went on after it was restored, or is another one.

    """
    with ledger.reading() as connection:
        chosen = select(DESK_EVENTS.c.seq, DESK_EVENTS.c.digest).order_by(DESK_EVENTS.c.seq)
        there = {int(seq): str(digest) for seq, digest in connection.execute(chosen)}
    lost: list[JournalLine] = []
    for line in ledger.journal.lines():
        if line.seq not in there:
            lost.append(line)
        elif there[line.seq] != line.digest:
            raise EffaceError(
                f"The ledger {ledger.shown} and its journal {ledger.journal.path} differ from event {line.seq} on.",
                "It is another ledger, or one that was written to after it was restored.",
                "Restore the newest backup of the ledger, and run `efface request replay` again.",
            )
    return lost


def restore_events(ledger: Ledger, lost: list[JournalLine], actor: str) -> None:
    """Write events of the journal back into the ledger; each must follow from the one before."""
    with ledger.engine.execution_options(**{WRITING: True}).begin() as connection:
        writer = LedgerWriter(connection, actor)
        for line in lost:
            writer.insert_event(line.body)
            if (writer.seq, writer.digest) != (line.seq, line.digest):
                raise EffaceError(
                    f"Event {line.seq} of {ledger.journal.path} does not follow from the one before.",
                    "The journal was edited or damaged.",
                    "Restore the ledger and its journal from the same backup.",
                )


def _lost_item(line: JournalLine) -> ReplayItem:
    event = LedgerEvent.of(line.seq, line.body, line.digest)
    kind, _, key = event.subject.partition(" ")
    return ReplayItem(
        what="event lost",
        request=key if kind == "request" else "",
        place=event.subject,
        detail=f"{event.action} at {event.time} by {event.actor}",
        todo="Write it back: `efface request replay --apply`.",
    )


def _changed_run(batch: RequestBatch) -> Iterator[ReplayItem]:
    """What is wrong with the run of a batch whose model is, or was, part of the chain."""
    folder = Path(batch.folder)
    if batch.state is BatchState.ABANDONED:
        if folder.exists():
            for request in batch.requests:
                detail, todo = "a run that was given up", f"Remove it: `efface erase {request}`, or by hand."
                yield ReplayItem("folder is back", request, str(folder), detail, todo)
        return
    if batch.state not in MADE:
        return
    for request in batch.requests:
        if not (folder / WEIGHTS).is_file():
            todo = "Restore it from a newer backup, or unlearn again from its start: " + batch.start
            yield ReplayItem("model missing", request, str(folder), f"batch {batch.number} is {batch.state}", todo)
        elif file_digest(folder / WEIGHTS) != batch.weights or _described(folder) != batch.digest:
            detail = f"it is not the model of batch {batch.number}"
            todo = "What is there may remember: replace it by the released file, or unlearn again."
            yield ReplayItem("model replaced", request, str(folder), detail, todo)


def _described(folder: Path) -> str:
    if not (folder / META).is_file():
        return ""
    return str(read_json(folder / META, "checkpoint's description").get("digest", ""))


def _back_again(desk: DeskStore) -> Iterator[ReplayItem]:
    """Files that were erased, and are there again."""
    with desk.ledger.reading() as connection:
        gone = connection.execute(select(DESK_ARTEFACTS).where(DESK_ARTEFACTS.c.outcome == "removed")).mappings().all()
    for row in gone:
        if Path(row["place"]).exists():
            todo = f"Erase it again: by hand."
            detail = f"{row['kind']}, removed at {row['time']}"
            yield ReplayItem("erased file is back", row["request"], row["place"], detail, todo)
    yield from _rewritten_back(desk)


def _rewritten_back(desk: DeskStore) -> Iterator[ReplayItem]:
    """Files that were rewritten without the forgotten, and are what they were before."""
    with desk.ledger.reading() as connection:
        rows = connection.execute(select(DESK_ARTEFACTS).where(DESK_ARTEFACTS.c.outcome == "rewritten")).mappings()
        rewritten = [dict(row) for row in rows]
    for row in rewritten:
        known = json.loads(row["digests"] or "{}")
        path = Path(row["place"])
        if path.is_file() and known.get("before") and file_digest(path) == known["before"]:
            todo = f"Erase it again: by hand."
            detail = f"{row['kind']}, rewritten at {row['time']}, is as it was before"
            yield ReplayItem("erased file is back", row["request"], row["place"], detail, todo)
