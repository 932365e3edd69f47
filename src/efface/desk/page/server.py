"""Serve the page on this computer only."""

from __future__ import annotations

import socket
from collections.abc import Callable

from efface.desk.desk import Desk
from efface.desk.page.application import create_page
from efface.desk.page.guard import URL_TOKEN, PageSecrets
from efface.desk.page.settings import PageSettings
from efface.errors import EffaceError

LOOPBACK = "127.0.0.1"


def serve_page(
    desk: Desk, settings: PageSettings | None = None, *, port: int = 0, told: Callable[[str], None] = lambda url: None
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        desk: The desk.
        settings: Keys, settings of plans, and who acts.
        port: The port; 0: one that is free.
        told: Receives the address, with its token, once the page can be opened.

    Raises:
        EffaceError: The port is taken.

    """
    import uvicorn

    known = PageSecrets()
    with _bound(port) as listening:
        bound = int(listening.getsockname()[1])
        app = create_page(desk, settings, known=known, port=bound)
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", server_header=False, lifespan="off", ws="none",
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        told(f"http://{LOOPBACK}:{bound}/?{URL_TOKEN}={known.token}")
        uvicorn.Server(config).run(sockets=[listening])


def _bound(port: int) -> socket.socket:
    """A socket that listens on the loopback interface."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise EffaceError(
            f"The page cannot listen on port {port}.",
            f"{error.strerror or error}.",
            "Leave out --port, or name another.",
        ) from error
    return made
