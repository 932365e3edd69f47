"""Run planned requests: write the intent down, unlearn, audit. Killed at any moment, the same call goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from efface.desk.chain import ChainStart, newest_model, require_start, weights_digest
from efface.desk.evidence import evidence_digests
from efface.desk.planning import AUDIT_FOLDERS, BESIDE, split_settings, write_ids
from efface.desk.private import LISTS, sync
from efface.desk.states import BatchState, RequestState, require_step
from efface.desk.store import DeskStore, move_request
from efface.desk.tables import DESK_REQUESTS
from efface.desk.views import RequestBatch, RunOutcome
from efface.errors import DivergenceError, EffaceError
from efface.files import make_folder
from efface.reporting.redaction import Items
from efface.runs.run import Progress

SELECTED = "by_selector"
"""Setting of a batch: whether it is run with the selector of its request, which is never in the ledger: the name of a
group is often that of a person."""


def run_requests(
    desk: DeskStore,
    ids: Sequence[str] | None,
    model: str | None,
    actor: str,
    *,
    wait: bool = False,
    progress: Progress | None = None,
) -> RunOutcome:
    """Answer planned requests by one run; see :meth:`efface.desk.Desk.run`."""
    progress = progress or Progress()
    name = _chain_name(desk, ids, model)
    with desk.hold_model(name, wait=wait):
        desk.ledger.require_valid()
        desk.ledger.catch_up()
        cut = _unfinished(desk, name, ids)
        batch = cut or _intend(desk, name, ids, actor)
        if cut is not None:
            progress.say(f"Going on with batch {batch.number}: {', '.join(batch.requests)}")
        if batch.state is BatchState.INTENDED:
            batch = _unlearn(desk, batch, actor, progress)
        return RunOutcome(_audit(desk, batch, actor, progress), resumed=cut is not None)


def ids_path(desk: DeskStore, number: int) -> Path:
    """The private list of everything that a batch is to forget."""
    return desk.home / LISTS / f"batch-{number:04d}.json"


def _chain_name(desk: DeskStore, ids: Sequence[str] | None, model: str | None) -> str:
    """The chain whose requests are to be run."""
    named = sorted({str(row["model"]) for row in desk.rows(ids)}) if ids else []
    if model is not None:
        named = sorted({*named, desk.model(model).name})
    elif not named:
        named = [one.name for one in desk.models()]
    if len(named) != 1:
        raise EffaceError(
            f"There are several models: {', '.join(named)}." if named else "This desk knows no model yet.",
            "One run changes one model.",
            "Name it: --model NAME." if named else "Name the first one: `efface request model RUN`.",
        )
    return named[0]


def _unfinished(desk: DeskStore, name: str, ids: Sequence[str] | None) -> RequestBatch | None:
    """The batch of a chain that was begun and not audited; None if there is none."""
    begun = [one for one in desk.batches(name) if one.state in (BatchState.INTENDED, BatchState.UNLEARNED)]
    if not begun:
        return None
    others = sorted(set(ids or ()) - set(begun[0].requests))
    if others:
        raise EffaceError(
            f"Batch {begun[0].number} of '{name}' is not finished: {', '.join(begun[0].requests)}.",
            f"A run starts from the newest model, and that one is not there yet. Not in it: {', '.join(others)}.",
            "Finish it first: `efface request run` without ids.",
        )
    return begun[0]


def _intend(desk: DeskStore, name: str, ids: Sequence[str] | None, actor: str) -> RequestBatch:
    """Write down what is about to happen; it is on the disk before this returns."""
    rows = desk.rows(ids) if ids else _planned_together(desk, name)
    start = newest_model(desk.model(name))
    require_start(start)
    for row in rows:
        require_step(row["id"], RequestState(row["state"]), RequestState.UNLEARNED)
    plans = [json.loads(row["plan"]) for row in rows]
    if any(one["settings"] != plans[0]["settings"] for one in plans):
        raise EffaceError(
            "The requests were planned with different settings.",
            "One run has one method.",
            "Plan them together: `efface request plan` with all their ids.",
        )
    keys = _keys_left(desk, rows, start)
    own = _has_own_selector(desk, rows, start, keys)
    with desk.ledger.writing(actor) as writer:
        number = writer.highest_batch() + 1
        if not own:
            write_ids(ids_path(desk, number), keys)
            sync(ids_path(desk, number))
        settings = plans[0]["settings"] | {SELECTED: own}
        values = {"model": name, "state": BatchState.INTENDED.value, "folder": str(desk.run_folder(number))}
        values |= {"requests": json.dumps([row["id"] for row in rows]), "settings": json.dumps(settings)}
        values |= {"start": str(start.folder), "start_digest": start.digest, "start_batch": start.batch}
        writer.append(
            "batch", number, "intended", values, details={"count": len(keys), "method": plans[0]["method"]},
            also=[("request", row["id"], {"batch": number}) for row in rows],
        )  # fmt: skip
    return desk.batch(number)


def _planned_together(desk: DeskStore, name: str) -> list[dict[str, Any]]:
    """The planned requests of a chain that have the settings of the oldest one."""
    table = DESK_REQUESTS.c
    chosen = select(DESK_REQUESTS).where(table.model == name, table.state == RequestState.PLANNED.value)
    with desk.ledger.reading() as connection:
        rows = [dict(row) for row in connection.execute(chosen.order_by(table.received, table.id)).mappings()]
    if not rows:
        raise EffaceError(
            f"No request about '{name}' is planned.",
            "A run answers planned requests.",
            "Plan some first: `efface request plan`.",
        )
    first = json.loads(rows[0]["plan"])["settings"]
    return [row for row in rows if json.loads(row["plan"])["settings"] == first]


def _keys_left(desk: DeskStore, rows: Sequence[Mapping[str, Any]], start: ChainStart) -> list[str]:
    """The ids of the requests that no earlier one of the chain has asked for."""
    from efface.data.split import EARLIER, read_split

    parts = read_split(start.folder)["parts"]
    gone = {*parts["forget"], *parts.get(EARLIER, ())}
    keys: dict[str, None] = {}
    for row in rows:
        kept = desk.private.require_list(row["id"])
        secret = desk.private.key(row["id"])
        if secret is None or list(Items.of(kept.keys, secret).values) != json.loads(row["items"]):
            raise EffaceError(
                f"The forget list of {row['id']} is not the one that was planned: {desk.private.list_path(row['id'])}.",
                "It was edited, or its key was: it does not fit the commitment in the ledger.",
                "Restore both files, or plan the request again.",
            )
        keys |= dict.fromkeys(kept.keys)
    left = [key for key in keys if key not in gone]
    if not left:
        raise EffaceError(
            "Every example of these requests was forgotten by an earlier one.",
            "There is nothing left to unlearn.",
            "Withdraw or refuse them, with this as the reason.",
        )
    return left


def _has_own_selector(
    desk: DeskStore, rows: Sequence[Mapping[str, Any]], start: ChainStart, keys: Sequence[str]
) -> bool:
    """Whether a batch is of one request whose selector still stands for what was planned; else its ids are listed.

    A class, a group or a random draw is audited against never-trained examples of its own kind, a list of ids as well;
    but only a draw that is known to be random is compared with all of them.
    """
    if len(rows) != 1 or json.loads(rows[0]["plan"])["start_digest"] != start.digest:
        return False
    kept = desk.private.require_list(rows[0]["id"])
    return isinstance(kept.forget, str) and set(keys) == set(kept.keys)


def _unlearn(desk: DeskStore, batch: RequestBatch, actor: str, progress: Progress) -> RequestBatch:
    """Unlearn into the folder of the batch, and write down that it was done."""
    from efface.data.split import read_split
    from efface.runs.train import unlearn_run
    from efface.training.checkpoint import read_meta

    folder = Path(batch.folder)
    start = ChainStart(Path(batch.start), _start_digest(desk, batch), batch.start_batch)
    if not folder.exists():
        require_start(start)
        make_folder(folder.parent)
        settings = {name: value for name, value in batch.settings.items() if name not in (*BESIDE, SELECTED)}
        settings["forget"] = str(ids_path(desk, batch.number))
        if batch.settings[SELECTED]:
            settings["forget"] = desk.private.require_list(batch.requests[0]).forget
        try:
            unlearn_run(start.folder, folder, settings, progress=progress)
        except DivergenceError as error:
            discard_batch(desk, batch, actor, f"diverged: {error.what}"[:300])
            raise
    meta = read_meta(folder)
    wanted: set[str] = set()
    for request in batch.requests:
        wanted |= set(desk.private.require_list(request).keys)
    parts = read_split(folder)["parts"]
    made = {*parts["forget"], *parts.get("earlier", ())}
    if meta["parent"] != start.digest or not wanted <= made:
        raise EffaceError(
            f"{folder} is not the run of batch {batch.number}.",
            "It was made from another model, or was asked to forget other examples.",
            "Move it away, and run the same command again.",
        )
    with desk.ledger.writing(actor) as writer:
        made_now = {"state": BatchState.UNLEARNED.value, "digest": meta["digest"], "weights": weights_digest(folder)}
        writer.append("batch", batch.number, "unlearned", made_now)
        for request in batch.requests:
            row = writer.row("request", request)
            if row is not None:
                move_request(writer, row, RequestState.UNLEARNED, details={"batch": batch.number})
    return desk.batch(batch.number)


def _start_digest(desk: DeskStore, batch: RequestBatch) -> str:
    return desk.batch(batch.start_batch).digest if batch.start_batch else desk.model(batch.model).original_digest


def _describe_case(desk: DeskStore, batch: RequestBatch) -> dict[str, str]:
    """The requests of a batch as its report names them, with the first dates."""
    requests = [desk.request(one) for one in batch.requests]
    ids = ", ".join(one.id for one in requests)
    received, due = min(one.received for one in requests), min(one.deadline for one in requests)
    return {"id": ids, "received": received[:10], "due": due}


def _audit(desk: DeskStore, batch: RequestBatch, actor: str, progress: Progress) -> RequestBatch:
    """Judge the run of a batch, and write the verdict down."""
    from efface.runs.audit import audit_run

    _, settings = split_settings({name: value for name, value in batch.settings.items() if name != SELECTED})
    goals = sorted({desk.request(one).goal.value for one in batch.requests})
    asked = {"goal": ", ".join(goals), "case": _describe_case(desk, batch), **(settings.get("audit") or {})}
    for name in ("data", "allow_absent", "allow_changed", "device"):
        if settings.get(name) is not None:
            asked.setdefault(name, settings[name])
    references = settings.get("references")
    bank, rehearsals = (Path(path) if (path := asked.pop(name, None)) else None for name in AUDIT_FOLDERS)
    judged = audit_run(
        Path(batch.folder), asked, oracles=[Path(one) for one in settings["oracles"]],
        references=Path(references) if references else None, bank=bank, rehearsals=rehearsals, progress=progress,
    )  # fmt: skip
    verdict: dict[str, Any] = {name: getattr(judged.verdict, name) for name in ("word", "level", "sentence")}
    verdict["exit_code"] = judged.exit_code
    if judged.sequence is not None:
        overall = judged.sequence.verdict
        word, sentence = (overall.word, overall.sentence) if overall else ("inconclusive", judged.sequence.note)
        verdict["all_requests"] = {"word": word, "sentence": sentence, "count": judged.sequence.count}
    evidence = {"evidence": evidence_digests(Path(batch.folder))}
    with desk.ledger.writing(actor) as writer:
        audited = {"state": BatchState.AUDITED.value, "verdict": json.dumps(verdict)}
        writer.append("batch", batch.number, "audited", audited, details=evidence)
        for request in batch.requests:
            row = writer.row("request", request)
            if row is not None:
                details = {"verdict": verdict["word"], **evidence}
                move_request(writer, row, RequestState.AUDITED, details=details)
    return desk.batch(batch.number)


def discard_batch(
    desk: DeskStore, batch: RequestBatch, actor: str, reason: str, closed: Mapping[str, RequestState] | None = None
) -> None:
    """Give a batch up: its model is not used, and its requests are planned again.

    Args:
        desk: The desk.
        batch: A batch that is not decided.
        actor: Who does it.
        reason: Why.
        closed: Requests that are refused or withdrawn with it.

    Raises:
        EffaceError: It was decided, or another batch was made from its model.

    """
    later = [one for one in desk.batches(batch.model) if one.start_batch == batch.number]
    later = [one for one in later if one.state is not BatchState.ABANDONED]
    if batch.state in (BatchState.RELEASED, BatchState.ABANDONED):
        raise EffaceError(f"Batch {batch.number} is {batch.state}, and cannot be given up.")
    if later:
        raise EffaceError(
            f"Batch {later[0].number} was made from the model of batch {batch.number}.",
            "Its model would be without an origin.",
            f"Give that one up first: `efface request discard {later[0].requests[0]}`.",
        )
    with desk.ledger.writing(actor) as writer:
        abandoned = {"state": BatchState.ABANDONED.value}
        writer.append("batch", batch.number, "abandoned", abandoned, reason=reason)
        for request in batch.requests:
            row = writer.row("request", request)
            if row is not None:
                after = (closed or {}).get(request, RequestState.PLANNED)
                move_request(writer, row, after, {"batch": None}, reason=reason, details={"batch": batch.number})
