"""Erase what still remembers a released request: the intent first, then each artefact, then the outcomes.

Killed at any moment, the same call goes on and ends with the same outcomes: what was to be removed and is gone counts
as removed. The list of the request goes last, since it says what to look for; after it, the ids are recognized by the
keyed commitment, until the key is destroyed as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.desk.forgotten import ForgottenIds, Remains
from efface.desk.ledger import LedgerWriter, utc_now
from efface.desk.planning import AUDIT_FOLDERS
from efface.desk.remains import (
    SUPERSEDED,
    erase_remains,
    find_in_place,
    find_model,
    find_unused,
    summarize,
)
from efface.desk.run_ids import data_names, find_in_run
from efface.desk.states import CLOSED, BatchState, RequestState
from efface.desk.store import OPEN_BATCHES, DeskStore
from efface.desk.views import ErasedArtefact, RequestBatch
from efface.errors import EffaceError
from efface.reporting.redaction import KEY_FILE

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

ERASING, ERASED = "erasing", "erased"
"""Names of the two events of an erasure."""


def erase_request(
    desk: DeskStore,
    request: str,
    places: Sequence[Path],
    *,
    destroy_key: bool,
    remove_models: bool,
    dry_run: bool,
    signer: CryptoSigner | None,
    actor: str,
) -> list[ErasedArtefact]:
    """Remove or list what still remembers the examples of a request; see ``Desk.erase``."""
    row = desk.rows([request])[0]
    if RequestState(row["state"]) not in CLOSED:
        raise EffaceError(
            f"{request} is {row['state']}: what it is about is still needed.",
            "Erasing comes after the release of the model that has forgotten, or after the request was closed.",
            f"Release it first: `efface request release {request}`.",
        )
    with desk.hold_model(str(row["model"]), wait=True):
        desk.ledger.require_valid()
        row = desk.rows([request])[0]
        asked = name_asked(places, destroy_key=destroy_key, remove_models=remove_models)
        begun = _begun(desk, request)
        erased: list[ErasedArtefact] = []
        wanted = asked if begun is None else join_asked(begun["asked"], asked)
        done = begun is not None and not dry_run and wanted == begun["asked"]
        if begun is not None and not dry_run and (done or _unknown(desk, row)):
            erased = _carry_out(desk, row, [Remains(**one) for one in begun["found"]], actor)
            row, begun, wanted = desk.rows([request])[0], None, asked
        if not done:
            started = [] if begun is None else [Remains(**one) for one in begun["found"]]
            found, over = _search(desk, row, wanted, started)
            if dry_run and (found or not over):
                return [_planned(one) for one in found]
            if found or started:
                with desk.ledger.writing(actor) as writer:
                    details = {"found": [one.as_dict() for one in found], "asked": wanted}
                    writer.append("request", request, ERASING, details=details)
                erased = _carry_out(desk, row, found, actor)
            else:
                erased = desk.artefacts(request)
    if signer is not None:
        sign_erasure(desk, request, signer)
    return erased


def find_remains(
    desk: DeskStore,
    row: dict[str, Any],
    ids: ForgottenIds,
    places: Sequence[Path],
    *,
    destroy_key: bool,
    remove_models: bool,
    earlier: Mapping[str, int],
) -> Iterator[Remains]:
    """Find everything that remembers a request, in the order in which it is erased.

    Args:
        desk: The desk.
        row: The request.
        ids: Its ids.
        places: Files and folders that the user named.
        destroy_key: Find the keys of the request as well.
        remove_models: Remove models that were trained on them.
        earlier: Superseded models that were found before, and on how many of the ids they were trained.

    """
    from efface.runs.rehearsal_plan import rehearsals_beside

    chain = desk.model(str(row["model"]))
    batches = desk.batches(chain.name)
    if row["state"] == RequestState.RELEASED.value:
        caches, blocked = find_pictures(Path(chain.head), ids)
        yield from caches
        pending = {one.folder for one in batches if one.state in OPEN_BATCHES}
        made = [one.folder for one in batches if one.state is not BatchState.ABANDONED]
        for folder in dict.fromkeys([chain.original, *made]):
            waiting = "the run is not decided yet: erase again after that" if folder in pending else ""
            yield from find_in_run(Path(folder), ids, waiting or blocked)
            if folder != chain.head:
                yield from find_model(Path(folder), ids, remove=remove_models, known=earlier.get(folder, 0))
        chained = {chain.original, *made}
        searched = [str(Path(place).absolute()) for place in places]
        beside = [str(rehearsals_beside(Path(folder))) for folder in (chain.original, *made)]
        for place in dict.fromkeys([*searched, *_references(batches), *beside]):
            if place in searched or (place not in chained and Path(place).exists()):
                yield from find_in_place(Path(place), ids, remove=remove_models)
    for batch in batches:
        if batch.state not in (BatchState.INTENDED, BatchState.UNLEARNED):
            yield from find_unused(batch, abandoned=batch.state is BatchState.ABANDONED)
    yield from _find_lists(desk, row, batches)
    if destroy_key:
        yield from _find_keys(desk, row)


def _references(batches: Sequence[RequestBatch]) -> Iterator[str]:
    """The references and banks that a chain was planned with: a reference was trained without one request only."""
    for batch in batches:
        yield from batch.settings.get("oracles") or ()
        audit = batch.settings.get("audit") or {}
        named = [
            batch.settings.get("references"),
            batch.settings.get("bank"),
            *(audit.get(one) for one in AUDIT_FOLDERS),
        ]
        yield from (one for one in named if one)


def find_pictures(head: Path, ids: ForgottenIds) -> tuple[list[Remains], str]:
    """Caches of decoded pictures, and why the splits must keep the ids for now: the pictures are still in the data."""
    from efface.data.pixel_caches import find_caches, find_shards
    from efface.runs.data_at_hand import DataChecks, open_data
    from efface.runs.folder import read_request
    from efface.training.checkpoint import read_meta

    try:
        request, meta = read_request(head), read_meta(head)
        here = open_data(head, request, meta, DataChecks(allow_absent=True), judged=False)
    except EffaceError as error:
        why = f"{error.what} {error.why}".strip()
        return [Remains("decoded pictures", str(head), "list", f"the data could not be read: {why}")], (
            "the data could not be read: whether the pictures are gone is not known"
        )
    present = ids.among(here.data.keys.tolist())
    names = present | (ids.known or frozenset())
    found = [
        Remains("decoded pictures", str(folder), "remove", "a cache that holds them", count)
        for folder, count in find_caches(here.data, names, here.former_roots).items()
    ]
    found += [
        Remains("shard", path, "list", "it holds them: write it again with `efface rewrite`, and erase again", count)
        for path, count in find_shards(here.data, present).items()
    ]
    if not present:
        return found, ""
    listed = Remains(
        "pictures", here.data.name, "list", "still in the data: delete them, and erase again", len(present)
    )
    return [*found, listed], "the pictures are still in the data: without their ids they could be used again"


def _find_lists(desk: DeskStore, row: dict[str, Any], batches: Sequence[Any]) -> Iterator[Remains]:
    """The private lists of a request and of its batch."""
    from efface.desk.running import ids_path

    for batch in batches:
        path = ids_path(desk, batch.number)
        decided = batch.state not in OPEN_BATCHES
        if path.exists() and row["id"] in batch.requests and decided:
            yield Remains("list of ids", str(path), "remove", "what the batch was to forget")
    path = desk.private.list_path(str(row["id"]))
    if path.exists():
        yield Remains("forget list", str(path), "remove", "who asked, and for what")


def _find_keys(desk: DeskStore, row: dict[str, Any]) -> Iterator[Remains]:
    """The keys with which the ledger and the record of the run can be linked to ids."""
    from efface.runs.exact_runs import EXACT_KEY

    folder = None if row["batch"] is None else Path(desk.batch(int(row["batch"])).folder)
    for name in (KEY_FILE, EXACT_KEY):
        path = None if folder is None else folder / name
        if path is not None and path.exists():
            yield Remains("key of the record", str(path), "remove", "the record cannot be linked to ids any more")
    path = desk.private.key_path(str(row["id"]))
    if path.exists():
        yield Remains("key", str(path), "remove", "the ledger cannot be linked to ids any more")


LISTED_MODELS = (SUPERSEDED, "checkpoint", "average", "reference bank", "rehearsals")
"""Kinds that are listed unless models are to be removed."""
LAST = ("forget list", "key")
"""Erased after everything else: they say what to look for."""


def _erase(desk: DeskStore, row: dict[str, Any], found: Sequence[Remains]) -> list[ErasedArtefact]:
    """Erase each; the list and the key of the request only once everything else succeeded."""
    request = str(row["id"])
    kept = desk.private.forget_list(request)
    names = names_of_chain(desk, row)
    secret, items = desk.private.key(request), json.loads(row["items"])
    left = ForgottenIds(secret, None if kept is None else kept.keys, items, others=names)
    erased = [erase_remains(one, left) for one in found if one.kind not in LAST]
    failed = sum(one.outcome == "failed" for one in erased)
    waiting = any(one.outcome == "listed" and one.kind in ("pictures", "split") for one in erased)
    for one in found:
        if one.kind not in LAST:
            continue
        kept_for = "" if not failed else f"kept: {failed} artefacts could not be erased, and it says what to look for"
        if one.kind == "key" and waiting:
            kept_for = "kept: the pictures or ids in splits are still there; erase again when they are gone"
        if kept_for:
            erased.append(ErasedArtefact(one.kind, one.place, "listed", kept_for))
            continue
        destroy = desk.private.destroy_list if one.kind == "forget list" else desk.private.destroy_key
        destroy(request)
        erased.append(ErasedArtefact(one.kind, one.place, "removed", one.detail))
    return erased


def _carry_out(desk: DeskStore, row: dict[str, Any], found: Sequence[Remains], actor: str) -> list[ErasedArtefact]:
    """Erase what was found, and write down what became of it."""
    erased = _erase(desk, row, found)
    with desk.ledger.writing(actor) as writer:
        _write_outcomes(writer, str(row["id"]), erased)
    return erased


def _search(
    desk: DeskStore, row: dict[str, Any], asked: dict[str, Any], started: Sequence[Remains]
) -> tuple[list[Remains], bool]:
    """Find what is to be erased, with what an erasure that was cut had found; and whether everything was before."""
    if _is_over(desk, row, asked):
        return (_listed_models(desk, str(row["id"])) if asked["remove_models"] else []), True
    ids = ids_of_request(desk, row)
    before = [*desk.artefacts(str(row["id"])), *started]
    found = find_remains(
        desk, row, ids, [Path(one) for one in asked["places"]],
        destroy_key=asked["destroy_key"], remove_models=asked["remove_models"],
        earlier={one.place: one.count for one in before if one.kind == SUPERSEDED},
    )  # fmt: skip
    return add_started(started, list(found)), False


def add_started(started: Sequence[Remains], found: Sequence[Remains]) -> list[Remains]:
    """Put together what an erasure that was cut was about to change, and what is found now; each thing once.

    Heads come first: what is subtracted from them is in vectors that go.
    """
    again = {(one.kind, one.place) for one in found}
    rest = [one for one in started if one.action != "list" and (one.kind, one.place) not in again]
    return sorted([*rest, *found], key=lambda one: one.kind != "head")


def ids_of_request(desk: DeskStore, row: dict[str, Any]) -> ForgottenIds:
    """The ids of a request; names of other examples of its data are not taken for them."""
    return ForgottenIds.of(desk.private, row, names_of_chain(desk, row))


def names_of_chain(desk: DeskStore, row: dict[str, Any]) -> list[str]:
    """The names of the data that the newest model of the chain of a request knows."""
    return data_names(Path(desk.model(str(row["model"])).head))


def name_asked(places: Sequence[Path], **flags: bool) -> dict[str, Any]:
    """What a call asks for, as it is written down before anything is erased."""
    return {"places": list(dict.fromkeys(str(Path(one).absolute()) for one in places)), **flags}


def join_asked(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two calls ask for together."""
    flags = {name: bool(one.get(name)) or bool(asked) for name, asked in other.items() if name != "places"}
    return {"places": list(dict.fromkeys([*one["places"], *other["places"]])), **flags}


def _unknown(desk: DeskStore, row: dict[str, Any]) -> bool:
    """Whether nobody can tell any more which ids a request was about, so that nothing more can be searched for."""
    request = str(row["id"])
    return desk.private.forget_list(request) is None and desk.private.key(request) is None


def _begun(desk: DeskStore, request: str) -> dict[str, Any] | None:
    """What an erasure that was cut had found; None if none was."""
    events = [one for one in desk.ledger.events(f"request {request}") if one.action in (ERASING, ERASED)]
    if not events or events[-1].action != ERASING:
        return None
    details = events[-1].details
    return {"found": details["found"], "asked": {"destroy_key": False, "remove_models": False} | details["asked"]}


def _is_over(desk: DeskStore, row: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether the same was erased before, list and key included: there is nothing left to do but to say it again."""
    request = str(row["id"])
    if not _unknown(desk, row):
        return False
    events = [one for one in desk.ledger.events(f"request {request}") if one.action == ERASING]
    searched = {place for one in events for place in one.details["asked"]["places"]}
    return bool(row["erased"]) and set(asked["places"]) <= searched


def _listed_models(desk: DeskStore, request: str) -> list[Remains]:
    """What an earlier erasure only listed, and goes with ``--remove-models``; nobody needs the ids for that."""
    return [
        Remains(one.kind, one.place, "remove", one.detail.partition(";")[0], one.count)
        for one in desk.artefacts(request)
        if one.outcome == "listed" and one.kind in LISTED_MODELS and Path(one.place).exists()
    ]


def _planned(remains: Remains) -> ErasedArtefact:
    outcome: Any = {"remove": "removed", "rewrite": "rewritten", "list": "listed"}[remains.action]
    return ErasedArtefact(remains.kind, remains.place, outcome, remains.detail, remains.count)


def _write_outcomes(writer: LedgerWriter, request: str, erased: Sequence[ErasedArtefact]) -> None:
    now = utc_now()
    rows = [
        ("artefact", f"{request} {one.kind} {one.place}", one.as_dict() | {"request": request, "time": now})
        for one in erased
    ]
    writer.append("request", request, ERASED, {"erased": now}, details=summarize(erased), also=rows)


def sign_erasure(desk: DeskStore, request: str, signer: CryptoSigner) -> Path | None:
    """Sign the bundle of a request again, with what became of what remembered; None if it has no bundle."""
    from efface.reporting.amendment import amend_bundle

    path = desk.bundle_path(request)
    if not path.exists():
        return None
    return amend_bundle(path, desk.amended_path(request), signer, count_outcomes(desk.artefacts(request)))


def count_outcomes(erased: Sequence[ErasedArtefact]) -> list[tuple[str, str, int, int]]:
    """What a bundle states of an erasure: kind, outcome, how many, and how many entries of them altogether."""
    stated: list[tuple[str, str, int, int]] = []
    for kind, outcome in sorted({(one.kind, one.outcome) for one in erased}):
        same = [one for one in erased if (one.kind, one.outcome) == (kind, outcome)]
        stated.append((kind, outcome, len(same), sum(one.count for one in same)))
    return stated
