"""The process that plans and runs for the page: reads what to do from its standard input, writes where it stands."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.desk.ledger import utc_now
from efface.desk.page.work import FOLDER, STATUS, WorkStatus, write_status
from efface.errors import EffaceError
from efface.files import hold_lock, make_folder

EVERY = 0.5
"""Seconds between two writes of the progress."""


class StatusProgress:
    """Receives the progress of a run, and writes it down every half second.

    Args:
        folder: Where ``work.json`` is.
        status: Where the work stands at its start.

    """

    def __init__(self, folder: Path, status: WorkStatus) -> None:
        self.folder, self.now, self.written = folder, status, 0.0
        write_status(folder, status)

    def step(self, record: dict[str, Any], total: int) -> None:
        """Take one optimizer step."""
        self.update(step=int(record["step"]), steps=max(0, int(total)))

    def say(self, sentence: str) -> None:
        """Take a message."""
        self.update(message=sentence, step=0, steps=0)

    def update(self, *, final: bool = False, **changes: Any) -> None:
        """Change where the work stands, and write it down unless that was just done."""
        self.now = self.now.model_copy(update=changes)
        if final or time.monotonic() - self.written >= EVERY:
            write_status(self.folder, self.now)
            self.written = time.monotonic()


def do_work(job: Mapping[str, Any]) -> WorkStatus:
    """Do what the page asked for, and return how it ended; it is written down as well.

    Args:
        job: ``home``, ``ledger``, ``action``, ``requests``, ``actor``, ``settings``; ``own_modules``, if the user named
            functions that may build networks.

    Raises:
        EffaceError: Another process works for the page.

    """
    folder = Path(job["home"]) / FOLDER
    make_folder(folder, "Name another folder for the desk: --desk DIR.")
    busy = EffaceError(
        "Another process works for this page.", "It does one thing at a time.", "Wait until it has ended."
    )
    with hold_lock(folder / STATUS, busy):
        begun = WorkStatus(
            action=job["action"], requests=tuple(job["requests"]), process=os.getpid(), state="running", began=utc_now()
        )
        shown = StatusProgress(folder, begun)
        try:
            _act(job, shown)
        except EffaceError as error:
            shown.update(final=True, state="failed", ended=utc_now(), error=(error.what, error.why, error.remedy))
        except Exception as error:  # the process ends here: the page has to hear of every fault
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"[:500]
            remedy = f"Please report it, with the file {folder / 'work.log'}."
            shown.update(
                final=True, state="failed", ended=utc_now(), error=("This is a fault in efface.", said, remedy)
            )
        else:
            shown.update(final=True, state="done", ended=utc_now())
    return shown.now


def _act(job: Mapping[str, Any], shown: StatusProgress) -> None:
    from efface.desk import open_desk
    from efface.runs.run import Progress
    from efface.training.networks.own_module import allow_own_module

    for name in job.get("own_modules", ()):
        allow_own_module(name)
    with open_desk(job["home"], job["ledger"], create=False) as desk:
        if job["action"] == "plan":
            shown.say("Finding the examples in the data")
            desk.plan(job["requests"], job["settings"], actor=job["actor"])
        else:
            progress = Progress(steps=shown.step, say=shown.say, status=shown.say)
            desk.run(job["requests"], actor=job["actor"], progress=progress)


if __name__ == "__main__":
    raise SystemExit(0 if do_work(json.loads(sys.stdin.read())).state == "done" else 1)
