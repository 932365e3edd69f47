"""The tables of a ledger, in SQLite or PostgreSQL, and the connection to them.

``desk_events`` is the ledger itself: it only grows, and each event holds the digest of the one before. The other tables
say what follows from the events, for fast questions; every change to them is in an event, so that they can be made
again from the events alone (:mod:`efface.desk.ledger`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efface.errors import EffaceError, optional_imports

with optional_imports("the ledger of requests", "desk"):
    from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, event, insert, inspect, select
    from sqlalchemy.engine import Connection, Engine, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

WRITING = "efface_writing"
"""Execution option of connections that write: they take the lock of the ledger when they begin."""
_WAIT_MS = 60_000
TABLES = MetaData()
DESK_EVENTS = Table(
    "desk_events",
    TABLES,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("subject", Text, nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("digest", Text, nullable=False),
)
DESK_REQUESTS = Table(
    "desk_requests",
    TABLES,
    Column("id", Text, primary_key=True),
    Column("folded", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False, index=True),
    Column("goal", Text, nullable=False),
    Column("model", Text, nullable=False, index=True),
    Column("received", Text, nullable=False),
    Column("deadline", Text, nullable=False, index=True),
    Column("content", Text, nullable=False),
    Column("count", Integer),
    Column("key_digest", Text, nullable=False),
    Column("items", Text, nullable=False, default="[]"),
    Column("plan", Text, nullable=False, default="{}"),
    Column("batch", Integer),
    Column("erased", Text, nullable=False, default=""),
)
DESK_MODELS = Table(
    "desk_models",
    TABLES,
    Column("name", Text, primary_key=True),
    Column("original", Text, nullable=False),
    Column("original_digest", Text, nullable=False),
    Column("head", Text, nullable=False),
    Column("head_digest", Text, nullable=False),
    Column("head_batch", Integer),
)
DESK_BATCHES = Table(
    "desk_batches",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("model", Text, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("requests", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("start", Text, nullable=False),
    Column("start_digest", Text, nullable=False),
    Column("start_batch", Integer),
    Column("digest", Text, nullable=False, default=""),
    Column("weights", Text, nullable=False, default=""),
    Column("settings", Text, nullable=False, default="{}"),
    Column("verdict", Text, nullable=False, default="{}"),
)
DESK_ARTEFACTS = Table(
    "desk_artefacts",
    TABLES,
    Column("id", Text, primary_key=True),
    Column("request", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("place", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("count", Integer, nullable=False, default=0),
    Column("time", Text, nullable=False),
)
FORMAT = Table("desk_format", TABLES, Column("version", Integer, primary_key=True, autoincrement=False))
LEDGER_FORMAT = 1
"""The version of the tables."""
VIEWS = {"request": DESK_REQUESTS, "model": DESK_MODELS, "batch": DESK_BATCHES, "artefact": DESK_ARTEFACTS}
"""The kind of thing that an event changes to its table."""


def open_engine(url: str) -> Engine:
    """Connect to a ledger, and make its tables if there are none.

    Args:
        url: A path of an SQLite file, or the URL of a database as SQLAlchemy writes it:
            ``postgresql://user@host/name``, ``sqlite:////absolute/path``.

    Raises:
        EffaceError: The URL is none, or the database cannot be opened.

    """
    shown = url
    try:
        parsed = make_url(url if "://" in url else f"sqlite:///{Path(url).absolute()}")
        shown = parsed.render_as_string(hide_password=True)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise EffaceError(
                f"A ledger cannot be in {parsed.get_backend_name()}.",
                "It is kept in SQLite or PostgreSQL.",
                "Name a file, or a URL that starts with postgresql://.",
            )
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        with optional_imports(f"the ledger {shown}", "desk"):
            engine = create_engine(parsed, connect_args=_connection_options(parsed.get_backend_name()))
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        _make_tables(engine, shown)
    except (ArgumentError, NoSuchModuleError) as error:
        raise EffaceError(
            f"{shown} names no ledger.", str(error), "Name a file, or a URL that starts with postgresql://."
        ) from error
    except (SQLAlchemyError, OSError) as error:
        raise ledger_error(shown, error) from error
    return engine


def _make_tables(engine: Engine, shown: str) -> None:
    """Make the tables of a new ledger; raise for one of a later version."""
    if not inspect(engine).has_table(FORMAT.name):
        with engine.execution_options(**{WRITING: True}).begin() as connection:
            TABLES.create_all(connection)
            if connection.execute(select(FORMAT.c.version)).scalar() is None:
                connection.execute(insert(FORMAT).values(version=LEDGER_FORMAT))
    with engine.begin() as connection:
        version = connection.execute(select(FORMAT.c.version)).scalar()
    if version != LEDGER_FORMAT:
        raise EffaceError(
            f"The ledger {shown} has format {version}.",
            f"This efface reads format {LEDGER_FORMAT}.",
            "Upgrade efface." if isinstance(version, int) and version > LEDGER_FORMAT else "Restore it from a backup.",
        )


def _connection_options(backend: str) -> dict[str, Any]:
    return {"timeout": _WAIT_MS / 1000} if backend == "sqlite" else {"connect_timeout": 10}


def ledger_error(shown: str, error: BaseException) -> EffaceError:
    """The error for a ledger that cannot be opened, read or written."""
    cause = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    return EffaceError(
        f"The ledger {shown} cannot be used.",
        " ".join(cause.split())[:300],
        "Check the path or URL, that its server runs, and that you may write there.",
    )


def _prepare(connection: Any, record: Any) -> None:
    """Every commit reaches the disk before it returns; transactions begin where we say."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.isolation_level = None
        for pragma in (f"busy_timeout={_WAIT_MS}", "synchronous=EXTRA", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
    else:
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
        connection.commit()


def _begin(connection: Connection) -> None:
    """Begin a transaction; one that writes waits here for the others that write."""
    writes = connection.get_execution_options().get(WRITING)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('efface ledger'))")
