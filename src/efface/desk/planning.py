"""Plan requests: find their examples in the data, and say what answering them takes. Nothing is trained."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.desk.chain import newest_model, require_start
from efface.desk.inputs import key_digest
from efface.desk.private import LISTS, ForgetList
from efface.desk.states import BatchState, RequestState, require_step
from efface.desk.store import DeskStore, move_request
from efface.desk.views import RequestPlan
from efface.errors import EffaceError
from efface.files import META, SPLIT, WEIGHTS, make_folder, write_text
from efface.reporting.redaction import Items

if TYPE_CHECKING:
    from efface.data.split import Split
    from efface.runs.requests import UnlearnRequest
    from efface.runs.run import OpenedRun
    from efface.training.checkpoint import Checkpoint
    from efface.unlearning.protocol import RequestSizes

BESIDE = ("audit", "oracles", "references")
"""Settings of a plan that are not for unlearning."""
AUDIT_FOLDERS = ("bank", "rehearsals")
"""Folders among the settings of its audit."""


def plan_requests(desk: DeskStore, ids: Sequence[str], settings: Mapping[str, Any], actor: str) -> RequestPlan:
    """Plan requests that are to be answered by one run; see :meth:`efface.desk.Desk.plan`."""
    if not ids:
        raise EffaceError("Nothing was said about which requests to plan.", remedy="Name them by their ids.")
    rows = desk.rows(ids)
    models = sorted({row["model"] for row in rows})
    if len(models) > 1:
        raise EffaceError(
            f"The requests are about different models: {', '.join(models)}.",
            "One run changes one model.",
            "Plan the requests about each model by themselves.",
        )
    for row in rows:
        require_step(row["id"], RequestState(row["state"]), RequestState.PLANNED)
        _require_no_run(desk, row)
    unlearn, asked = split_settings(settings)
    with desk.hold_model(models[0], wait=True):
        start = newest_model(desk.model(models[0]))
        require_start(start)
        plan, lists = _resolve(desk, rows, start.folder, unlearn, asked)
        with desk.ledger.writing(actor) as writer:
            for row in rows:
                kept = lists[row["id"]]
                desk.private.write_list(row["id"], kept)
                secret = desk.private.key(row["id"])
                if secret is None or key_digest(secret) != row["key_digest"]:
                    raise _key_error(row["id"], str(desk.private.key_path(row["id"])), gone=secret is None)
                items = list(Items.of(kept.keys, secret).values)
                values: dict[str, Any] = {"count": len(kept.keys), "items": json.dumps(items), "batch": None}
                values["plan"] = json.dumps(plan.stored() | {"start_digest": start.digest})
                move_request(writer, writer.row("request", row["id"]) or row, RequestState.PLANNED, values)
    return plan


def split_settings(settings: Mapping[str, Any]) -> tuple[UnlearnRequest, dict[str, Any]]:
    """Check the settings of a plan; returns the request to unlearn, and all settings as they are stored."""
    from efface.runs.requests import AuditRequest, UnlearnRequest

    if "forget" in settings:
        raise EffaceError("A plan has no setting 'forget'.", "What is forgotten is in the requests.", "Leave it out.")
    if not settings.get("method"):
        raise EffaceError(
            "Nothing was said about the method.",
            "`efface methods` lists them; retrain forgets exactly, the others take less time.",
            "Add --method NAME.",
        )
    stored: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    rest = {name: value for name, value in stored.items() if name not in BESIDE}
    unlearn = UnlearnRequest.from_settings({**rest, "forget": "@keys:the requests"})
    audit = stored.get("audit") or {}
    AuditRequest.of({name: value for name, value in audit.items() if name not in AUDIT_FOLDERS})
    oracles = stored.get("oracles") or []
    compared = [audit.get(name) for name in AUDIT_FOLDERS]
    for path in [*([oracles] if isinstance(oracles, str) else oracles), stored.get("references"), *compared]:
        if path is not None and not Path(str(path)).exists():
            raise EffaceError(f"There is no reference at {path}.", remedy="Check the path.")
    for name in AUDIT_FOLDERS:
        if audit.get(name):
            audit[name] = str(Path(str(audit[name])).absolute())
    stored["oracles"] = [str(Path(str(one)).absolute()) for one in ([oracles] if isinstance(oracles, str) else oracles)]
    if stored.get("references"):
        stored["references"] = str(Path(str(stored["references"])).absolute())
    return unlearn, stored


def _require_no_run(desk: DeskStore, row: Mapping[str, Any]) -> None:
    """Raise if a batch that is not given up is to answer the request."""
    if row["batch"] is None:
        return
    batch = desk.batch(int(row["batch"]))
    if batch.state is BatchState.INTENDED:
        raise EffaceError(
            f"{row['id']} is being answered by batch {batch.number}.",
            "Its run was begun, and may have been cut.",
            "Go on with it: `efface request run`.",
        )
    if batch.state is not BatchState.ABANDONED:
        raise EffaceError(
            f"{row['id']} was answered by batch {batch.number}, which is {batch.state}.",
            "Planning it again would leave the others of that batch, and batches made from it, without an answer.",
            "Release it, or give that run up first: `efface request discard`.",
        )


def _resolve(
    desk: DeskStore, rows: Sequence[Mapping[str, Any]], start: Path, unlearn: UnlearnRequest, asked: dict[str, Any]
) -> tuple[RequestPlan, dict[str, ForgetList]]:
    """Find the examples of each request, and put the plan together."""
    from efface.data.selection import describe_selection
    from efface.data.split import EARLIER, select_forget_set
    from efface.runs.run import open_run

    run = open_run(start, unlearn, judged=False)
    checkpoint = run.checkpoint()
    seed = checkpoint.seed if unlearn.forget_seed is None else unlearn.forget_seed
    lists: dict[str, ForgetList] = {}
    notes: list[str] = list(run.at_hand.notes)
    found: set[str] = set()
    for row in rows:
        kept = desk.private.require_list(row["id"])
        with selector_of(desk, kept) as selector:
            split = select_forget_set(
                run.split, run.data, selector, seed,
                allow_duplicates=unlearn.allow_duplicates, skip_never_trained=unlearn.skip_never_trained,
            )  # fmt: skip
        notes += run.at_hand.require_trained_pictures(split.forget, unlearn.allow_changed)
        own = [*describe_selection(split.provenance["resolved"]), *map(str, split.provenance.get("warnings", ()))]
        keys = tuple(split.keys(run.data, "forget"))
        lists[row["id"]] = kept.planned(keys, tuple(own))
        found |= set(keys)
        notes += [f"{row['id']}: {note}" for note in own]
    retained = len(run.split.retain) - len(found)
    if retained < 1:
        raise EffaceError(
            "The requests name all training examples that are left.",
            "Nothing would be retained, so there is nothing to unlearn: such a model can only be deleted.",
            "Delete the model, or plan fewer requests.",
        )
    steps, again = _expected_steps(unlearn, checkpoint, run.split, _sizes_of(run, checkpoint, found))
    seconds = _seconds_per_step(run)
    plan = RequestPlan(
        requests=tuple(row["id"] for row in rows),
        model=str(rows[0]["model"]),
        start=str(start),
        counts={name: len(kept.keys) for name, kept in lists.items()},
        total=len(found),
        retained=retained,
        earlier=sum(run.split.sizes().get(part, 0) for part in ("forget", EARLIER)),
        method=_method(unlearn),
        settings=asked,
        steps=steps,
        retraining_steps=again,
        seconds=None if seconds is None or steps is None else round(steps * seconds, 1),
        retraining_seconds=None if seconds is None else round(again * seconds, 1),
        bytes=sum((start / name).stat().st_size for name in (WEIGHTS, META, SPLIT) if (start / name).exists()),
        notes=tuple(dict.fromkeys(notes)),
    )
    return plan, lists


@contextmanager
def selector_of(desk: DeskStore, kept: ForgetList) -> Iterator[str]:
    """Yield a selector for what is to be forgotten; ids stand in a private file meanwhile."""
    if isinstance(kept.forget, str):
        yield kept.forget
        return
    path = desk.home / LISTS / f".ids-{secrets.token_hex(6)}.json"
    write_ids(path, kept.forget)
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Write a private list of ids that a selector can name."""
    make_folder(path.parent, "Name another folder for the desk: --desk DIR.")
    write_text(path, json.dumps(list(ids), ensure_ascii=False) + "\n", private=True)


def _method(unlearn: UnlearnRequest) -> dict[str, Any]:
    from efface import config
    from efface.unlearning.methods import METHODS, Method
    from efface.unlearning.plugins import AUTO

    return {"name": AUTO} if unlearn.method is None else config.dump(unlearn.method, {Method: METHODS})


def _expected_steps(
    unlearn: UnlearnRequest, checkpoint: Checkpoint, split: Split, sizes: RequestSizes
) -> tuple[int | None, int]:
    """Optimizer steps of unlearning, or the most of them (None if nobody can say), and of retraining."""
    from efface.unlearning.protocol import count_planned_steps
    from efface.unlearning.search import resolve_budget

    recipe, method = checkpoint.recipe, unlearn.method
    again = recipe.epochs * math.ceil(sizes.retain / recipe.batch_size)
    if method is not None and method.exact:
        return again, again
    if unlearn.budget is not None or method is None:
        return resolve_budget(unlearn.budget, checkpoint, split), again
    return count_planned_steps(method, sizes), again


def _sizes_of(run: OpenedRun, checkpoint: Checkpoint, found: set[str]) -> RequestSizes:
    """What the number of steps depends on: the sizes of F and R, and whether R has examples of the classes of F."""
    from efface.unlearning.protocol import RequestSizes

    data, gone = run.data, np.isin(run.data.keys[run.split.retain], list(found))
    forget, retain = run.split.retain[gone], run.split.retain[~gone]
    whole = data.y is not None and not np.isin(data.y[forget], data.y[retain]).any()
    return RequestSizes(len(forget), len(retain), checkpoint.recipe if checkpoint.trained else None, bool(whole))


def _seconds_per_step(run: OpenedRun) -> float | None:
    """Seconds of one step of the first model's training, on the machine that trained it."""
    from efface.runs.lineage import walk_back

    cost = list(walk_back(run.stored, run.folders))[-1].meta["cost"]
    return cost["seconds"] / cost["steps"] if cost["steps"] else None


def _key_error(request: str, path: str, *, gone: bool) -> EffaceError:
    return EffaceError(
        f"The key of {request} is {'not there' if gone else 'not the one that the ledger names'}: {path}.",
        "Without it the ledger cannot hold a commitment to the examples.",
        "Restore the file, or withdraw the request and add it again under another name.",
    )
