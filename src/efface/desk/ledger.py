"""The ledger of a desk: a chain of events that only grows, and what follows from them.

Each event is a line of JSON (its body) with a digest: SHA-256 of the digest before it, a line feed, and the body. An
event that was changed, removed or put between others therefore breaks the chain. The chain holds ids of requests and
names of those who work at the desk, never ids of examples nor who asked: of the examples it holds keyed digests only.

Every change of another table is in an event (``changes``), so that these tables can be made again from the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from efface.desk.journal import Journal, JournalLine
from efface.desk.tables import DESK_EVENTS, VIEWS, WRITING, ledger_error, open_engine
from efface.errors import EffaceError

BEFORE_FIRST = "0" * 64
"""What stands in the place of the digest before the first event."""
_PAGE = 5000


def utc_now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class LedgerEvent:
    """One event of the chain."""

    seq: int
    subject: str
    """What it is about: ``request DSR-2026-0042``, ``batch 3``, ``model main``."""
    action: str
    """What happened: the new state of a request or batch, or ``added``, ``erased``, ``key destroyed``."""
    time: str
    """UTC, as ``2026-11-29T04:38:16Z``."""
    actor: str
    """Who did it."""
    reason: str
    details: dict[str, Any]
    digest: str

    @staticmethod
    def of(seq: int, body: str, digest: str) -> LedgerEvent:
        """Read an event from its body."""
        found = json.loads(body)
        named = {name: found[name] for name in ("subject", "action", "time", "actor", "reason", "details")}
        return LedgerEvent(seq, **named, digest=digest)

    def as_dict(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class ChainCheck:
    """What became of a check of the chain."""

    events: int
    """How many events there are."""
    head: str
    """Digest of the last one: whoever noted it earlier can tell whether the chain was replaced as a whole."""
    problems: tuple[str, ...] = field(default=())

    @property
    def valid(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {"valid": self.valid, "events": self.events, "head": self.head, "problems": list(self.problems)}


class Ledger:
    """A ledger in a database.

    Args:
        url: A path of an SQLite file, or the URL of a database.
        journal: Where every event is written once more.

    """

    def __init__(self, url: str, journal: Journal) -> None:
        self.engine = open_engine(url)
        self.journal = journal
        snapshot = {"isolation_level": "REPEATABLE READ"} if self.engine.dialect.name == "postgresql" else {}
        self._readers = self.engine.execution_options(**snapshot)
        self.shown = self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection that only reads."""
        try:
            with self._readers.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(self.shown, error) from error

    @contextmanager
    def writing(self, actor: str) -> Iterator[LedgerWriter]:
        """Yield a writer; all that it writes is committed together, and is on the disk when this returns.

        Other writers wait until then.

        Raises:
            EffaceError: The ledger is behind its journal, or cannot be written.

        """
        try:
            with self.engine.execution_options(**{WRITING: True}).begin() as connection:
                writer = LedgerWriter(connection, actor)
                self._require_newest(connection, writer)
                yield writer
        except SQLAlchemyError as error:
            raise ledger_error(self.shown, error) from error
        self.journal.append(writer.written)

    def catch_up(self) -> None:
        """Write into the journal what a killed process committed and did not write there."""
        last = self.journal.last()
        with self.reading() as connection:
            missing = _rows(connection, 0 if last is None else last.seq)
            lines = [JournalLine(*row) for row in missing]
        self.journal.append(lines)

    def _require_newest(self, connection: Connection, writer: LedgerWriter) -> None:
        last = self.journal.last() or JournalLine(0, "", "", BEFORE_FIRST)
        if last.seq <= writer.seq:
            there = connection.execute(select(DESK_EVENTS.c.digest).where(DESK_EVENTS.c.seq == last.seq)).scalar()
            if (there or BEFORE_FIRST) == last.digest:
                writer.written[:0] = [JournalLine(*row) for row in _rows(connection, last.seq)]
                return
        raise EffaceError(
            f"The ledger {self.shown} is not the one that its journal {self.journal.path} goes on from.",
            f"The journal ends with event {last.seq}, the ledger with event {writer.seq}: it was restored from a "
            "backup, or is another ledger.",
            "Run `efface request replay` to see what it lacks.",
        )

    def events(self, subject: str | None = None) -> list[LedgerEvent]:
        """The events, oldest first: all of them, or those about one thing."""
        chosen = select(DESK_EVENTS.c.seq, DESK_EVENTS.c.body, DESK_EVENTS.c.digest).order_by(DESK_EVENTS.c.seq)
        if subject is not None:
            chosen = chosen.where(DESK_EVENTS.c.subject == subject)
        with self.reading() as connection:
            return [LedgerEvent.of(*row) for row in connection.execute(chosen)]

    def verify(self) -> ChainCheck:
        """Check every event, and that the other tables say what follows from them."""
        problems: list[str] = []
        before, count, expected = BEFORE_FIRST, 0, {kind: dict[str, dict[str, Any]]() for kind in VIEWS}
        with self.reading() as connection:
            for seq, subject, body, digest in _rows(connection, 0):
                count += 1
                wrong = _event_problem(count, before, seq, subject, body, digest)
                if wrong:
                    problems.append(wrong)
                    break
                before = digest
                for change in json.loads(body)["changes"]:
                    expected[change["kind"]].setdefault(change["key"], {}).update(change["set"])
            if not problems:
                for kind, rows in expected.items():
                    problems += _table_problems(connection, kind, rows)
        last = self.journal.last()
        if not problems and last is not None and last.seq > count:
            problems.append(f"The journal has {last.seq - count} events more: the ledger was restored from a backup.")
        return ChainCheck(count, before, tuple(problems))

    def require_valid(self) -> ChainCheck:
        """Check the chain like :meth:`verify`; raise if anything is wrong."""
        found = self.verify()
        if not found.valid:
            raise EffaceError(
                f"The ledger {self.shown} is not what was written.",
                found.problems[0],
                "Restore it from a backup; `efface request verify` lists what is wrong.",
            )
        return found


def _rows(connection: Connection, after: int) -> Iterator[Any]:
    """Yield sequence number, subject, body and digest of the events after one, page by page."""
    columns = (DESK_EVENTS.c.seq, DESK_EVENTS.c.subject, DESK_EVENTS.c.body, DESK_EVENTS.c.digest)
    while True:
        page = connection.execute(
            select(*columns).where(DESK_EVENTS.c.seq > after).order_by(DESK_EVENTS.c.seq).limit(_PAGE)
        )
        rows = page.all()
        yield from rows
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def chain_digest(before: str, body: str) -> str:
    """The digest of an event that follows the one with the digest ``before``."""
    return hashlib.sha256(f"{before}\n{body}".encode()).hexdigest()


def _event_problem(place: int, before: str, seq: int, subject: str, body: str, digest: str) -> str:
    """What is wrong with an event; empty if nothing is."""
    if seq != place:
        return f"Event {place} is missing."
    if digest != chain_digest(before, body):
        return f"Event {seq} was changed, or the event before it was."
    try:
        same = json.loads(body)["subject"] == subject
    except (ValueError, KeyError, TypeError):
        same = False
    return "" if same else f"Event {seq} is filed under {subject}, which it is not about."


def _table_problems(connection: Connection, kind: str, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How a table differs from what the events say."""
    table = VIEWS[kind]
    primary = next(iter(table.primary_key)).name
    there = {str(row[primary]): dict(row) for row in connection.execute(select(table)).mappings()}
    unset = {one.name: getattr(one.default, "arg", None) for one in table.columns}
    problems: list[str] = []
    for key, row in expected.items():
        if key not in there:
            problems.append(f"{kind} {key} is missing.")
            continue
        full = unset | {primary: there[key][primary]} | dict(row)
        wrong = [name for name, value in full.items() if there[key][name] != value]
        if wrong:
            problems.append(f"{kind} {key} was changed: {', '.join(wrong)} is not what its events say.")
    return [*problems, *(f"{kind} {key} is there, and no event says why." for key in there if key not in expected)]


class LedgerWriter:
    """Writes events, and what follows from them, within one transaction."""

    def __init__(self, connection: Connection, actor: str) -> None:
        self.connection, self.actor = connection, actor
        last = connection.execute(
            select(DESK_EVENTS.c.seq, DESK_EVENTS.c.digest).order_by(DESK_EVENTS.c.seq.desc()).limit(1)
        ).one_or_none()
        self.seq, self.digest = (0, BEFORE_FIRST) if last is None else (int(last[0]), str(last[1]))
        self.written: list[JournalLine] = []

    def row(self, kind: str, key: Any) -> dict[str, Any] | None:
        """The row of a thing; None if there is none."""
        table = VIEWS[kind]
        found = self.connection.execute(select(table).where(next(iter(table.primary_key)) == key)).mappings()
        row = found.one_or_none()
        return None if row is None else dict(row)

    def highest_batch(self) -> int:
        """The highest number of a batch."""
        return int(self.connection.execute(select(func.max(VIEWS["batch"].c.number))).scalar() or 0)

    def append(
        self,
        kind: str,
        key: Any,
        action: str,
        values: Mapping[str, Any] | None = None,
        *,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        also: Sequence[tuple[str, Any, Mapping[str, Any]]] = (),
    ) -> None:
        """Append an event about one thing, and change its row and those of others.

        Args:
            kind: What it is about: ``request``, ``model``, ``batch`` or ``artefact``.
            key: Which one.
            action: What happened.
            values: Columns of its row that change; a row that is not there is made.
            reason: Why, in somebody's words.
            details: What else is to be known; never an id of an example.
            also: Rows of other things that change with it: kind, key and columns.

        """
        changes = [(kind, key, dict(values))] if values else []
        changes += [(one, other, dict(columns)) for one, other, columns in also]
        content = {
            "subject": f"{kind} {key}",
            "action": action,
            "time": utc_now(),
            "actor": self.actor,
            "reason": reason,
            "details": dict(details or {}),
            "changes": [{"kind": one, "key": str(other), "set": columns} for one, other, columns in changes],
        }
        self.insert_event(json.dumps(content, sort_keys=True, ensure_ascii=False))

    def insert_event(self, body: str) -> None:
        """Insert an event by its body, and apply what it changes."""
        content = json.loads(body)
        line = JournalLine(self.seq + 1, content["subject"], body, chain_digest(self.digest, body))
        self.connection.execute(insert(DESK_EVENTS).values(**vars(line)))
        for change in content["changes"]:
            self._apply(change["kind"], change["key"], change["set"])
        self.seq, self.digest = line.seq, line.digest
        self.written.append(line)

    def _apply(self, kind: str, key: str, values: Mapping[str, Any]) -> None:
        table = VIEWS[kind]
        primary = next(iter(table.primary_key))
        typed = primary.type.python_type(key)
        changed = self.connection.execute(update(table).where(primary == typed).values(**values)) if values else None
        if changed is None or not changed.rowcount:
            self.connection.execute(insert(table).values(**{**values, primary.name: typed}))


def ledger_place(home: Path, url: str | None) -> str:
    """Where the ledger of a desk is: what the user named, or a file in its folder."""
    return url or str(Path(home) / "ledger.sqlite")
