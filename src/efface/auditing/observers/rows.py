"""Arrays that are written a few rows at a time: in memory, or where they are large in a file that has no name."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from efface.data import array_files
from efface.data.array_files import ALIGNMENT
from efface.files import disk_errors


class RowArrays:
    """Float32 arrays of equally many rows, which come in order and a few at a time.

    A file is used if there is a folder for it and the arrays take more than 16 MiB. It has no name, so that it is gone
    as soon as nothing uses the arrays, however the process ends. It is written, and mapped only when all is there: a
    full disk is an error and not the end of the process, and pages that wait to be written do not count as its memory.

    Args:
        count: Number of rows.
        first: Some rows of each array by name, for the shapes.
        folder: Folder of the file; None: everything stays in memory.

    Example:
        >>> held = RowArrays(2, {"norm": np.zeros(1)}, None)
        >>> for row in range(2):
        ...     held.write(row, {"norm": np.full(1, row + 0.5)})
        >>> held.finish()["norm"]
        array([0.5, 1.5], dtype=float32)

    """

    def __init__(self, count: int, first: Mapping[str, np.ndarray], folder: Path | None) -> None:
        self.shapes = {name: (count, *value.shape[1:]) for name, value in first.items()}
        self.places: dict[str, int] = {}
        size = 0
        for name, shape in self.shapes.items():
            self.places[name] = size
            size += -(-4 * math.prod(shape) // ALIGNMENT) * ALIGNMENT
        self.folder = folder if size > array_files.MAPPED_BYTES else None
        self.arrays: dict[str, np.ndarray] = {}
        if self.folder is None:
            self.arrays = {name: np.empty(shape, np.float32) for name, shape in self.shapes.items()}
        else:
            with disk_errors(self.folder):
                self.file = tempfile.TemporaryFile(dir=self.folder, prefix=".efface-", buffering=0)  # noqa: SIM115

    def write(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        """Store rows of every array, from row ``start`` on.

        Raises:
            EffaceError: The disk is full.

        """
        for name, value in rows.items():
            if self.folder is None:
                self.arrays[name][start : start + len(value)] = value
                continue
            plain = np.ascontiguousarray(value, np.float32).reshape(-1).view(np.uint8)
            try:
                with disk_errors(self.folder):
                    self.file.seek(self.places[name] + 4 * start * math.prod(self.shapes[name][1:]))
                    while len(plain):
                        plain = plain[self.file.write(plain.data) :]
            except BaseException:
                self.file.close()
                raise

    def finish(self) -> dict[str, np.ndarray]:
        """The arrays, when every row is there; those of a file cannot be written any more."""
        if self.folder is None:
            return self.arrays
        whole = np.memmap(self.file, np.uint8, "r")
        self.file.close()
        for name, shape in self.shapes.items():
            place = self.places[name]
            self.arrays[name] = whole[place : place + 4 * math.prod(shape)].view(np.float32).reshape(shape)
        return self.arrays
