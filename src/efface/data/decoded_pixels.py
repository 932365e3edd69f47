"""The pixels of picture files: decoded once into a memory-mapped array, or each time when they are needed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.array_files import free_memory
from efface.data.image_files import (
    RULES,
    Decoding,
    ImageFile,
    ImageHeader,
    ImageOptions,
    PictureDecoder,
    broken_error,
    cache_home,
    common_shape,
    describe_broken,
    map_in_threads,
    read_headers,
)
from efface.data.lazy_pixels import LazyPixels, Pixels, digest_picture
from efface.data.pixel_caches import describe_items
from efface.errors import EffaceError
from efface.files import disk_errors, make_folder

PIXELS, DIGESTS, INDEX = "pixels.npy", "digests.npy", "index.json"
STALE_SECONDS = 24 * 3600
SMALL_SIDE = 64
"""Pictures up to this many pixels wide and high are always decoded into one array."""
SHARE = 0.25
"""Share of the free memory from which an array is too large, and pictures are decoded when they are needed."""

Headers = tuple[list[ImageHeader | None], list[dict[str, str]]]


def load_pixels(
    items: Sequence[ImageFile], options: ImageOptions
) -> tuple[Pixels, list[ImageFile], list[dict[str, str]], tuple[str, ...]]:
    """Decode image files, load their pixels from the cache, or prepare to decode them when they are needed.

    The cache is keyed by the options and by the key, path, size and times of every file, so a changed file is decoded
    again: the time at which its status changed cannot be set back. It is written under another name and renamed when
    complete. Pictures that are decoded when they are needed are all decoded once before, to find broken ones and to
    digest them; only the digests are kept. Both ways give the same pixels.

    Args:
        items: The image files.
        options: How to decode them.

    Returns:
        The pixels, uint8 [N, C, H, W] (memory-mapped, or :class:`LazyPixels`); the items that were decoded; the ones
        that were left out because they are broken; and what the user should know.

    Raises:
        EffaceError: An image cannot be read and ``options.skip_broken`` is not set, or the images differ in size and
            ``options.size`` is not set.

    """
    home = pixels_home(options)
    key = _cache_key(items, options)
    folder, seen = home / key, home / _digests_name(key, items)
    headers: Headers | None = None
    lazy, why = options.decode == Decoding.LAZY, ""
    if options.decode == Decoding.AUTO and options.cache is None and _read_cache(folder) is None:
        known = _read_digests(seen)
        if known is None:
            headers = read_headers(items, options)
            fine = [one for one in headers[0] if one is not None]
            why = _too_large(len(fine), common_shape(fine, options))
        else:
            why = _too_large(len(known[0]), known[1])
        lazy = bool(why)
    place, prepare = (seen, _prepare_lazy) if lazy else (folder, _decode_once)
    x, skipped = prepare(place, items, options, headers)
    if skipped and not options.skip_broken:
        raise broken_error(skipped, len(items))
    absent = {item["key"] for item in skipped}
    return x, [item for item in items if item.key not in absent], skipped, (why,) if why else ()


def pixels_home(options: ImageOptions) -> Path:
    """The folder of all caches of pictures."""
    return Path(options.cache).expanduser() if options.cache else cache_home() / "pixels"


def _too_large(count: int, shape: tuple[int, int, int]) -> str:
    """Say why the pictures are not decoded into one array; empty if they are."""
    need, free = count * int(np.prod(shape)), free_memory()
    if max(shape[1:]) <= SMALL_SIDE or need <= SHARE * free:
        return ""
    return (
        f"The {count} pictures would take {need / 2**30:.1f} GB in one array, and {free / 2**30:.1f} GB of memory are "
        "free: they are decoded each time when they are needed (data.decode=memory decodes them once, into a folder)."
    )


def _digests_name(key: str, items: Sequence[ImageFile]) -> str:
    """The name of the folder of digests, which depend on captions as well."""
    sha = hashlib.sha256(f"digests {key}".encode())
    for item in items:
        sha.update(item.caption.encode("utf-8", "surrogatepass") + b"\0")
    return sha.hexdigest()[:32]


def _prepare_lazy(
    folder: Path, items: Sequence[ImageFile], options: ImageOptions, headers: Headers | None
) -> tuple[LazyPixels, list[dict[str, str]]]:
    """Check and digest all pictures, unless an earlier run did, and return what decodes them."""
    found = _read_digests(folder)
    if found is None:
        with disk_errors(folder):
            make_folder(folder.parent, "Choose another folder with --set data.cache=FOLDER.")
            try:
                _replace_folder(folder, lambda partial: _digest_all(partial, items, options, headers))
            except OSError:  # another process may have finished the same folder first
                if _read_digests(folder) is None:
                    raise
        found = _read_digests(folder)
        if found is None:
            raise _unreadable_error(folder)
    digests, shape, skipped = found
    absent = {item["key"] for item in skipped}
    readable = [item for item in items if item.key not in absent]
    if len(readable) != len(digests):
        raise _unreadable_error(folder)
    return LazyPixels(readable, PictureDecoder(options, shape), digests, folder.parent), skipped


def _digest_all(folder: Path, items: Sequence[ImageFile], options: ImageOptions, headers: Headers | None) -> None:
    """Decode every picture once, and write the digests and what was skipped into ``folder``."""
    found, skipped = headers or read_headers(items, options)
    files = [item for item, header in zip(items, found, strict=True) if header is not None]
    decoder = PictureDecoder(options, common_shape([one for one in found if one is not None], options))

    def digest(item: ImageFile) -> bytes | str:
        pixels = decoder.decode(item)
        return pixels if isinstance(pixels, str) else digest_picture(item, pixels)

    digests: list[bytes] = []
    for item, result in zip(files, map_in_threads(digest, files), strict=True):
        if isinstance(result, str):
            skipped.append(describe_broken(item, result))
            if not options.skip_broken:
                raise broken_error(skipped, len(items))
        else:
            digests.append(result)
    if not digests:
        raise broken_error(skipped, len(items))
    decoder.judge_depth()
    np.save(folder / DIGESTS, np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1))
    (folder / INDEX).write_text(json.dumps({"shape": list(decoder.shape), "skipped": skipped}), encoding="utf-8")


def _read_digests(folder: Path) -> tuple[np.ndarray, tuple[int, int, int], list[dict[str, str]]] | None:
    """Load the digests that an earlier run made, the shape, and the list of skipped files; None if incomplete."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        digests = np.load(folder / DIGESTS, allow_pickle=False)
        channels, height, width = (int(side) for side in index["shape"])
        skipped = _skipped_items(index)
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RecursionError):
        return None
    fits = digests.dtype == np.uint8 and digests.ndim == 2 and digests.shape[1] == LazyPixels.DIGEST_BYTES
    return (digests, (channels, height, width), skipped) if fits and min(channels, height, width) > 0 else None


def _skipped_items(index: dict[str, Any]) -> list[dict[str, str]]:
    return [{name: str(item[name]) for name in ("key", "path", "error")} for item in index["skipped"]]


def _decode_once(
    folder: Path, items: Sequence[ImageFile], options: ImageOptions, headers: Headers | None
) -> tuple[np.ndarray, list[dict[str, str]]]:
    cached = _read_cache(folder)
    if cached is None:
        with disk_errors(folder):
            _write_cache(folder, items, options, headers)
        cached = _read_cache(folder)
        if cached is None:
            raise _unreadable_error(folder)
    return cached


def _unreadable_error(folder: Path) -> EffaceError:
    return EffaceError(
        f"The decoded images in {folder} cannot be read back.",
        "They were written a moment ago.",
        "Check the disk, or choose another folder with --set data.cache=FOLDER.",
    )


def _cache_key(items: Sequence[ImageFile], options: ImageOptions) -> str:
    """Hash everything that the decoded pixels depend on."""
    rules = (RULES, options.size, options.channels, options.white)
    sha = hashlib.sha256(repr(rules if options.preprocessing is None else (*rules, options.preprocessing)).encode())
    stamps: dict[Path, tuple[Any, ...]] = {}
    for item in items:
        if item.path not in stamps:
            stamps[item.path] = (str(item.path.absolute()), _stamp(item.path))
        place = () if item.place is None else (item.place.stamp,)
        sha.update(repr((item.key, *stamps[item.path], *place)).encode("utf-8", "surrogateescape"))
    return sha.hexdigest()[:32]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_cache(folder: Path) -> tuple[np.ndarray, list[dict[str, str]]] | None:
    """Load the pixels that an earlier run decoded, and the list of skipped files; None if they are incomplete."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        # Copy-on-write: torch needs a writable array, but nothing is ever written to the file.
        x = np.load(folder / PIXELS, mmap_mode="c", allow_pickle=False)
        skipped = _skipped_items(index)
        return (x, skipped) if x.dtype == np.uint8 and x.ndim == 4 and list(x.shape) == index["shape"] else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RecursionError):
        return None


def _write_cache(folder: Path, items: Sequence[ImageFile], options: ImageOptions, headers: Headers | None) -> None:
    """Decode the images into a temporary folder, then rename it to ``folder``."""
    make_folder(folder.parent, "Choose another folder with --set data.cache=FOLDER.")
    try:
        _replace_folder(folder, lambda partial: _decode(partial, items, options, headers))
    except OSError:
        # Another process may have finished the same folder first; its result is equally good.
        if _read_cache(folder) is None:
            raise


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder, then rename it to ``folder``."""
    for old in folder.parent.glob(f"{'[0-9a-f]' * 32}.*.partial"):  # no other partial folder: it may be a run
        if time.time() - old.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(folder: Path, items: Sequence[ImageFile], options: ImageOptions, headers: Headers | None) -> None:
    """Write the pixels and the index of all images into ``folder``."""
    found, skipped = headers or read_headers(items, options)
    shape = common_shape([header for header in found if header is not None], options)
    decoder = PictureDecoder(options, shape)
    count, files = 0, [item for item, header in zip(items, found, strict=True) if header is not None]
    with open(folder / PIXELS, "wb") as file:
        start = _write_header(file, (len(files), *shape))
        for item, result in zip(files, map_in_threads(decoder.decode, files), strict=True):
            if isinstance(result, str):
                skipped.append(describe_broken(item, result))
                if not options.skip_broken:
                    raise broken_error(skipped, len(items))
            else:
                file.write(result.data)
                count += 1
        # The .npy header is padded for a longer first axis, so rewriting it does not move the pixels.
        file.seek(0)
        if _write_header(file, (count, *shape)) != start:
            raise RuntimeError("the header of the pixels changed its length")
    if not count:
        raise broken_error(skipped, len(items))
    decoder.judge_depth()
    index = {"shape": [count, *shape], "skipped": skipped}
    index |= describe_items([item.key for item in items], [item.path for item in items])
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _write_header(file: Any, shape: tuple[int, ...]) -> int:
    """Write the .npy header for uint8 pixels of this shape, and return the position after it."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return int(file.tell())
