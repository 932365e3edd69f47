"""What all pages share: the desk, the templates, the worker, and forms that are taken from this page only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from efface.desk.desk import Desk
from efface.desk.page.guard import PageSecrets, same_secret
from efface.desk.page.rendering import PageTemplates
from efface.desk.page.settings import PageSettings
from efface.desk.page.work import DeskWorker
from efface.desk.store import current_actor

LARGEST_FIELD = 32 * 2**20
FORM_SECRET = "form"
"""Name of the field that shows that a form is from this page."""


class Office:
    """What all pages share.

    Args:
        desk: The desk.
        settings: What the page was started with.
        known: The secrets of the page.
        worker: Plans and runs.

    """

    def __init__(self, desk: Desk, settings: PageSettings, known: PageSecrets, worker: DeskWorker) -> None:
        self.desk, self.settings, self.known, self.worker = desk, settings, known, worker
        self.actor = current_actor(settings.actor)
        self.templates = PageTemplates(form_secret=known.form, actor=self.actor, can_sign=settings.signer is not None)

    def posted(self, act: Callable[[Request, FormData], Response]) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint for a form; it is refused unless it is from a page of this application."""

        async def endpoint(request: Request) -> Response:
            async with request.form(max_files=4, max_fields=300, max_part_size=LARGEST_FIELD) as form:
                if not same_secret(form.get(FORM_SECRET), self.known.form):
                    raise HTTPException(
                        403, "The form is not from this page, or the desk was started again. Load it again."
                    )
                return await run_in_threadpool(act, request, form)

        return endpoint


def go_to(path: str) -> Response:
    """Send the browser to another page after a form, so that loading it again does nothing twice."""
    return RedirectResponse(path, 303)


def field(form: FormData, name: str, default: str = "") -> str:
    """The text of a field, without space around it."""
    value: Any = form.get(name, default)
    return default if isinstance(value, UploadFile) else str(value).strip()


def lines_of(form: FormData, name: str) -> list[str]:
    """The lines of a field that are not empty."""
    return [one.strip() for one in field(form, name).splitlines() if one.strip()]


def upload(form: FormData, name: str) -> UploadFile | None:
    """A file that was chosen; None if none was."""
    value = form.get(name)
    return value if isinstance(value, UploadFile) and value.filename else None
