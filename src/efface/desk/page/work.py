"""Work that takes long, planning and running, in a process of its own: what is going on, and how it ended.

The process outlives the page: it goes on when the page is closed or its server ends, and a server that is started later
shows it. It writes where it stands into ``page/work.json`` in the folder of the desk, and holds a lock meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from efface.errors import EffaceError
from efface.files import hold_lock, make_folder, read_json, write_text
from efface.schema import FirstFormat, StoredModel, Tally

FOLDER, STATUS, WORK_LOG = "page", "work.json", "work.log"
ACTIONS = ("plan", "run")
STARTING = "Starting"


class WorkStatus(StoredModel):
    """Where the work stands, as its process wrote it down."""

    format: FirstFormat = 1
    action: Literal["plan", "run"]
    requests: tuple[str, ...]
    process: Tally
    """Number of the process that does it."""
    state: Literal["running", "done", "failed", "cut"]
    """``cut``: the process ended, and did not say how."""
    began: str
    ended: str = ""
    message: str = STARTING
    """What it is doing, in words."""
    step: Tally = 0
    steps: Tally = 0
    """Of how many; 0 if unknown."""
    error: tuple[str, str, str] | None = None
    """What happened, why, and what to do."""

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.state == "running"


def write_status(folder: Path, status: WorkStatus) -> None:
    """Write down where the work stands; messages may name examples, so that only the owner can read it."""
    write_text(folder / STATUS, status.model_dump_json(indent=1) + "\n", private=True)


def spawn_worker(folder: Path, job: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """Start the process; what it is to do is not among its arguments, which other users can see."""
    log = os.open(folder / WORK_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "efface.desk.page.worker"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(log)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(job).encode())
    return process


class DeskWorker:
    """Starts work, one at a time, and says where it stands.

    Args:
        home: Folder of the desk.
        ledger: Its ledger, as :func:`efface.desk.open_desk` takes it.
        spawn: Starts the process.
        own_modules: Functions of the user's that may build networks in it.

    """

    def __init__(
        self,
        home: Path,
        ledger: str,
        spawn: Callable[[Path, Mapping[str, Any]], subprocess.Popen[bytes]] = spawn_worker,
        own_modules: Sequence[str] = (),
    ) -> None:
        self.home, self.ledger, self.spawn = home.absolute(), ledger, spawn
        self.own_modules = list(own_modules)
        self.folder = self.home / FOLDER
        self._begun = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: tuple[str, tuple[str, ...], str] = ("", (), "")

    def start(
        self, action: str, requests: Sequence[str], actor: str, settings: Mapping[str, Any] | None = None
    ) -> None:
        """Start work on requests.

        Args:
            action: ``plan`` or ``run``.
            requests: Their ids.
            actor: Who asked for it.
            settings: Settings of a plan.

        Raises:
            EffaceError: Other work is going on.

        """
        from efface.desk.ledger import utc_now

        with self._begun:
            now = self.status()
            if now is not None and now.going:
                raise EffaceError(
                    f"Work on {', '.join(now.requests)} is going on.",
                    "The page does one thing at a time.",
                    "Wait until it has ended, or stop it.",
                )
            make_folder(self.folder, "Name another folder for the desk: --desk DIR.")
            job = {"action": action, "requests": list(requests), "actor": actor, "settings": dict(settings or {})}
            self._asked = (action, tuple(requests), utc_now())
            job |= {"home": str(self.home), "ledger": self.ledger, "own_modules": self.own_modules}
            self._process = self.spawn(self.folder, job)

    def status(self) -> WorkStatus | None:
        """Where the work stands that is going on, or that was last done; None if there was none."""
        written = self._read()
        process = self._process
        if process is not None and (written is None or written.process != process.pid):
            action, requests, began = self._asked
            gone = process.poll() is not None
            if not gone or written is None or written.began < began:
                return WorkStatus(
                    action="run" if action == "run" else "plan", requests=requests, process=process.pid, began=began,
                    state="cut" if gone else "running", message=self._last_words() if gone else STARTING,
                )  # fmt: skip
        if written is not None and written.going and not self._alive():
            written = self._read() or written  # it may have ended in between
            return written.model_copy(update={"state": "cut"}) if written.going else written
        return written

    def stop(self) -> None:
        """End the work that is going on. A run that was cut goes on when it is started again."""
        now = self.status()
        if now is None or not now.going:
            raise EffaceError("Nothing is going on.", "It has ended.", "Load the page again.")
        try:
            os.kill(now.process, signal.SIGTERM)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise EffaceError(
                f"Process {now.process} cannot be ended.", "It belongs to another user.", "Ask who started it."
            ) from error

    def _alive(self) -> bool:
        process = self._process
        if process is not None and process.poll() is None:
            return True
        held = EffaceError("The process that works for this page holds its lock.")
        try:
            with hold_lock(self.folder / STATUS, held):
                return False
        except EffaceError as error:
            if error is not held:
                raise
            return True

    def _read(self) -> WorkStatus | None:
        path = self.folder / STATUS
        if not path.exists():
            return None
        return WorkStatus.model_validate(read_json(path, "state of the page's work", schema=WorkStatus))

    def _last_words(self) -> str:
        """The last line that a process which said nothing else wrote."""
        try:
            lines = (self.folder / WORK_LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "It ended without a word."
