"""The pages that only show: inbox, one request, models, the ledger, the progress of work, and what is downloaded."""

from __future__ import annotations

import tempfile
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from efface.desk.desk import Desk
from efface.desk.evidence import require_evidence
from efface.desk.inputs import add_days
from efface.desk.ledger import utc_now
from efface.desk.page.guard import REPORT_POLICY
from efface.desk.page.office import Office
from efface.desk.states import BatchState, RequestState
from efface.desk.views import DeskRequest
from efface.errors import EffaceError

PAGE_SIZE = 50
"""Requests on one page of the inbox."""
SOON = 7
"""Days within which a deadline is soon."""
OFFERED = 20
"""At most so many other requests are offered to be planned with one."""
_OPEN, _ALL = "open", "all"


class DeskPages:
    """The pages that only show."""

    def __init__(self, office: Office) -> None:
        self.office, self.desk = office, office.desk

    def inbox(self, request: Request) -> Response:
        """The requests, page by page: those that are open, those in one state, those due soon, those with a name."""
        shown = request.query_params.get("show", _OPEN)
        search = request.query_params.get("search", "").strip()[:200]
        number = _page_number(request.query_params.get("page", "1"))
        kinds = {_OPEN: {"closed": False}, "due": {"closed": False, "due_by": add_days(utc_now(), SOON)}, _ALL: {}}
        chosen: dict[str, Any] | None = kinds.get(shown) or ({} if shown == _ALL else None)
        if chosen is None:
            if shown not in [one.value for one in RequestState]:
                raise HTTPException(404, f"There is no state '{shown}'.")
            chosen = {"state": shown}
        rows = self.desk.requests(search=search, limit=PAGE_SIZE + 1, offset=(number - 1) * PAGE_SIZE, **chosen)
        counts = self.desk.counts()
        ends = (RequestState.RELEASED, RequestState.REFUSED, RequestState.WITHDRAWN)
        open_ = sum(count for state, count in counts.items() if state not in ends)
        return self.office.templates.page(
            "inbox.html", rows=rows[:PAGE_SIZE], more=len(rows) > PAGE_SIZE, number=number, shown=shown, search=search,
            counts=counts, open_count=open_, all_count=sum(counts.values()), soon=SOON,
            models=[one.name for one in self.desk.models()], work=self.office.worker.status(),
        )  # fmt: skip

    def request(self, request: Request) -> Response:
        """One request: what was asked, the plan, the run, the verdict, and what can be done next."""
        return self.office.templates.page("request.html", **request_values(self.office, request.path_params["id"]))

    def work(self, request: Request) -> Response:
        """Where the work stands that is going on: a part of a page."""
        return self.office.templates.page("work.html", work=self.office.worker.status(), alone=True)

    def models(self, request: Request) -> Response:
        """All models, with the newest of each."""
        return self.office.templates.page("models.html", chains=self.desk.models())

    def model(self, request: Request) -> Response:
        """The history of one model."""
        name = request.path_params["name"]
        found = [one for one in self.desk.models() if one.name == name]
        if not found:
            raise HTTPException(404, "There is no model of this name.")
        unused = [one for one in self.desk.batches(name) if one.state is BatchState.ABANDONED]
        return self.office.templates.page("model.html", chain=found[0], unused=unused)

    def ledger(self, request: Request) -> Response:
        """What the ledger is, and the button that checks it."""
        return self.office.templates.page("ledger.html", check=None, place=self.desk.ledger.shown)

    def check_ledger(self, request: Request, form: FormData) -> Response:
        """The outcome of a check of the ledger."""
        return self.office.templates.page("ledger.html", check=self.desk.verify(), place=self.desk.ledger.shown)

    def report(self, request: Request) -> Response:
        """The report of the audit of a request."""
        found = known_request(self.desk, request.path_params["id"])
        batch = None if found.batch is None else self.desk.batch(found.batch)
        path = None if batch is None else Path(batch.folder) / "report.html"
        if batch is None or path is None or not path.is_file():
            raise HTTPException(404, "There is no report yet.")
        require_evidence(self.desk, batch)
        return Response(path.read_bytes(), media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    def bundle(self, request: Request) -> Response:
        """The signed bundle of a request; after erasing, the one with its outcomes."""
        name = known_request(self.desk, request.path_params["id"]).id
        path = next((one for one in (self.desk.amended_path(name), self.desk.bundle_path(name)) if one.is_file()), None)
        if path is None:
            raise HTTPException(404, "There is no bundle yet.")
        return _download(path.read_bytes(), path.name, "application/x-ndjson")

    def archive(self, request: Request) -> Response:
        """What may be passed on about a request, as a ZIP archive."""
        name = known_request(self.desk, request.path_params["id"]).id
        with tempfile.TemporaryDirectory(prefix="efface-") as folder:
            content = self.desk.export(name, Path(folder) / f"{name}.zip").read_bytes()
        return _download(content, f"{name}.zip", "application/zip")


def request_values(office: Office, name: str) -> dict[str, Any]:
    """What the page of a request shows."""
    desk = office.desk
    details = desk.show(known_request(desk, name).id, checked=False)
    batch, request = details.batch, details.request
    beside: list[DeskRequest] = []
    can_plan = request.state in (RequestState.RECEIVED, RequestState.PLANNED) and (
        batch is None or batch.state is BatchState.ABANDONED
    )
    if can_plan:
        for state in (RequestState.RECEIVED, RequestState.PLANNED):
            found = desk.requests(model=request.model, state=state, limit=OFFERED)
            beside += [one for one in found if one.id != name and one.batch is None]
    work = office.worker.status()
    report = batch is not None and (Path(batch.folder) / "report.html").is_file()
    return {
        "details": details, "request": request, "batch": batch, "plan": details.plan, "can_plan": can_plan,
        "beside": beside[:OFFERED], "methods": method_names() if can_plan else [], "defaults": office.settings.plan,
        "work": work if work is not None and (name in work.requests or work.going) else None, "report": report,
        "found": None, "asked": {},
    }  # fmt: skip


def known_request(desk: Desk, name: str) -> DeskRequest:
    """A request by its name; the page that says that there is none does not list the names of others."""
    try:
        return desk.request(name)
    except EffaceError as error:
        if "request" in error.what and name in error.what:
            raise HTTPException(404, "There is no request of this name.") from error
        raise


def method_names() -> list[str]:
    """The names of the methods, with those of installed packages; PyTorch, which takes seconds, is not loaded."""
    from efface.unlearning.plugins import GROUP

    files = resources.files("efface.unlearning").joinpath("methods").iterdir()
    own = {one.name.removesuffix(".py") for one in files if one.name.endswith(".py") and one.name[0] != "_"}
    return sorted(own | {one.name for one in entry_points(group=GROUP)})


def _page_number(text: str) -> int:
    return min(max(1, int(text)), 10**6) if text.isascii() and text.isdigit() and len(text) < 8 else 1


def _download(content: bytes, name: str, kind: str) -> Response:
    """A file to save; names of requests have no characters that need quoting."""
    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})
