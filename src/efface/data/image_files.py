"""Image files to one array of pixels, decoded once into a memory-mapped cache.

Rules, in this order: the rotation noted in EXIF is applied; of an animation the first frame counts; 16-bit
gray is scaled to 8 bits; what is transparent is put on white; then gray (luminance) or RGB. With ``size`` the
largest centered square is scaled to ``size`` x ``size``, antialiased (bilinear): the shorter side scaled to
``size``, then a center crop. Smaller images, down to one pixel, are scaled up.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from efface.errors import EffaceError
from efface.files import disk_errors

RULES = 1
"""Raise it when decoding changes: older caches are then decoded anew."""
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2")
)
GRAY = frozenset(("1", "L", "LA", "La", "I"))
PIXELS, INDEX = "pixels.npy", "index.json"
STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class ImageFile:
    """One image file and what its data set says of it."""

    key: str
    path: Path
    label: str = ""
    caption: str = ""
    group: str = ""
    official: str = ""


@dataclass(frozen=True)
class ImageOptions:
    """How files become pixels."""

    size: int | None = None
    channels: int | None = None
    skip_broken: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        for name, value, fits in (
            ("size", self.size, lambda one: one >= 1),
            ("channels", self.channels, lambda one: one in (1, 3)),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not fits(value)):
                raise EffaceError(
                    f"The option '{name}' cannot be {value!r}.",
                    "Pixels along a side, at least 1." if name == "size" else "1 (gray) or 3 (color).",
                )


@dataclass(frozen=True)
class _Header:
    """What is known of an image before its pixels are read."""

    width: int
    height: int
    gray: bool


def cache_home() -> Path:
    """Where efface keeps what it can make again: ``$XDG_CACHE_HOME/efface``, else ``~/.cache/efface``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "efface"


def load_pixels(
    items: Sequence[ImageFile], options: ImageOptions
) -> tuple[np.ndarray, list[ImageFile], list[dict[str, str]]]:
    """The images as uint8 [N, C, H, W] (memory-mapped), the items they are of, and the broken ones left out.

    Raises at a broken image, with its key and path, unless ``options.skip_broken``. The cache is keyed by the
    options and by every file's key, path, length and time, so that a changed file is decoded anew; it is
    written under another name and renamed when complete.
    """
    home = Path(options.cache).expanduser() if options.cache else cache_home() / "pixels"
    place = home / _digest(items, options)
    found = _cached(place)
    if found is None:
        with disk_errors(place):
            _decode_into(place, items, options)
        found = _cached(place)
        if found is None:
            raise EffaceError(
                f"The decoded images in {place} cannot be read back.",
                "They were written a moment ago.",
                "Check the disk, or choose another folder with --set data.cache=FOLDER.",
            )
    x, skipped = found
    if skipped and not options.skip_broken:
        raise _broken(skipped, len(items))
    absent = {one["key"] for one in skipped}
    return x, [item for item in items if item.key not in absent], skipped


def to_array(image: Image.Image, size: int | None, channels: int) -> np.ndarray:
    """One image by the module's rules, uint8 [C, H, W]."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"its pixels go from {deep.min()} to {deep.max()}, and 0 to 65535 is the most")
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        side = min(image.size)
        left, upper = (image.width - side) / 2, (image.height - side) / 2
        # Cropping first keeps a 1 x 10 000 image from becoming 32 x 320 000 on its way.
        box = (left, upper, left + side, upper + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _digest(items: Sequence[ImageFile], options: ImageOptions) -> str:
    whole = hashlib.sha256(repr((RULES, options.size, options.channels)).encode())
    for item in items:
        try:
            status = item.path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = None
        whole.update(repr((item.key, str(item.path.absolute()), stamp)).encode("utf-8", "surrogateescape"))
    return whole.hexdigest()[:32]


def _cached(place: Path) -> tuple[np.ndarray, list[dict[str, str]]] | None:
    """What an earlier run decoded, if it is all there."""
    try:
        index = json.loads((place / INDEX).read_text(encoding="utf-8"))
        # Copy-on-write: torch wants a writable array, and nothing ever reaches the file.
        x = np.load(place / PIXELS, mmap_mode="c", allow_pickle=False)
        return (x, index["skipped"]) if list(x.shape) == index["shape"] else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _decode_into(place: Path, items: Sequence[ImageFile], options: ImageOptions) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob("*.partial"):
        if time.time() - old.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    half = place.with_name(f"{place.name}.{os.getpid()}.partial")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    try:
        _decode(half, items, options)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(half, place)
    except OSError:
        # Another process may have finished the same folder first: then its work is as good.
        if _cached(place) is None:
            raise
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _decode(half: Path, items: Sequence[ImageFile], options: ImageOptions) -> None:
    headers, skipped = _headers(items, options)
    good = [(item, header) for item, header in zip(items, headers, strict=True) if header is not None]
    height, width = _common_size([header for _, header in good], options)
    channels = options.channels or (1 if all(header.gray for _, header in good) else 3)

    def decode(item: ImageFile) -> np.ndarray | str:
        try:
            with Image.open(item.path) as image:
                array = to_array(image, options.size, channels)
            if array.shape != (channels, height, width):
                return f"it is {array.shape[2]} x {array.shape[1]}, and its header says otherwise"
            return np.ascontiguousarray(array)
        except MemoryError:
            raise
        except Exception as error:
            return _reason(error)

    count = 0
    with open(half / PIXELS, "wb") as file:
        start = _write_header(file, (len(good), channels, height, width))
        for item, result in zip((item for item, _ in good), _in_threads(decode, [i for i, _ in good]), strict=True):
            if isinstance(result, str):
                skipped.append(_entry(item, result))
                if not options.skip_broken:
                    raise _broken(skipped, len(items))
            else:
                file.write(result.data)
                count += 1
        # The header of .npy leaves room for a longer first axis: rewriting it moves nothing.
        file.seek(0)
        if _write_header(file, (count, channels, height, width)) != start:
            raise RuntimeError("the header of the pixels changed its length")
    if not count:
        raise _broken(skipped, len(items))
    index = {"shape": [count, channels, height, width], "skipped": skipped}
    (half / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _headers(items: Sequence[ImageFile], options: ImageOptions) -> tuple[list[_Header | None], list[dict[str, str]]]:
    """Every image's header, None where it is broken, and the broken ones."""

    def read(item: ImageFile) -> _Header | str:
        try:
            with Image.open(item.path) as image:
                width, height = image.size[::-1] if _turned(image) else image.size
                if width * height == 1:
                    return "it has one pixel: nothing can be seen in it"
                return _Header(width, height, image.mode in GRAY or image.mode.startswith("I;16"))
        except MemoryError:
            raise
        except Exception as error:
            return _reason(error)

    results = list(_in_threads(read, items))
    skipped = [_entry(item, one) for item, one in zip(items, results, strict=True) if isinstance(one, str)]
    if skipped and (not options.skip_broken or len(skipped) == len(items)):
        raise _broken(skipped, len(items))
    return [None if isinstance(one, str) else one for one in results], skipped


def _turned(image: Image.Image) -> bool:
    """Whether EXIF says that width and height are to be exchanged."""
    if image.format == "PNG" and "exif" not in image.info:
        return False  # Pillow would decode the whole file to look behind the pixels
    return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _common_size(headers: Sequence[_Header], options: ImageOptions) -> tuple[int, int]:
    if options.size is not None:
        return options.size, options.size
    sizes = Counter((header.width, header.height) for header in headers)
    if len(sizes) > 1:
        shown = ", ".join(f"{w} x {h} ({count})" for (w, h), count in sizes.most_common(5))
        shorter = sorted(min(size) for size in sizes)
        raise EffaceError(
            f"The images have {len(sizes)} sizes: {shown}{', ...' if len(sizes) > 5 else ''}.",
            "A network is trained on images of one size.",
            "Add --set data.size=N: the shorter side is scaled to N, then the center is cut out. "
            f"(It has {shorter[0]} to {shorter[-1]} pixels now.)",
        )
    width, height = next(iter(sizes))
    return height, width


def _in_threads(function: Any, items: Sequence[ImageFile]) -> Iterator[Any]:
    """``function`` of every item, in order; only a few results are held at a time."""
    threads = min(8, os.cpu_count() or 1)
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        todo = iter(items)
        while chunk := list(islice(todo, 8 * threads)):
            yield from pool.map(function, chunk)


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape},
    )
    return int(file.tell())


def _entry(item: ImageFile, error: str) -> dict[str, str]:
    return {"key": item.key, "path": str(item.path), "error": error}


def _reason(error: Exception) -> str:
    return "there is no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__


def _broken(skipped: Sequence[dict[str, str]], total: int) -> EffaceError:
    shown = "; ".join(f"'{one['key']}' at {one['path']}: {one['error']}" for one in skipped[:5])
    every = len(skipped) == total
    return EffaceError(
        f"{len(skipped)} of {total} images cannot be read.",
        f"{shown}{'; ...' if len(skipped) > 5 else ''}.",
        "Mend the files." if every else "Mend the files, or leave them out with --set data.skip_broken=true.",
    )
