"""Where the bytes of a picture are: in a file of its own, in a part of a larger one, or in a row of a table."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

READ_AT_ONCE = 2**16
"""Bytes that are read at once: most headers of pictures are shorter."""


class PicturePlace(Protocol):
    """Where a picture is in a file that holds several."""

    def open(self, path: Path) -> BinaryIO:
        """Open the bytes of the picture; ``path`` is the file that holds it."""
        ...

    @property
    def stamp(self) -> tuple[Any, ...]:
        """What tells the picture from others in the same file."""
        ...


class FilePart:
    """A stretch of a file, such as a member of a tar."""

    __slots__ = ("offset", "size")

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        """Where it begins, in bytes."""
        self.size = size
        """How long it is, in bytes."""

    @property
    def stamp(self) -> tuple[Any, ...]:
        """Its place in the file."""
        return self.offset, self.size

    def open(self, path: Path) -> BinaryIO:
        """Open it as a file of its own; nothing before or after it can be read."""
        return io.BufferedReader(_PartReader(path, self.offset, self.size), READ_AT_ONCE)

    def read(self, path: Path) -> bytes:
        """Read all of it.

        Raises:
            OSError: The file is shorter than that.

        """
        with self.open(path) as file:
            content = file.read()
        if len(content) != self.size:
            raise OSError(f"{path} ends in the middle of a picture")
        return content


class _PartReader(io.RawIOBase):
    """Reads a stretch of a file; its position is its own, so several threads can read the same file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__()
        self._start, self._size, self._place = offset, size, 0
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._place))
        os.lseek(self._file, self._start + self._place, os.SEEK_SET)
        found = os.read(self._file, wanted)
        buffer[: len(found)] = found
        self._place += len(found)
        return len(found)

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
