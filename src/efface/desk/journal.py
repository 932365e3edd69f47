"""The journal of a desk: every event of the ledger once more, in a file beside the runs.

The ledger is what counts. The journal shows when a ledger was restored from a backup: it is then behind its journal,
and the events that it lacks are here. Each line is written after its event was committed, and is on the disk before
anything else happens; what a killed process did not write, the next one does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from efface.errors import EffaceError
from efface.files import disk_errors, hold_lock, make_folder

JOURNAL_FILE = "journal.jsonl"
_TAIL = 1 << 16


@dataclass(frozen=True)
class JournalLine:
    """One event, as the ledger holds it."""

    seq: int
    subject: str
    body: str
    digest: str


class Journal:
    """The journal in the folder of a desk."""

    def __init__(self, home: Path) -> None:
        self.path = Path(home) / JOURNAL_FILE

    def last(self) -> JournalLine | None:
        """The last complete line; None if there is none."""
        if not self.path.exists():
            return None
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            start, found = size, b""
            while start > 0 and found.count(b"\n") < 2:
                step = min(max(_TAIL, len(found)), start)
                start -= step
                file.seek(start)
                found = file.read(step) + found
        lines = found[: found.rfind(b"\n") + 1].splitlines()
        return self._parse(lines[-1]) if lines else None

    def lines(self) -> Iterator[JournalLine]:
        """All complete lines, oldest first."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # the last one may have been cut
                    yield self._parse(line)

    def append(self, lines: Sequence[JournalLine]) -> None:
        """Add the lines that follow the last one; those that are there already are left out."""
        if not lines:
            return
        make_folder(self.path.parent, "Name another folder for the desk: --desk DIR.")
        with disk_errors(self.path), hold_lock(self.path):
            last = self.last()
            there = 0 if last is None else last.seq
            fresh = [one for one in lines if one.seq > there]
            new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                _drop_cut_line(file)
                file.write("".join(json.dumps(vars(one)) + "\n" for one in fresh).encode())
                file.flush()
                os.fsync(file.fileno())
            if new:
                _sync_folder(self.path.parent)

    def _parse(self, line: bytes) -> JournalLine:
        try:
            found = JournalLine(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise EffaceError(
                f"{self.path} is damaged.",
                f"A line of it is no event: {error}",
                "Restore it from a backup; without it, a ledger that was restored is not noticed.",
            ) from error
        return found


def _drop_cut_line(file: BinaryIO) -> None:
    """Go to the end of a file, without the line that a killed process did not finish."""
    end = file.seek(0, os.SEEK_END)
    at, keep = end, 0
    while at > 0 and not keep:
        start = max(0, at - _TAIL)
        file.seek(start)
        keep = start + file.read(at - start).rfind(b"\n") + 1
        at, keep = start, 0 if keep == start else keep
    file.truncate(keep)
    file.seek(keep)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
