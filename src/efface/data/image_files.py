"""Decode image files, each by itself, to pixels of one size, in threads."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from efface.data.array_files import USABLE, free_memory
from efface.data.picture_conversion import to_array
from efface.data.picture_places import PicturePlace
from efface.data.pixels import judge_depth
from efface.data.preprocessing import Orientation, Preprocessing
from efface.errors import EffaceError, suggest_name

RULES = 2
"""Version of the decoding rules; increase it when they change, so that older caches are not used."""
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2")
)
MORE_SUFFIXES = frozenset(
    (".jfif", ".jpe", ".jif", ".avif", ".avifs", ".heic", ".heif", ".hif", ".apng", ".dib", ".pnm", ".tga", ".qoi",
     ".j2k", ".j2c", ".jpf", ".jpx", ".jpc", ".jxl", ".mpo")
)  # fmt: skip
"""Suffixes that are read where Pillow, with its plugins, can decode them."""
PIXEL_BYTES = 16
"""Memory that decoding takes for each pixel: four bytes, in up to four copies."""
ALONE = 40_000_000
"""Pixels from which a picture is decoded alone, so that not all threads hold a large one."""
GRAY = frozenset(("1", "L", "LA", "La", "I"))


class Decoding(StrEnum):
    """When pictures are decoded."""

    AUTO = "auto"
    """Once, into one array; when they are needed, if that array would take too much of the memory."""
    MEMORY = "memory"
    """Once, into one array that is kept in a folder and mapped into memory."""
    LAZY = "lazy"
    """Each time when they are needed, in threads; nothing decoded is kept."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One picture with its key, label, caption, group and official part (``train`` or ``test``)."""

    key: str
    path: Path
    label: str = ""
    caption: str = ""
    group: str = ""
    official: str = ""
    place: PicturePlace | None = None
    """Where in the file ``path`` the picture is; None: it is the whole file."""


@dataclass(frozen=True)
class ImageOptions:
    """How image files are decoded."""

    size: int | None = None
    """Side of the images in pixels; None: the images keep their size, and it must be the same for all."""
    channels: int | None = None
    """1 (gray) or 3 (color); None: 1 if all images are gray."""
    skip_broken: bool = False
    """Leave out images that cannot be read instead of raising."""
    cache: str | None = None
    """Folder for decoded pixels; None: a folder in :func:`cache_home`."""
    white: int | None = None
    """The value of white in pictures with 16 bits; None: 65535, if the values in them reach into the upper half."""
    preprocessing: Preprocessing | None = None
    """How pictures are resized and cropped; None: by ``size``."""
    decode: str = Decoding.AUTO
    """When pictures are decoded: a :class:`Decoding`."""

    def __post_init__(self) -> None:
        if self.size is not None and self.preprocessing is not None:
            raise EffaceError(
                "data.size and data.preprocessing were both given.",
                "Each says how pictures are resized.",
                "Leave out data.size.",
            )
        for name, value, fits in (
            ("size", self.size, lambda size: size >= 1),
            ("channels", self.channels, lambda channels: channels in (1, 3)),
            ("white", self.white, lambda white: 1 <= white <= 65535),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not fits(value)):
                kinds = {
                    "size": "It is a number of pixels, at least 1.",
                    "channels": "It is 1 (gray) or 3 (color).",
                    "white": "It is the largest value, such as 4095 for 12 bits, at most 65535.",
                }
                raise EffaceError(f"The option '{name}' cannot be {value!r}.", kinds[name])
        if self.decode not in list(Decoding):
            raise EffaceError(
                f"The option 'decode' cannot be {self.decode!r}.{suggest_name(str(self.decode), list(Decoding))}",
                f"It is {', '.join(Decoding)}.",
            )


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The properties of an image that are known before its pixels are decoded."""

    width: int
    height: int
    gray: bool


def cache_home() -> Path:
    """Return the folder for files that can be recreated: ``$XDG_CACHE_HOME/efface``, or ``~/.cache/efface``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "efface"


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the image files that are read."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    return SUFFIXES | (MORE_SUFFIXES & set(Image.registered_extensions()))


class PictureDecoder:
    """Decodes pictures to pixels of one shape; several threads may use it.

    Args:
        options: How pictures are decoded.
        shape: Channels, height and width of every result.

    """

    def __init__(self, options: ImageOptions, shape: tuple[int, int, int]) -> None:
        self.options, self.shape = options, shape
        self._peaks: list[tuple[int, bool]] = []
        self._alone = Lock()

    def decode(self, item: ImageFile) -> np.ndarray | str:
        """Decode a picture to uint8 [C, H, W]; a text says why it cannot be decoded."""
        options, (channels, height, width) = self.options, self.shape
        try:
            with _open(item) as image, self._alone if image.width * image.height > ALONE else nullcontext():
                if (peak := _deep_peak(image)) is not None:
                    self._peaks.append(peak)
                array = to_array(image, options.size, channels, options.white or 65535, options.preprocessing)
            if array.shape != (channels, height, width):
                return f"it is {array.shape[2]} x {array.shape[1]}, but its header says otherwise"
            return np.ascontiguousarray(array)
        except MemoryError:
            raise
        except Exception as error:
            return _describe_error(error)

    def judge_depth(self) -> None:
        """Refuse what was decoded if the pictures have more than 8 bits and what is white in them must be stated."""
        if self._peaks:
            reduced = any(cut for _, cut in self._peaks)
            judge_depth(max(peak for peak, _ in self._peaks), len(self._peaks), self.options.white, reduced=reduced)

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options, "shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def read_headers(
    items: Sequence[ImageFile], options: ImageOptions
) -> tuple[list[ImageHeader | None], list[dict[str, str]]]:
    """Read the header of every image (None if it is broken), and list the broken ones.

    Raises:
        EffaceError: Some are broken and ``options.skip_broken`` is not set, or all are.

    """
    rules = options.preprocessing or Preprocessing()

    def read(item: ImageFile) -> ImageHeader | str:
        try:
            with _open(item) as image:
                turned = rules.orientation is Orientation.UPRIGHT and _is_rotated(image)
                width, height = image.size[::-1] if turned else image.size
                if width * height == 1:
                    return "it has only one pixel"
                return ImageHeader(width, height, image.mode in GRAY or image.mode.startswith("I;16"))
        except MemoryError:
            raise
        except Exception as error:
            return _describe_error(error)

    results = list(map_in_threads(read, items))
    broken = [(item, result) for item, result in zip(items, results, strict=True) if isinstance(result, str)]
    skipped = [describe_broken(item, error) for item, error in broken]
    if skipped and (not options.skip_broken or len(skipped) == len(items)):
        raise broken_error(skipped, len(items))
    return [None if isinstance(result, str) else result for result in results], skipped


@contextmanager
def _open(item: ImageFile) -> Iterator[Image.Image]:
    """Open an image; raise if decoding it takes more memory than there is."""
    source = nullcontext(item.path) if item.place is None else item.place.open(item.path)
    with source as file, _large_pictures(), Image.open(file) as image:
        need = image.width * image.height * PIXEL_BYTES
        if image.width * image.height > ALONE and need > USABLE * (free := free_memory()):
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, which take {need / 2**30:.1f} GB of memory, and "
                f"{free / 2**30:.1f} GB are free"
            )
        yield image


class _LargePictures:
    """How many threads open a picture now, and Pillow's own limit, which holds again when none does."""

    lock, count = Lock(), 0
    limit: int | None = None


@contextmanager
def _large_pictures() -> Iterator[None]:
    """Judge large pictures by the memory (:func:`_open`), not by Pillow's fixed limit."""
    with _LargePictures.lock:
        if not _LargePictures.count:
            _LargePictures.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _LargePictures.count += 1
    try:
        yield
    finally:
        with _LargePictures.lock:
            _LargePictures.count -= 1
            if not _LargePictures.count:
                Image.MAX_IMAGE_PIXELS = _LargePictures.limit


def _deep_peak(image: Image.Image) -> tuple[int, bool] | None:
    """Return the largest value of an image with more than 8 bits, and whether Pillow keeps only the upper 8 bits."""
    tiles: Any = getattr(image, "tile", None)  # how the file stores its pixels, until they are decoded
    raw = tiles[0][3] if tiles else ""
    raw = str(raw[0] if isinstance(raw, tuple) and raw else raw)
    if image.mode.startswith("I"):
        return int(np.max(np.asarray(image))), False
    if ";16" in raw:
        bands = image.convert("L" if image.mode in ("L", "LA") else "RGB")  # without transparency
        return int(np.max(np.asarray(bands))) * 256 + 255, True
    return None


def _is_rotated(image: Image.Image) -> bool:
    """Return whether the EXIF rotation swaps width and height."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole file to find EXIF data behind the pixels
    if image.getexif().get(0x0112, 1) not in (5, 6, 7, 8):
        return False
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    return tags is None or image.size == (tags.get(256), tags.get(257))  # newer Pillow has swapped a TIFF's already


def common_shape(headers: Sequence[ImageHeader], options: ImageOptions) -> tuple[int, int, int]:
    """Return the channels, height and width that all images get; raise if sizes differ and no size is given."""
    channels = options.channels or (1 if all(header.gray for header in headers) else 3)
    return channels, *_common_size(headers, options)


def _common_size(headers: Sequence[ImageHeader], options: ImageOptions) -> tuple[int, int]:
    if options.size is not None:
        return options.size, options.size
    if options.preprocessing is not None and options.preprocessing.output is not None:
        return options.preprocessing.output
    sizes = Counter((header.width, header.height) for header in headers)
    if len(sizes) > 1:
        shown = ", ".join(f"{w} x {h} ({count})" for (w, h), count in sizes.most_common(5))
        shorter = sorted(min(size) for size in sizes)
        raise EffaceError(
            f"The images have {len(sizes)} sizes: {shown}{', ...' if len(sizes) > 5 else ''}.",
            "A network is trained on images of one size.",
            "Add --set data.size=N: the shorter side is scaled to N pixels, then the center is cropped. "
            f"(The shorter sides have {shorter[0]} to {shorter[-1]} pixels now.)",
        )
    width, height = next(iter(sizes))
    return height, width


def map_in_threads(function: Callable[[ImageFile], Any], items: Sequence[ImageFile]) -> Iterator[Any]:
    """Apply ``function`` to every item in order; only a few results are in memory at a time."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        remaining = iter(items)
        while chunk := list(islice(remaining, 8 * threads)):
            yield from pool.map(function, chunk)


def describe_broken(item: ImageFile, error: str) -> dict[str, str]:
    """Describe a picture that cannot be read: its key, its file, and why."""
    return {"key": item.key, "path": str(item.path), "error": error}


def _describe_error(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    heic = str(error).lower().rstrip("'").endswith((".heic", ".heif", ".hif"))
    if heic and isinstance(error, UnidentifiedImageError):
        return "it cannot be decoded here (pip install pillow-heif)"
    if isinstance(error, UnidentifiedImageError) and "<" in str(error):
        return "cannot identify it as an image"  # a part of a file, whose name Pillow does not know
    return str(error) or type(error).__name__


def broken_error(skipped: Sequence[dict[str, str]], total: int) -> EffaceError:
    """Build the error for pictures that cannot be read, of ``total``."""
    shown = "; ".join(f"'{item['key']}' at {item['path']}: {item['error']}" for item in skipped[:5])
    all_broken = len(skipped) == total
    return EffaceError(
        f"{len(skipped)} of {total} images cannot be read.",
        f"{shown}{'; ...' if len(skipped) > 5 else ''}.",
        "Repair the files." if all_broken else "Repair the files, or skip them with --set data.skip_broken=true.",
    )
