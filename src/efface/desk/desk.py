"""The desk: every action on requests in one class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from efface.desk.inputs import (
    add_days,
    key_digest,
    parse_day,
    parse_goal,
    parse_moment,
    read_forget,
    require_name,
)
from efface.desk.ledger import utc_now
from efface.desk.private import ForgetList, commit
from efface.desk.questions import DeskQuestions
from efface.desk.states import Goal, RequestState
from efface.desk.store import current_actor, require_desk
from efface.desk.tables import DESK_REQUESTS
from efface.desk.views import (
    DeskRequest,
    ErasedArtefact,
    ModelChain,
    ReleaseOutcome,
    RequestPlan,
    RunOutcome,
)
from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.desk.replaying import ReplayItem
    from efface.reporting.signing import CryptoSigner
    from efface.runs.run import Progress

DESK_FOLDER = "efface-desk"
"""The folder of a desk, unless the user names another one."""
DAYS = 30
"""Days from receipt to the deadline, unless the user gives one; most privacy laws say one month."""


def open_desk(folder: Path | str = DESK_FOLDER, ledger: str | None = None, *, create: bool = True) -> Desk:
    """Open a desk.

    Args:
        folder: Private files, runs, bundles and the journal.
        ledger: A path of an SQLite file, or a URL such as ``postgresql://user@host/name``; by default
            ``ledger.sqlite`` in the folder.
        create: Make the folder and the ledger if there are none; otherwise that is an error.

    """
    if not create:
        require_desk(Path(folder), ledger)
    return Desk(folder, ledger)


class Desk(DeskQuestions):
    """A desk for deletion requests; see :mod:`efface.desk`.

    ``actor`` is who does something; by default ``$EFFACE_ACTOR``, else the name of the account. It is kept in the
    ledger, as is ``reason``.
    """

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add_model(self, name: str, run: Path | str, *, actor: str | None = None) -> ModelChain:
        """Name the first model of a chain; the same one twice is one.

        Args:
            name: The user's own name for it.
            run: Its run folder.
            actor: Who does it.

        Raises:
            EffaceError: The folder is no run, or the name stands for another model.

        """
        from efface.desk.chain import start_chain

        require_name("model", name)
        start_chain(self, name, Path(run), current_actor(actor))
        return self.model(name)

    def add(
        self,
        id: str,
        forget: str | Path | Sequence[str],
        *,
        model: str = "main",
        goal: Goal | str = Goal.INDIVIDUAL,
        asked_by: str = "",
        received: str | None = None,
        deadline: str | None = None,
        actor: str | None = None,
    ) -> DeskRequest:
        """Write a request down. The same one twice is one.

        Args:
            id: The user's own name for it: letters, digits, and ``. _ -``.
            forget: A selector (``@class:3``, ``@group:x``, ``@random:20``, ``@keys:a,b``), the path of a list of ids,
                or the ids. The list is copied, so that the file may go.
            model: The chain of models that it is about.
            goal: ``individual``, ``class`` or ``concept``.
            asked_by: Who asked. It is kept in a private file, never in the ledger.
            received: When it came in, as ``2026-11-29`` or with a time; by default now.
            deadline: The last day to answer, as ``2026-12-29``; by default 30 days after it came in.
            actor: Who writes it down.

        Raises:
            EffaceError: There is another request of this name, or a value is wrong.

        """
        require_name("request", id)
        purpose = parse_goal(goal)
        asked = read_forget(forget)
        moment = utc_now() if received is None else parse_moment(received)
        last_day = parse_day(deadline, "deadline") if deadline else add_days(moment, DAYS)
        if last_day < moment[:10]:
            raise EffaceError(
                f"The deadline {last_day} is before the day on which the request came in, {moment[:10]}.",
                remedy="Check --deadline and --received.",
            )
        self.model(model)
        content = ForgetList(asked, asked_by.strip())
        text = json.dumps([purpose, model, asked if isinstance(asked, str) else sorted(asked), content.asked_by])
        with self.ledger.writing(current_actor(actor)) as writer:
            there = writer.row("request", id)
            if there is None:
                self._require_free(writer.connection, id)
                secret = self.private.new_key(id)
                self.private.write_list(id, content)
                self.require_no_ids({"The name of the request": id, "The name of who acts": writer.actor}, [id])
                commitment = commit(secret, text)
                values = {"folded": id.casefold(), "state": RequestState.RECEIVED.value, "goal": purpose.value}
                values |= {"model": model, "received": moment, "deadline": last_day, "content": commitment}
                writer.append("request", id, "received", values | {"key_digest": key_digest(secret)})
            else:
                given = {"received": moment if received else None, "deadline": last_day if deadline else None}
                self._require_same(there, text, {name: value for name, value in given.items() if value})
        return self.request(id)

    def plan(
        self, ids: Sequence[str], settings: Mapping[str, Any] | None = None, *, actor: str | None = None
    ) -> RequestPlan:
        """Find the examples of requests in the data, and say what answering them at once takes.

        Nothing is trained. What is planned together is run together.

        Args:
            ids: The requests; all about the same chain of models.
            settings: What ``efface unlearn`` takes (``method``, ``budget``, ``seed``, ``device`` ...; not ``forget``),
                ``audit`` with what ``efface audit`` takes and the folders ``bank`` and ``rehearsals``, ``oracles`` (run
                folders) and ``references`` (a folder).
            actor: Who plans.

        """
        from efface.desk.planning import plan_requests

        return plan_requests(self, ids, settings or {}, current_actor(actor))

    def run(
        self,
        ids: Sequence[str] | None = None,
        *,
        model: str | None = None,
        actor: str | None = None,
        wait: bool = False,
        progress: Progress | None = None,
    ) -> RunOutcome:
        """Unlearn and audit planned requests, from the newest model of their chain.

        The intent is on the disk before the first weight changes. Killed at any moment, the same call goes on.

        Args:
            ids: The requests; by default all planned ones of the chain that have the settings of the oldest.
            model: The chain; needed only if there are several and ``ids`` is None.
            actor: Who runs it.
            wait: Wait for another run of the chain; by default that is an error.
            progress: Receives steps and messages.

        """
        from efface.desk.running import run_requests

        return run_requests(self, ids, model, current_actor(actor), wait=wait, progress=progress)

    def release(
        self,
        id: str,
        signer: CryptoSigner,
        *,
        weights: Path | None = None,
        reason: str = "",
        actor: str | None = None,
    ) -> ReleaseOutcome:
        """Sign for the model that answers a request, and make it the head of its chain.

        All requests of its batch are released with it, each with a bundle of its own.

        Args:
            id: The request.
            signer: From :func:`efface.reporting.signing.load_signer`.
            weights: The released file; by default the run's own. Necessary where it was handed back in another layout.
            reason: Why a model is released that is not found to have forgotten; needed only then.
            actor: Who releases it.

        """
        from efface.desk.releasing import release_batch

        return release_batch(self, id, signer, weights, reason.strip(), current_actor(actor))

    def discard(self, id: str, reason: str, *, actor: str | None = None) -> DeskRequest:
        """Give up the run that was to answer a request, for a reason; its requests are planned again."""
        from efface.desk.releasing import discard_run

        return discard_run(self, id, reason.strip(), current_actor(actor))

    def refuse(self, id: str, reason: str, *, actor: str | None = None) -> DeskRequest:
        """Refuse a request, for a reason. A run that was to answer it is not used."""
        from efface.desk.releasing import close_request

        return close_request(self, id, RequestState.REFUSED, reason.strip(), current_actor(actor))

    def withdraw(self, id: str, reason: str, *, actor: str | None = None) -> DeskRequest:
        """Note that a request was withdrawn, and why. A run that was to answer it is not used."""
        from efface.desk.releasing import close_request

        return close_request(self, id, RequestState.WITHDRAWN, reason.strip(), current_actor(actor))

    def export(self, id: str, out: Path, *, force: bool = False) -> Path:
        """Write what may be passed on about a request into a ZIP archive: bundle, report, record, events."""
        from efface.desk.releasing import export_request

        return export_request(self, id, Path(out), force=force)

    def replay(self, *, apply: bool = False, actor: str | None = None) -> list[ReplayItem]:
        """Find what a restored backup brought back: what must be erased or written down again.

        Args:
            apply: Write the events that the ledger lacks back into it, from its journal.
            actor: Who does it.

        """
        from efface.desk.replaying import find_replays

        return find_replays(self, apply=apply, actor=current_actor(actor))

    def erase(
        self,
        id: str,
        *,
        places: Sequence[Path] = (),
        destroy_key: bool = False,
        remove_models: bool = False,
        dry_run: bool = False,
        signer: CryptoSigner | None = None,
        actor: str | None = None,
    ) -> list[ErasedArtefact]:
        """Remove or list what still remembers the examples of a released request.

        Args:
            id: The request.
            places: Files and folders beside those of the desk: vectors (``.npz``, ``.npy``, ``.parquet``), FAISS
                indexes (``.faiss``, ``.index``), and folders of them, of checkpoints and of references.
            destroy_key: Destroy the key as well, so that the ledger's entry cannot be linked to ids any more.
            remove_models: Remove superseded models and checkpoints that were trained on them, or of which nobody knows;
                by default they are listed. Audits of later requests then have nothing to compare all requests with.
            dry_run: Only say what would be done.
            signer: Signs the bundle again, with these outcomes.
            actor: Who erases.

        """
        from efface.desk.erasure import erase_request

        return erase_request(
            self,
            id,
            places,
            destroy_key=destroy_key,
            remove_models=remove_models,
            dry_run=dry_run,
            signer=signer,
            actor=current_actor(actor),
        )

    def _require_free(self, connection: Any, id: str) -> None:
        chosen = select(DESK_REQUESTS.c.id).where(DESK_REQUESTS.c.folded == id.casefold())
        there = connection.execute(chosen).scalar()
        if there is not None:
            raise EffaceError(
                f"There is a request {there}, which differs from {id} in upper and lower case only.",
                "Their files would have the same names on some systems.",
                "Choose another name.",
            )

    def _require_same(self, there: Mapping[str, Any], text: str, given: Mapping[str, str]) -> None:
        """Raise unless a request that is there already is the one that was given."""
        request, secret = str(there["id"]), self.private.key(str(there["id"]))
        if secret is None:
            raise EffaceError(
                f"There is a request {request} already, and its key was destroyed.",
                "Whether this is the same one cannot be seen any more.",
                "Choose another name for a new request.",
            )
        other = [f"{name} is {there[name]}" for name, value in given.items() if there[name] != value]
        if commit(secret, text) != there["content"]:
            other.insert(0, "its model, goal, list or who asked differ")
        if other:
            raise EffaceError(
                f"There is another request of the name {request}.",
                f"{'; '.join(other)[0].upper()}{'; '.join(other)[1:]}.",
                "Choose another name, or withdraw that one: `efface request withdraw`.",
            )
