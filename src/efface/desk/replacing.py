"""Replace files that belong together, such as an index and its keys: all of them, whenever the process is killed.

The new files are written into a folder beside the old ones and checked there. Renaming that folder is the moment from
which on they count; then they are moved to their places. A call that was cut before leaves the old files, and one that
was cut after it leaves the folder, with which the next call goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efface.desk.private import sync
from efface.desk.row_keys import is_keys_of
from efface.files import disk_errors

READY_END = ".erasing"
"""How the name ends of the folder with new files that are about to be moved to their places."""


class Replacement:
    """The replacement of the files that share a name up to their suffix.

    Args:
        path: One of them, but not the file of keys.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready = path.with_name(f".{path.stem}{READY_END}")
        self._half = self.ready.with_name(f"{self.ready.name}.tmp")

    @property
    def pending(self) -> bool:
        """Whether a call was cut while it moved the files."""
        return self.ready.is_dir()

    def current(self, path: Path) -> Path:
        """Where a file is, as long as it was not moved to its place: what counts is the new one."""
        fresh = self.ready / path.name
        return fresh if fresh.exists() else path

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield the folder for the new files; without an error in the block they replace the old ones."""
        with disk_errors(self.path):
            if self._half.exists():
                shutil.rmtree(self._half)
            self._half.mkdir()
            try:
                yield self._half
                for item in self._half.iterdir():
                    old = self.path.with_name(item.name)
                    shutil.copymode(old if old.exists() else self.path, item)
                    sync(item)
            except BaseException:
                shutil.rmtree(self._half)
                raise
            self._half.rename(self.ready)
            sync(self.path)
            self.finish()

    def finish(self) -> None:
        """Move the new files to their places, also those of a call that was cut while it did so: the keys last."""
        if not self.pending:
            return
        fresh = sorted(self.ready.iterdir(), key=lambda one: (is_keys_of(one.name, self.path), one.name))
        for item in fresh:
            if is_keys_of(item.name, self.path):
                others = (one for one in self.path.parent.iterdir() if is_keys_of(one.name, self.path))
                for old in [one for one in others if one.name != item.name]:
                    old.unlink()
            item.replace(self.path.with_name(item.name))
        self.ready.rmdir()
        sync(self.path)
