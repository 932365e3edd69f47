"""Find what a restored backup brought back: models and files that had been replaced or erased, events that are lost.

A backup is a copy of a time before a request was answered. Whoever restores one restores what was to be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select

from efface.desk.erasure import ids_of_request
from efface.desk.forgotten import ForgottenIds
from efface.desk.journal import JournalLine
from efface.desk.ledger import Ledger, LedgerEvent, LedgerWriter
from efface.desk.remains import still_holds
from efface.desk.run_ids import observed_ids
from efface.desk.states import BatchState
from efface.desk.store import DeskStore
from efface.desk.tables import DESK_ARTEFACTS, DESK_EVENTS, DESK_REQUESTS, WRITING
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
    removed = _removed_runs(desk)
    for batch in desk.batches():
        if batch.folder not in removed:
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
        if folder.is_dir():
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


def _removed_runs(desk: DeskStore) -> set[str]:
    """The run folders that were erased on purpose."""
    with desk.ledger.reading() as connection:
        chosen = select(DESK_ARTEFACTS.c.place).where(DESK_ARTEFACTS.c.outcome == "removed")
        return set(connection.execute(chosen).scalars())


def _described(folder: Path) -> str:
    if not (folder / META).is_file():
        return ""
    return str(read_json(folder / META, "checkpoint's description").get("digest", ""))


def _back_again(desk: DeskStore) -> Iterator[ReplayItem]:
    """What was erased, and is there again: files that were removed, and rows and ids that were taken out."""
    done = (DESK_ARTEFACTS.c.outcome == "removed") | (DESK_ARTEFACTS.c.outcome == "rewritten")
    with desk.ledger.reading() as connection:
        rows = [dict(row) for row in connection.execute(select(DESK_ARTEFACTS).where(done)).mappings()]
        chosen = select(DESK_REQUESTS).where(DESK_REQUESTS.c.id.in_({row["request"] for row in rows}))
        requests = {row["id"]: dict(row) for row in connection.execute(chosen).mappings()}
    known = {name: _ids(desk, row) for name, row in requests.items()}
    for row in rows:
        place, ids = Path(row["place"]), known[row["request"]]
        detail = f"{row['kind']}, {row['outcome']} at {row['time']}"
        try:
            if row["outcome"] == "removed":
                back = place.exists() and not _made_again(row["kind"], place, ids)
            else:
                back = ids is not None and bool(still_holds(row["kind"], place, ids))
        except (EffaceError, OSError):
            back, detail = True, f"{detail}; what is there now cannot be read"
        if back:
            todo = f"Erase it again: `efface erase {row['request']}`, with the same --place."
            yield ReplayItem("erased file is back", row["request"], row["place"], detail, todo)


def find_unknown(desk: DeskStore) -> list[str]:
    """The requests of which nobody can tell whether a backup brought back what was rewritten: their ids are unknown."""
    rewritten = select(DESK_ARTEFACTS.c.request).where(DESK_ARTEFACTS.c.outcome == "rewritten").distinct()
    with desk.ledger.reading() as connection:
        chosen = select(DESK_REQUESTS).where(DESK_REQUESTS.c.id.in_(rewritten)).order_by(DESK_REQUESTS.c.id)
        rows = [dict(row) for row in connection.execute(chosen).mappings()]
    return [str(row["id"]) for row in rows if _ids(desk, row) is None]


def _ids(desk: DeskStore, row: dict[str, Any]) -> ForgottenIds | None:
    """The ids of a request; None if nobody can tell any more which they were."""
    try:
        return ids_of_request(desk, row)
    except EffaceError:
        return None


def _made_again(kind: str, place: Path, ids: ForgottenIds | None) -> bool:
    """Whether observations were made anew after they were removed, without the forgotten: later audits do that."""
    if kind != "observations":
        return False
    return ids is None or not ids.among(observed_ids(place))
