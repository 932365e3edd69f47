"""Copies of the encoded pictures of a table, since a row of a Parquet file cannot be read without those around it.

They are made when the first picture is needed, into the folder of caches, and listed there like caches of decoded
pictures. Where all pictures are decoded into one array, the copies are removed after it was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from efface.data.picture_places import FilePart
from efface.data.pixel_caches import CACHE_INDEX, describe_items
from efface.data.shards.tables import TableShard
from efface.files import disk_errors, make_folder

BYTES, ENDS = "pictures.bin", "ends.npy"


class PictureCopies:
    """The encoded pictures of one column of a table.

    Args:
        table: The table.
        column: The column with the pictures.
        home: The folder of caches.
        keys: The keys of the rows, for the list of what is copied.

    """

    def __init__(self, table: TableShard, column: str, home: Path, keys: Sequence[str]) -> None:
        self.table, self.column, self.keys = table, column, keys
        status = table.path.stat()
        facts = (str(table.path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, column, list(keys))
        self.folder = home / hashlib.sha256(repr(("copies", *facts)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self.made_here = False
        self._ends: np.ndarray | None = None
        self._lock = Lock()

    def read(self, row: int) -> bytes:
        """Read the encoded picture of a row.

        Raises:
            ValueError: The row has none.

        """
        for last in (False, True):
            ends = self._places()
            start, end = int(ends[row - 1]) if row else 0, int(ends[row])
            if start == end:
                raise ValueError("the row holds no bytes of a picture")
            try:
                return FilePart(start, end - start).read(self.folder / BYTES)
            except OSError:
                self._ends = None  # another process may have removed the copies that it had made itself
                if last:
                    raise
        raise AssertionError("the loop returns or raises")

    def release(self) -> None:
        """Remove the copies, if this process made them."""
        if self.made_here:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._ends, self.made_here = None, False

    def _places(self) -> np.ndarray:
        """Where each picture ends in the copies, which are made if they are not there."""
        with self._lock:
            if self._ends is None:
                self._ends = self._open()
            if self._ends is None:
                self._make()
                self._ends = self._open()
            if self._ends is None:
                raise OSError(f"the copies in {self.folder} cannot be read back")
            return self._ends

    def _open(self) -> np.ndarray | None:
        try:
            ends = np.load(self.folder / ENDS, allow_pickle=False)
            size = (self.folder / BYTES).stat().st_size
        except (OSError, ValueError, EOFError):
            return None
        fits = ends.dtype == np.int64 and ends.shape == (self.table.rows,) and (not len(ends) or ends[-1] == size)
        return ends if fits and (np.diff(ends, prepend=0) >= 0).all() else None

    def _make(self) -> None:
        make_folder(self.folder.parent, "Choose another folder with --set data.cache=FOLDER.")
        partial = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with disk_errors(self.folder):
            partial.mkdir()
            try:
                with open(partial / BYTES, "wb") as file:
                    sizes = [file.write(picture or b"") for picture in self.table.pictures(self.column)]
                np.save(partial / ENDS, np.cumsum(sizes, dtype=np.int64))
                index = describe_items(self.keys, [self.table.path]) | {"encoded": True}
                (partial / CACHE_INDEX).write_text(json.dumps(index), encoding="utf-8")
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(partial, self.folder)
                self.made_here = True
            except OSError:
                if self._open() is None:  # another process may have made the same copies first
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self.table.path, self.column, self.folder.parent, self.keys)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path, column, home, keys = state["arguments"]
        self.__init__(TableShard(path), column, home, keys)


class RowPlace:
    """A picture in a row of a table."""

    __slots__ = ("copies", "row")

    def __init__(self, copies: PictureCopies, row: int) -> None:
        self.copies, self.row = copies, row

    @property
    def stamp(self) -> tuple[Any, ...]:
        """Its column and row."""
        return self.copies.column, self.row

    def open(self, path: Path) -> BinaryIO:  # the copies know the file
        """Open the picture as a file of its own."""
        return io.BytesIO(self.copies.read(self.row))
