"""Decide about requests: release the model that answers them, refuse or withdraw them, and export what was done."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from efface.desk.evidence import require_evidence
from efface.desk.running import discard_batch
from efface.desk.states import BatchState, RequestState, require_step
from efface.desk.store import DeskStore, move_request
from efface.desk.views import DeskRequest, ReleaseOutcome, RequestBatch
from efface.errors import EffaceError
from efface.files import atomic_path, make_folder

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

EXPORTED = ("report.html", "record.json", "record.schema.json")
"""Files of a run that may be passed on: they hold keyed digests, and the key stays behind."""
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


def release_batch(
    desk: DeskStore, request: str, signer: CryptoSigner, weights: Path | None, reason: str, actor: str
) -> ReleaseOutcome:
    """Sign for the model that answers a request, and move the head of its chain; see ``Desk.release``."""
    from efface.runs.sign import sign_run

    row = desk.rows([request])[0]
    with desk.hold_model(str(row["model"])):
        desk.ledger.require_valid()
        row = desk.rows([request])[0]
        require_step(request, RequestState(row["state"]), RequestState.RELEASED)
        batch = desk.batch(int(row["batch"]))
        _require_releasable(desk, batch, reason)
        require_evidence(desk, batch)
        desk.require_no_ids({"The reason": reason}, batch.requests)
        bundles: dict[str, str] = {}
        signed = None
        make_folder(desk.bundle_path(request).parent)
        for name in batch.requests:
            signed = sign_run(
                Path(batch.folder), signer, weights=weights, request_id=name, out=desk.bundle_path(name), force=True
            )
            bundles[name] = str(signed.path)
        passes = signed is not None and signed.stated.passes
        claims = tuple(f"{one.about}: {one.claim}" for one in signed.stated.claims) if signed is not None else ()
        with desk.ledger.writing(actor) as writer:
            head = {"head": batch.folder, "head_digest": batch.digest, "head_batch": batch.number}
            details = {"verdict": batch.verdict["word"], "certified": passes, "key": signed.key if signed else ""}
            writer.append(
                "batch", batch.number, "released", {"state": BatchState.RELEASED.value}, reason=reason,
                details=details, also=[("model", batch.model, head)],
            )  # fmt: skip
            for name in batch.requests:
                move_request(writer, writer.row("request", name) or row, RequestState.RELEASED, reason=reason)
    return ReleaseOutcome(desk.batch(batch.number), bundles, batch.folder, passes, claims)


def _require_releasable(desk: DeskStore, batch: RequestBatch, reason: str) -> None:
    """Raise unless a batch may be released: in its turn, and with a reason if it is not found to have forgotten."""
    before = None if batch.start_batch is None else desk.batch(batch.start_batch)
    if before is not None and before.state is not BatchState.RELEASED:
        raise EffaceError(
            f"Batch {batch.number} was made from the model of batch {before.number}, which is {before.state}.",
            "The requests of both are in its model.",
            f"Release that one first: `efface request release {before.requests[0]}`.",
        )
    word, every = batch.verdict["word"], batch.verdict.get("all_requests", {}).get("word", "removed")
    if batch.verdict["exit_code"] and not reason:
        found = word if word != "removed" else f"{every}, for all requests together"
        raise EffaceError(
            f"The audit of batch {batch.number} did not find that its model has forgotten: {found}.",
            "The bundle will say so; why it is released all the same is for the ledger.",
            "Give a reason: --reason TEXT, or run it again with another plan: `efface request discard`.",
        )


def close_request(desk: DeskStore, request: str, after: RequestState, reason: str, actor: str) -> DeskRequest:
    """Refuse or withdraw a request; a run that was to answer it is given up."""
    if not reason:
        raise EffaceError(
            f"Nothing was said about why {request} is {after}.", "The ledger keeps the reason.", "Add --reason TEXT."
        )
    desk.require_no_ids({"The reason": reason}, [request])
    row = desk.rows([request])[0]
    with desk.hold_model(str(row["model"])):
        row = desk.rows([request])[0]
        require_step(request, RequestState(row["state"]), after)
        batch = None if row["batch"] is None else desk.batch(int(row["batch"]))
        if batch is not None and batch.state is not BatchState.ABANDONED:
            discard_batch(desk, batch, actor, reason, {request: after})
        else:
            with desk.ledger.writing(actor) as writer:
                move_request(writer, writer.row("request", request) or row, after, reason=reason)
    return desk.request(request)


def discard_run(desk: DeskStore, request: str, reason: str, actor: str) -> DeskRequest:
    """Give up the run that was to answer a request; its requests are planned again."""
    if not reason:
        raise EffaceError(
            f"Nothing was said about why the run for {request} is given up.",
            "The ledger keeps the reason.",
            "Add --reason TEXT.",
        )
    row = desk.rows([request])[0]
    with desk.hold_model(str(row["model"])):
        row = desk.rows([request])[0]
        if row["batch"] is None:
            raise EffaceError(
                f"There is no run for {request}.", f"It is {row['state']}.", "Nothing has to be given up."
            )
        batch = desk.batch(int(row["batch"]))
        desk.require_no_ids({"The reason": reason}, batch.requests)
        discard_batch(desk, batch, actor, reason)
    return desk.request(request)


def export_request(desk: DeskStore, request: str, out: Path, *, force: bool) -> Path:
    """Write what may be passed on about a request into a ZIP archive; see ``Desk.export``."""
    check = desk.ledger.require_valid()
    row = desk.rows([request])[0]
    if out.exists() and (not force or out.is_dir()):
        raise EffaceError(
            f"{out} exists already.", "It is replaced only on request.", "Choose another --out or --force."
        )
    events = [one.as_dict() for one in desk.ledger.events(f"request {request}")]
    known = DeskRequest.of(row).as_dict()
    chain = {"events": check.events, "head": check.head}
    commitment = {name: row[name] for name in ("key_digest", "content")} | {"items": json.loads(row["items"])}
    about = {"request": known, "events": events, "commitment": commitment, "chain": chain}
    files: dict[str, bytes] = {"request.json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()}
    bundle = desk.bundle_path(request)
    if bundle.exists():
        files["bundle.intoto.jsonl"] = bundle.read_bytes()
    if row["batch"] is not None:
        batch = desk.batch(int(row["batch"]))
        require_evidence(desk, batch)
        folder = Path(batch.folder)
        files |= {name: (folder / name).read_bytes() for name in EXPORTED if (folder / name).exists()}
    make_folder(out.parent)
    with atomic_path(out) as fresh, zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), content)
    return out
