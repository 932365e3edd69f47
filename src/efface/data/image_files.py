"""Decode image files into one array of pixels, once, in a memory-mapped cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from efface.data.array_files import USABLE, free_memory
from efface.data.picture_conversion import to_array
from efface.data.pixel_caches import describe_items
from efface.data.pixels import judge_depth
from efface.data.preprocessing import Orientation, Preprocessing
from efface.errors import EffaceError
from efface.files import disk_errors, make_folder

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
PIXELS, INDEX = "pixels.npy", "index.json"
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class ImageFile:
    """One image file with its key, label, caption, group and official part (``train`` or ``test``)."""

    key: str
    path: Path
    label: str = ""
    caption: str = ""
    group: str = ""
    official: str = ""


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


@dataclass(frozen=True)
class _Header:
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


def load_pixels(
    items: Sequence[ImageFile], options: ImageOptions
) -> tuple[np.ndarray, list[ImageFile], list[dict[str, str]]]:
    """Decode image files, or load their pixels from the cache.

    The cache is keyed by the options and by the key, path, size and times of every file, so a changed file is decoded
    again: the time at which its status changed cannot be set back. It is written under another name and renamed when
    complete.

    Args:
        items: The image files.
        options: How to decode them.

    Returns:
        The pixels, uint8 [N, C, H, W] (memory-mapped); the items that were decoded; and the ones that were left out
        because they are broken.

    Raises:
        EffaceError: An image cannot be read and ``options.skip_broken`` is not set, or the images differ in size and
            ``options.size`` is not set.

    """
    home = Path(options.cache).expanduser() if options.cache else cache_home() / "pixels"
    folder = home / _cache_key(items, options)
    cached = _read_cache(folder)
    if cached is None:
        with disk_errors(folder):
            _write_cache(folder, items, options)
        cached = _read_cache(folder)
        if cached is None:
            raise EffaceError(
                f"The decoded images in {folder} cannot be read back.",
                "They were written a moment ago.",
                "Check the disk, or choose another folder with --set data.cache=FOLDER.",
            )
    x, skipped = cached
    if skipped and not options.skip_broken:
        raise _broken_error(skipped, len(items))
    absent = {item["key"] for item in skipped}
    return x, [item for item in items if item.key not in absent], skipped


def _cache_key(items: Sequence[ImageFile], options: ImageOptions) -> str:
    """Hash everything that the decoded pixels depend on."""
    rules = (RULES, options.size, options.channels, options.white)
    sha = hashlib.sha256(repr(rules if options.preprocessing is None else (*rules, options.preprocessing)).encode())
    for item in items:
        try:
            status = item.path.stat()
            stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError:
            stamp = None
        sha.update(repr((item.key, str(item.path.absolute()), stamp)).encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:32]


def _read_cache(folder: Path) -> tuple[np.ndarray, list[dict[str, str]]] | None:
    """Load the pixels that an earlier run decoded, and the list of skipped files; None if they are incomplete."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        # Copy-on-write: torch needs a writable array, but nothing is ever written to the file.
        x = np.load(folder / PIXELS, mmap_mode="c", allow_pickle=False)
        skipped = [{name: str(item[name]) for name in ("key", "path", "error")} for item in index["skipped"]]
        return (x, skipped) if x.dtype == np.uint8 and x.ndim == 4 and list(x.shape) == index["shape"] else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RecursionError):
        return None


def _write_cache(folder: Path, items: Sequence[ImageFile], options: ImageOptions) -> None:
    """Decode the images into a temporary folder, then rename it to ``folder``."""
    make_folder(folder.parent, "Choose another folder with --set data.cache=FOLDER.")
    for old in folder.parent.glob(f"{'[0-9a-f]' * 32}.*.partial"):  # no other partial folder: it may be a run
        if time.time() - old.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _decode(partial, items, options)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError:
        # Another process may have finished the same folder first; its result is equally good.
        if _read_cache(folder) is None:
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(folder: Path, items: Sequence[ImageFile], options: ImageOptions) -> None:
    """Write the pixels and the index of all images into ``folder``."""
    headers, skipped = _read_headers(items, options)
    readable = [(item, header) for item, header in zip(items, headers, strict=True) if header is not None]
    height, width = _common_size([header for _, header in readable], options)
    channels = options.channels or (1 if all(header.gray for _, header in readable) else 3)

    peaks: list[tuple[int, bool]] = []
    alone = Lock()

    def decode(item: ImageFile) -> np.ndarray | str:
        try:
            with _open(item.path) as image, alone if image.width * image.height > ALONE else nullcontext():
                if (peak := _deep_peak(image)) is not None:
                    peaks.append(peak)
                array = to_array(image, options.size, channels, options.white or 65535, options.preprocessing)
            if array.shape != (channels, height, width):
                return f"it is {array.shape[2]} x {array.shape[1]}, but its header says otherwise"
            return np.ascontiguousarray(array)
        except MemoryError:
            raise
        except Exception as error:
            return _describe_error(error)

    count, files = 0, [item for item, _ in readable]
    with open(folder / PIXELS, "wb") as file:
        start = _write_header(file, (len(files), channels, height, width))
        for item, result in zip(files, _map_in_threads(decode, files), strict=True):
            if isinstance(result, str):
                skipped.append(_describe_broken(item, result))
                if not options.skip_broken:
                    raise _broken_error(skipped, len(items))
            else:
                file.write(result.data)
                count += 1
        # The .npy header is padded for a longer first axis, so rewriting it does not move the pixels.
        file.seek(0)
        if _write_header(file, (count, channels, height, width)) != start:
            raise RuntimeError("the header of the pixels changed its length")
    if not count:
        raise _broken_error(skipped, len(items))
    if peaks:
        judge_depth(max(peak for peak, _ in peaks), len(peaks), options.white, reduced=any(cut for _, cut in peaks))
    index = {"shape": [count, channels, height, width], "skipped": skipped}
    index |= describe_items([item.key for item in items], [item.path for item in items])
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _read_headers(
    items: Sequence[ImageFile], options: ImageOptions
) -> tuple[list[_Header | None], list[dict[str, str]]]:
    """Read the header of every image (None if it is broken), and list the broken ones."""
    rules = options.preprocessing or Preprocessing()

    def read(item: ImageFile) -> _Header | str:
        try:
            with _open(item.path) as image:
                turned = rules.orientation is Orientation.UPRIGHT and _is_rotated(image)
                width, height = image.size[::-1] if turned else image.size
                if width * height == 1:
                    return "it has only one pixel"
                return _Header(width, height, image.mode in GRAY or image.mode.startswith("I;16"))
        except MemoryError:
            raise
        except Exception as error:
            return _describe_error(error)

    results = list(_map_in_threads(read, items))
    broken = [(item, result) for item, result in zip(items, results, strict=True) if isinstance(result, str)]
    skipped = [_describe_broken(item, error) for item, error in broken]
    if skipped and (not options.skip_broken or len(skipped) == len(items)):
        raise _broken_error(skipped, len(items))
    return [None if isinstance(result, str) else result for result in results], skipped


def _open(path: Path) -> Image.Image:
    """Open an image; raise if decoding it takes more memory than there is."""
    image = Image.open(path)
    need = image.width * image.height * PIXEL_BYTES
    if image.width * image.height > ALONE and need > USABLE * (free := free_memory()):
        image.close()
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, which take {need / 2**30:.1f} GB of memory, and "
            f"{free / 2**30:.1f} GB are free"
        )
    return image


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


def _common_size(headers: Sequence[_Header], options: ImageOptions) -> tuple[int, int]:
    """Return the height and width of all images; raise if they differ and no size is given."""
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


def _map_in_threads(function: Any, items: Sequence[ImageFile]) -> Iterator[Any]:
    """Apply ``function`` to every item in order; only a few results are in memory at a time."""
    threads = min(8, os.cpu_count() or 1)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # large pictures are judged by the memory: _open
    try:
        with ThreadPoolExecutor(threads) as pool:
            remaining = iter(items)
            while chunk := list(islice(remaining, 8 * threads)):
                yield from pool.map(function, chunk)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    """Write the .npy header for uint8 pixels of this shape, and return the position after it."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return int(file.tell())


def _describe_broken(item: ImageFile, error: str) -> dict[str, str]:
    return {"key": item.key, "path": str(item.path), "error": error}


def _describe_error(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    heic = str(error).lower().rstrip("'").endswith((".heic", ".heif", ".hif"))
    if heic and isinstance(error, UnidentifiedImageError):
        return "it cannot be decoded here (pip install pillow-heif)"
    return str(error) or type(error).__name__


def _broken_error(skipped: Sequence[dict[str, str]], total: int) -> EffaceError:
    shown = "; ".join(f"'{item['key']}' at {item['path']}: {item['error']}" for item in skipped[:5])
    all_broken = len(skipped) == total
    return EffaceError(
        f"{len(skipped)} of {total} images cannot be read.",
        f"{shown}{'; ...' if len(skipped) > 5 else ''}.",
        "Repair the files." if all_broken else "Repair the files, or skip them with --set data.skip_broken=true.",
    )
