"""Pixels that are decoded each time when they are needed, for data that do not fit into memory. NumPy and Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from efface.errors import EffaceError

MOST_THREADS = 16
"""Decoding uses as many threads as there are processors, at most this many."""
PIXEL_BYTES_DIGEST, CONTENT_BYTES_DIGEST = 16, 8
"""Length of the digest of the pixels, and of each of the two digests of key, pixels and caption."""


class EncodedPicture(Protocol):
    """A picture in a file, such as an :class:`efface.data.image_files.ImageFile`."""

    @property
    def key(self) -> str:
        """Its key."""
        ...

    @property
    def path(self) -> Path:
        """The file that it is in."""
        ...

    @property
    def caption(self) -> str:
        """Its caption; empty if it has none."""
        ...


class DecodesPictures(Protocol):
    """What decodes pictures, such as :class:`efface.data.image_files.PictureDecoder`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every result."""
        ...

    def decode(self, item: Any) -> np.ndarray | str:
        """Decode a picture to uint8 [C, H, W]; a text says why it cannot be decoded."""
        ...


class LazyPixels:
    """An array of pixels, uint8 [N, C, H, W], whose rows are decoded from their files whenever they are taken.

    It stands where such an array does: ``x[row]``, ``x[rows]`` and ``x[first:last]`` give arrays, decoded in threads.
    Each picture is compared with the digest of when the data were loaded, so a file that changes meanwhile is noticed.

    Args:
        items: The pictures, N of them.
        decoder: What decodes each.
        digests: What :func:`digest_picture` gave for each, uint8 [N, DIGEST_BYTES].
        home: The folder of caches, in which other copies of the pictures may be.

    Example:
        >>> data = load("pictures/", size=224, decode="lazy")  # doctest: +SKIP
        >>> data.x[[3, 1]].shape  # doctest: +SKIP
        (2, 3, 224, 224)

    """

    DIGEST_BYTES = PIXEL_BYTES_DIGEST + 2 * CONTENT_BYTES_DIGEST
    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, items: Sequence[EncodedPicture], decoder: DecodesPictures, digests: np.ndarray, home: Path
    ) -> None:
        self.items, self.decoder, self.digests, self.home = list(items), decoder, digests, home
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._awaited: dict[int, Future[np.ndarray]] = {}
        self._lock = Lock()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number, channels, height and width."""
        return len(self.items), *self.decoder.shape

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Decode one row (an integer), or several (a slice, integers or booleans), in their order."""
        if isinstance(rows, (int, np.integer)):
            return self._decode(range(len(self))[int(rows)])
        if isinstance(rows, slice):
            wanted = np.arange(len(self))[rows]
        else:
            wanted = np.asarray(rows)
            if wanted.ndim != 1 or (len(wanted) and wanted.dtype.kind not in "iub"):
                raise IndexError("pictures are taken by a row, a slice of rows, or a list of rows")
            wanted = np.arange(len(self))[wanted.astype(np.int64) if not len(wanted) else wanted]
        pixels = np.empty((len(wanted), *self.decoder.shape), np.uint8)
        if not len(wanted):
            return pixels
        with self._lock:
            awaited, self._awaited = self._awaited, {}
            pool = self._threads()
            order = dict.fromkeys(wanted.tolist())
            futures = {row: awaited.pop(row, None) or pool.submit(self._decode, row) for row in order}
        try:
            for place, row in enumerate(wanted.tolist()):
                pixels[place] = futures[row].result()
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
        return pixels

    def expect(self, rows: Any) -> None:
        """Begin to decode the rows that are taken next, while something else is computed."""
        with self._lock:
            pool = self._threads()
            for future in self._awaited.values():
                future.cancel()
            self._awaited = {row: pool.submit(self._decode, row) for row in dict.fromkeys(np.asarray(rows).tolist())}

    def take(self, rows: np.ndarray) -> LazyPixels:
        """The pictures at ``rows`` alone, decoded as lazily."""
        chosen = np.asarray(rows, np.int64)
        return LazyPixels([self.items[row] for row in chosen], self.decoder, self.digests[chosen], self.home)

    def pixels_digest(self, row: int) -> bytes:
        """BLAKE2b of the pixels of a row, 16 bytes, without decoding it."""
        return self.digests[row, :PIXEL_BYTES_DIGEST].tobytes()

    def content_digest(self, row: int, key: str, caption: str | None) -> bytes | None:
        """The first 8 bytes of BLAKE2b of key, pixels and caption; None if the file says another key or caption."""
        item, start = self.items[row], PIXEL_BYTES_DIGEST + (CONTENT_BYTES_DIGEST if caption is not None else 0)
        if item.key != key or caption not in (None, item.caption):
            return None
        return self.digests[row, start : start + CONTENT_BYTES_DIGEST].tobytes()

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        """Refuse to become one array by accident: that is what does not fit into memory."""
        raise TypeError("these pictures are decoded when they are needed; take some rows of them at a time")

    def __getstate__(self) -> dict[str, Any]:
        return {"items": self.items, "decoder": self.decoder, "digests": self.digests, "home": self.home}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def _threads(self) -> ThreadPoolExecutor:
        """The threads of this process; a forked one has none of its parent's."""
        if self._pool is None or self._process != os.getpid():
            processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._pool, self._process = ThreadPoolExecutor(min(MOST_THREADS, processors), "decode"), os.getpid()
        return self._pool

    def _decode(self, row: int) -> np.ndarray:
        item = self.items[row]
        pixels = self.decoder.decode(item)
        if isinstance(pixels, str):
            raise EffaceError(
                f"The picture '{item.key}' cannot be read any more.",
                f"At {item.path}: {pixels}.",
                "Restore it, and run the same command again.",
            )
        if blake2b(pixels.data, digest_size=PIXEL_BYTES_DIGEST).digest() != self.pixels_digest(row):
            raise EffaceError(
                f"The picture '{item.key}' changed while it was in use.",
                f"{item.path} is not as it was when the data were loaded.",
                "Run the same command again; pictures must not change meanwhile.",
            )
        return pixels


Pixels = np.ndarray | LazyPixels
"""Pixels of all examples, uint8 [N, C, H, W]: an array, or what decodes its rows when they are taken."""


def digest_picture(item: EncodedPicture, pixels: np.ndarray) -> bytes:
    """Digest the pixels; key and pixels; key, pixels and caption: what is asked of every picture again and again."""
    content = blake2b(f"{item.key}\0".encode("utf-8", "surrogateescape"), digest_size=CONTENT_BYTES_DIGEST)
    content.update(pixels.data)
    captioned = content.copy()
    captioned.update(item.caption.encode("utf-8", "surrogatepass"))
    return blake2b(pixels.data, digest_size=PIXEL_BYTES_DIGEST).digest() + content.digest() + captioned.digest()
