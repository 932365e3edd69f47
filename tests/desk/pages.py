"""A page of a desk in a test: a browser without a network, and a worker in this process."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from efface.desk import Desk
from efface.desk.page import PageSecrets, PageSettings, create_page
from efface.desk.page.work import DeskWorker
from efface.desk.page.worker import do_work

PORT = 8600
ADDRESS = f"http://127.0.0.1:{PORT}"


class ThreadAsProcess:
    """Work in a thread of this process, with what the worker asks of a process."""

    stdin = None

    def __init__(self, job: Mapping[str, Any]) -> None:
        import os

        self.pid = os.getpid()
        self.thread = threading.Thread(target=do_work, args=(job,))
        self.thread.start()

    def poll(self) -> int | None:
        return None if self.thread.is_alive() else 0


class PageUser:
    """Somebody who uses the page: opens it, reads it, sends its forms."""

    def __init__(self, desk: Desk, settings: PageSettings | None = None, *, processes: bool = False) -> None:
        self.known = PageSecrets()
        url = desk.ledger.engine.url
        place = str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=False)
        self.worker = DeskWorker(desk.home, place)
        if not processes:
            self.worker.spawn = self._spawn
        self.app = create_page(desk, settings, port=PORT, known=self.known, worker=self.worker)
        self.client = TestClient(self.app, base_url=ADDRESS, raise_server_exceptions=True)

    def _spawn(self, folder: Path, job: Mapping[str, Any]) -> Any:
        self.started = ThreadAsProcess(job)
        return self.started

    def open(self) -> PageUser:
        answer = self.client.get(f"/?token={self.known.token}")
        assert answer.status_code == 200, answer.text
        return self

    def get(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def send(self, path: str, status: int = 200, files: Any = None, **fields: Any) -> str:
        answer = self.client.post(
            path, data={"form": self.known.form, **fields}, files=files, headers={"origin": ADDRESS}
        )
        assert answer.status_code == status, answer.text
        return answer.text

    def finish(self) -> None:
        """Wait for the work."""
        self.started.thread.join(120)
        assert not self.started.thread.is_alive()


def words(page: str) -> str:
    """The text of a page, without marks."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())
