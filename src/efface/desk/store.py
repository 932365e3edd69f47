"""The parts of a desk, and the questions to its ledger that several of its actions ask."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.engine import Connection

from efface.desk.journal import Journal
from efface.desk.ledger import Ledger, LedgerWriter, ledger_place
from efface.desk.private import PrivateFiles
from efface.desk.states import BatchState, RequestState, require_step
from efface.desk.tables import DESK_ARTEFACTS, DESK_BATCHES, DESK_MODELS, DESK_REQUESTS
from efface.desk.views import DeskRequest, ErasedArtefact, ModelChain, RequestBatch
from efface.errors import EffaceError, unknown_name_error
from efface.files import hold_lock, make_folder
from efface.reporting.redaction import Redactor, new_secret

ACTOR = "EFFACE_ACTOR"  # the name of a variable
OPEN_BATCHES = (BatchState.INTENDED, BatchState.UNLEARNED, BatchState.AUDITED)
_HOME_REMEDY = "Name another folder for the desk: --desk DIR."


def current_actor(given: str | None = None) -> str:
    """Who acts: the name that was given, else ``$EFFACE_ACTOR``, else the name of the account."""
    named = (given or os.environ.get(ACTOR, "")).strip()
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return "unknown"


def require_desk(home: Path, ledger: str | None) -> None:
    """Raise if there is no desk at a folder."""
    place = Path(ledger_place(home, ledger))
    if home.is_dir() and ("://" in str(ledger or "") or place.exists()):
        return
    what = f"There is no ledger at {place}." if home.is_dir() else f"There is no desk at {home}."
    raise EffaceError(
        what,
        "A desk begins with the model that requests are about.",
        "Name the folder of yours: --desk DIR, or begin one: `efface request model RUN`.",
    )


class DeskStore:
    """The folder and the ledger of a desk.

    Args:
        home: The folder: private files, runs, bundles and the journal.
        ledger: Where the ledger is; by default a file in the folder.

    """

    def __init__(self, home: Path | str, ledger: str | None = None) -> None:
        self.home = Path(home).absolute()
        make_folder(self.home, _HOME_REMEDY)
        self.private = PrivateFiles(self.home)
        self.ledger = Ledger(ledger_place(self.home, ledger), Journal(self.home))

    def close(self) -> None:
        """Close the connections to the ledger."""
        self.ledger.close()

    def bundle_path(self, request: str) -> Path:
        """Where the signed bundle of a request is."""
        return self.home / "bundles" / f"{request}.intoto.jsonl"

    def amended_path(self, request: str) -> Path:
        """Where the bundle is that was signed again after erasing."""
        return self.home / "bundles" / f"{request}.erased.intoto.jsonl"

    def run_folder(self, number: int) -> Path:
        """Where the run of a batch is."""
        return self.home / "runs" / f"{number:04d}"

    # ---- questions ----

    def row(self, connection: Connection, request: str) -> dict[str, Any]:
        """The row of a request; one that is not there raises."""
        found = connection.execute(select(DESK_REQUESTS).where(DESK_REQUESTS.c.id == request)).mappings().one_or_none()
        if found is None:
            near = connection.execute(select(DESK_REQUESTS.c.id).limit(10_000)).scalars().all()
            error = unknown_name_error("request", request, near)
            raise EffaceError(
                error.what, f"There are {len(near)} requests in {self.ledger.shown}.", "Add it: `efface request add`."
            )
        return dict(found)

    def rows(self, requests: Sequence[str]) -> list[dict[str, Any]]:
        """The rows of several requests, each once."""
        with self.ledger.reading() as connection:
            return [self.row(connection, one) for one in dict.fromkeys(requests)]

    def request(self, request: str) -> DeskRequest:
        """One request."""
        return DeskRequest.of(self.rows([request])[0])

    def batch(self, number: int) -> RequestBatch:
        """One batch."""
        with self.ledger.reading() as connection:
            found = connection.execute(select(DESK_BATCHES).where(DESK_BATCHES.c.number == number)).mappings()
            return RequestBatch.of(found.one())

    def batches(self, model: str | None = None) -> list[RequestBatch]:
        """All batches, or those of one chain, oldest first."""
        chosen = select(DESK_BATCHES).order_by(DESK_BATCHES.c.number)
        if model is not None:
            chosen = chosen.where(DESK_BATCHES.c.model == model)
        with self.ledger.reading() as connection:
            return [RequestBatch.of(row) for row in connection.execute(chosen).mappings()]

    def models(self) -> list[ModelChain]:
        """All chains of models."""
        with self.ledger.reading() as connection:
            rows = [dict(row) for row in connection.execute(select(DESK_MODELS)).mappings()]
        return [self._chain(row) for row in sorted(rows, key=lambda row: row["name"])]

    def model(self, name: str) -> ModelChain:
        """One chain of models; an unknown name raises."""
        chains = {one.name: one for one in self.models()}
        if name not in chains:
            if chains:
                raise unknown_name_error("model", name, chains)
            raise EffaceError(
                "This desk knows no model yet.",
                f"Requests are about a model, and none was named in {self.ledger.shown}.",
                "Name the first one: `efface request model RUN`.",
            )
        return chains[name]

    def artefacts(self, request: str) -> list[ErasedArtefact]:
        """What was found to remember a request, and what became of it."""
        chosen = select(DESK_ARTEFACTS).where(DESK_ARTEFACTS.c.request == request).order_by(DESK_ARTEFACTS.c.id)
        names = ("kind", "place", "outcome", "detail")
        with self.ledger.reading() as connection:
            rows = connection.execute(chosen).mappings().all()
        return [ErasedArtefact(**{name: row[name] for name in names}, count=int(row["count"])) for row in rows]

    def _chain(self, row: dict[str, Any]) -> ModelChain:
        batches = self.batches(row["name"])
        return ModelChain(
            **row,
            released=tuple(one for one in batches if one.state is BatchState.RELEASED),
            open=tuple(one for one in batches if one.state in OPEN_BATCHES),
        )

    # ---- guards ----

    def require_no_ids(self, texts: dict[str, str], requests: Sequence[str]) -> None:
        """Refuse texts for the ledger that name one of the examples of a request, or who asked."""
        for request in requests:
            kept = self.private.forget_list(request)
            if kept is None:
                continue
            redact = Redactor(kept.ids(), new_secret())
            for name, text in texts.items():
                if text and (redact(text) != text or (kept.asked_by and kept.asked_by.casefold() in text.casefold())):
                    raise EffaceError(
                        f"{name} names one of the examples of {request}, or who asked.",
                        "The ledger only grows: what is in it cannot be erased.",
                        "Say it without names.",
                    )

    @contextmanager
    def hold_model(self, name: str, *, wait: bool = False) -> Iterator[None]:
        """Hold a chain of models, so that nobody else runs or decides one of its batches.

        Args:
            name: The chain.
            wait: Wait for who holds it; by default that is an error.

        """
        busy = EffaceError(
            f"Somebody else is working on the model '{name}'.",
            "Another `efface request run`, `release`, `refuse` or `withdraw` is going on for it.",
            "Wait until it has ended, and run the same command again.",
        )
        url = self.ledger.engine.url
        if url.get_backend_name() == "sqlite":
            beside = Path(str(url.database)).absolute()
            with hold_lock(beside.with_name(f"{beside.name}.{name}"), None if wait else busy):
                yield
            return
        key = f"chain of models {name}"
        held = self.ledger.engine.execution_options(isolation_level="AUTOCOMMIT")
        with held.connect() as connection:
            if wait:
                connection.exec_driver_sql("SELECT pg_advisory_lock(hashtext(%s))", (key,))
            elif not connection.exec_driver_sql("SELECT pg_try_advisory_lock(hashtext(%s))", (key,)).scalar():
                raise busy
            try:
                yield
            finally:
                connection.exec_driver_sql("SELECT pg_advisory_unlock(hashtext(%s))", (key,))


def move_request(
    writer: LedgerWriter,
    row: dict[str, Any],
    after: RequestState,
    values: dict[str, Any] | None = None,
    *,
    reason: str = "",
    details: dict[str, Any] | None = None,
) -> None:
    """Bring a request into another state; an illegal step raises."""
    require_step(row["id"], RequestState(row["state"]), after)
    writer.append(
        "request", row["id"], after.value, {"state": after.value, **(values or {})}, reason=reason, details=details
    )
