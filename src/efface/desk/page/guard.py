"""Who may see and use the page: token, cookie, host, origin, and what the browser is told not to do."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

URL_TOKEN = "token"
"""Name of the part of the address that opens the page."""
LARGEST_FORM = 32 * 2**20
"""Bytes that a form may have: a list of ids."""
LARGEST_UPLOAD = 8 * 2**30
"""Bytes that may be uploaded to be verified: a bundle, and the file of a model."""
UPLOADS = ("/verify",)
"""Paths to which files of models are uploaded."""
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; frame-ancestors 'none'"
"""For the report of an audit, which is one file with its style inside, and without scripts."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_CLOSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1><p>{text}</p></html>"""


@dataclass(frozen=True)
class PageSecrets:
    """What only the user's browser knows; new each time the page is started."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """In the address with which the page is opened."""
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """Value of the cookie."""
    form: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    """In each form."""


def same_secret(given: object, known: str) -> bool:
    """Whether a text is a secret; takes as long for a wrong one as for the right one."""
    return isinstance(given, str) and secrets.compare_digest(given.encode(), known.encode())


class PageGuard:
    """Lets requests through to an application that come from the page itself, in the browser of who has the token.

    Args:
        app: The application.
        known: The secrets.
        port: The port on which it listens; 127.0.0.1 and localhost are the names that it answers to.

    """

    def __init__(self, app: ASGIApp, known: PageSecrets, port: int) -> None:
        self.app, self.known = app, known
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.cookie = f"efface-desk-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let through."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refuse(scope)
        if answer is not None:
            await answer(scope, receive, sending)
        else:
            await self.app(scope, _limited(receive, scope), sending)

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self.hosts:
            return _closed(421, "Another address", "The page answers on 127.0.0.1 only.")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            return _closed(403, "Not from here", "Another site sent this form.")
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return _closed(403, "Not from here", "Another site sent this form, or it is not known which one.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get(URL_TOKEN)
        if given is not None and scope["method"] == "GET" and same_secret(given, self.known.token):
            rest = urlencode([(name, value) for name, value in query if name != URL_TOKEN])
            path = "/" + str(scope["path"]).lstrip("/\\")
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self.cookie, self.known.session, path="/", httponly=True, samesite="strict")
            return answer
        if not same_secret(cookie_parser(headers.get("cookie", "")).get(self.cookie), self.known.session):
            return _closed(
                401,
                "Open the page with its full address",
                "This is a desk for deletion requests. It opens with the address that was printed when it was started, "
                "with all that follows the question mark. Each start has a new one.",
            )
        return None


def _limited(receive: Receive, scope: Scope) -> Receive:
    """Receive a body, and refuse it when it is too large."""
    largest, seen = LARGEST_UPLOAD if scope["path"] in UPLOADS else LARGEST_FORM, 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > largest:
            raise HTTPException(413, f"More than {largest} bytes were sent.")
        return message

    return receiving


def _closed(status: int, title: str, text: str) -> Response:
    return HTMLResponse(_CLOSED.format(title=title, text=text), status)
