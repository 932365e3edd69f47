"""The application: its addresses, its files, and how it answers when something is wrong."""

from __future__ import annotations

import http
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from efface.desk.desk import Desk
from efface.desk.page.decisions import DecisionForms
from efface.desk.page.guard import PageGuard, PageSecrets
from efface.desk.page.office import Office
from efface.desk.page.pages import DeskPages
from efface.desk.page.settings import PageSettings
from efface.desk.page.verifying import VerifyForm
from efface.desk.page.work import DeskWorker
from efface.errors import EffaceError

FILES = {"page.css": "text/css", "progress.js": "text/javascript"}


def create_page(
    desk: Desk,
    settings: PageSettings | None = None,
    *,
    port: int,
    known: PageSecrets | None = None,
    worker: DeskWorker | None = None,
) -> ASGIApp:
    """Make the application.

    Args:
        desk: The desk.
        settings: Keys, settings of plans, and who acts.
        port: The port on which it will listen.
        known: Its secrets; by default new ones.
        worker: Plans and runs; by default in processes of their own.

    """
    known = known or PageSecrets()
    url = desk.ledger.engine.url.render_as_string(hide_password=False)
    if desk.ledger.engine.url.get_backend_name() == "sqlite":
        url = str(desk.ledger.engine.url.database)
    settings = settings or PageSettings()
    worker = worker or DeskWorker(desk.home, url, own_modules=settings.own_modules)
    office = Office(desk, settings, known, worker)
    pages, forms, verifying = DeskPages(office), DecisionForms(office), VerifyForm(office)
    routes = [
        Route("/", pages.inbox),
        Route("/static/{name}", _file),
        Route("/favicon.ico", _no_icon),
        Route("/models", pages.models),
        Route("/models/{name}", pages.model),
        Route("/ledger", pages.ledger),
        Route("/work", pages.work),
        Route("/add", forms.show_add),
        Route("/requests/{id}", pages.request),
        Route("/requests/{id}/report", pages.report),
        Route("/requests/{id}/archive", pages.archive),
        Route("/requests/{id}/bundle", pages.bundle),
        Route("/verify", verifying.show),
        Route("/verify", office.posted(verifying.check), methods=["POST"]),
        Route("/ledger", office.posted(pages.check_ledger), methods=["POST"]),
        Route("/add", office.posted(forms.add), methods=["POST"]),
        Route("/work/stop", office.posted(forms.stop), methods=["POST"]),
        *(
            Route(f"/requests/{{id}}/{name}", office.posted(act), methods=["POST"])
            for name, act in forms.actions().items()
        ),
    ]

    def wrong_input(request: Request, error: Exception) -> Response:
        what, why, remedy = (
            error.args if isinstance(error, EffaceError) and len(error.args) == 3 else (str(error), "", "")
        )
        return office.templates.page(
            "wrong.html", 400, title="That did not work", error=(what, why, remedy), back=_back(request)
        )

    def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = error.detail if isinstance(error, HTTPException) else ""
        title = http.HTTPStatus(status).phrase
        return office.templates.page(
            "wrong.html", status, title=title, error=(said if said != title else "", "", ""), back="/"
        )

    def fault(request: Request, error: Exception) -> Response:
        said = (f"This is a fault in efface: {type(error).__name__}.", "Nothing else is known.", "Please report it.")
        return office.templates.page("wrong.html", 500, title="A fault", error=said, back="/")

    handlers: dict[Any, Any] = {EffaceError: wrong_input, HTTPException: refused, Exception: fault}
    return PageGuard(Starlette(routes=routes, exception_handlers=handlers), known, port)


def _back(request: Request) -> str:
    """Where to go on from an error: the page of the request, if it was about one."""
    id_ = request.path_params.get("id")
    return f"/requests/{id_}" if id_ and request.method == "POST" else "/"


def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in FILES:
        raise HTTPException(404)
    content = resources.files("efface.desk.page").joinpath("static", name).read_bytes()
    return Response(content, media_type=FILES[name])
