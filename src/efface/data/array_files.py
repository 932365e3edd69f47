"""Read .npz and .npy files of plain arrays; sizes are checked before memory is taken. NumPy only.

The header of an array says how large it will be, and whoever wrote the file can make it say anything. It must agree
with the length of what is stored, and with the memory of this machine.
"""

from __future__ import annotations

import ast
import contextlib
import lzma
import mmap
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from efface.errors import EffaceError

LONGEST_HEADER = 2**16
"""Longest header of an array, in bytes; NumPy's own headers have about 128."""
PART_BYTES = 2**23
"""Bytes of a large array that are worked on at once."""
USABLE = 0.8
"""Share of the free memory that the arrays of a file may take."""
MAPPED_BYTES = 2**24
"""Size from which arrays are kept in files that are mapped, not in memory."""
ALIGNMENT = 64
"""Place of the numbers of an array in a file: a multiple of this, so that a map of them can be computed with."""
_PADDING_FIELD = 0xD935
"""Kind of the extra field of a zip member that only moves what follows it, as Android's zipalign writes it."""


def free_memory() -> int:
    """Return how many bytes of memory can be taken, as far as the system says; else 8 GiB."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").split("\n")
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(max(0, limit - int((group / "memory.current").read_text(encoding="ascii"))))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=8 * 2**30)


def read_npz(path: Path, names: Collection[str] | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read the arrays of an .npz file.

    Args:
        path: The file.
        names: The arrays to read; by default all.

    Returns:
        The arrays by name, and the names of all arrays in the file.

    Raises:
        ValueError: The file is damaged, contains Python objects, or needs more memory than there is.
        OSError: It cannot be opened.

    """
    with open(path, "rb") as opened, zipfile.ZipFile(opened) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("two of its arrays have the same name")
        chosen = {name: info for name, info in members.items() if names is None or name in names}
        total = 0
        for name, info in chosen.items():
            with archive.open(info) as file:
                total += _check_array(file, info.file_size, name)
            _check_memory(total)
        arrays: dict[str, np.ndarray] = {}
        for name, info in chosen.items():
            with archive.open(info) as file:
                arrays[name] = _require_characters(np.lib.format.read_array(file, allow_pickle=False), name)
    return arrays, list(members)


def read_npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read the array of an .npy file; see :func:`read_npz`.

    Args:
        path: The file.
        mapped: Map it instead of reading it, so that it may be larger than the memory; it cannot be written.

    """
    with open(path, "rb") as file:
        size = _check_array(file, os.fstat(file.fileno()).st_size, path.name)
        if mapped and size:
            return _require_characters(np.load(path, mmap_mode="r", allow_pickle=False), path.name)
        _check_memory(size)
        file.seek(0)
        return _require_characters(np.lib.format.read_array(file, allow_pickle=False), path.name)


def write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as ``np.savez`` does, a part at a time, each at a place from which :func:`map_npz` can map it."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, x in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            # 30 bytes and the name, this field of 4 bytes and its padding, 20 bytes of the sizes of a large file
            start = file.tell() + 30 + len(info.filename.encode()) + 4 + 20
            padding = -start % ALIGNMENT
            info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
            with archive.open(info, "w", force_zip64=True) as member:
                plain = np.asarray(x)
                if plain.ndim == 0 or not plain.flags.c_contiguous:
                    np.lib.format.write_array(member, plain, allow_pickle=False)
                    continue
                np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(plain))
                for part in row_chunks(x):
                    member.write(x[part].reshape(-1).view(np.uint8).data)


def map_npz(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Map the arrays of an .npz file that :func:`write_npz` wrote; those that cannot be mapped are read.

    All share one map. The checksums of the zip file are not looked at.

    Raises:
        ValueError: The file is damaged, or contains Python objects.

    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        whole = np.memmap(file, np.uint8, "r")
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                size = _check_array(member, info.file_size, name)
                member.seek(0)
                shape, transposed, dtype = _read_header(member)
                place = info.header_offset
                lengths = struct.unpack("<HH", whole[place + 26 : place + 30].tobytes())
                place += 30 + sum(lengths) + info.file_size - size
                if info.compress_type != zipfile.ZIP_STORED or transposed or not size or place % ALIGNMENT:
                    member.seek(0)
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
                else:
                    found = whole[place : place + size].view(dtype).reshape(shape)
                    arrays[name] = _require_characters(found, name)
    return arrays


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: its shape, whether its first index varies fastest, and its type."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def row_chunks(x: np.ndarray, most: int | None = None) -> Iterator[slice]:
    """Divide rows into parts of at most ``most`` bytes (by default ``PART_BYTES``), but of at least one row.

    What was read of a mapped file is let go after each part, so that the memory in use does not grow with the file.
    """
    most = PART_BYTES if most is None else most
    size = max(1, most // max(1, x.nbytes // max(1, len(x))))
    for start in range(0, len(x), size):
        yield slice(start, start + size)
        pages = getattr(x, "_mmap", None)
        if pages is not None and hasattr(pages, "madvise"):
            pages.madvise(mmap.MADV_DONTNEED)


def take_rows(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copy some rows, in ascending order; of a mapped file, what was read around them is let go."""
    ordered = np.sort(rows)
    cut = ((ordered[(ordered >= part.start) & (ordered < part.stop)]) for part in row_chunks(x))
    return np.concatenate([x[:0], *(np.array(x[chosen]) for chosen in cut)])


def unreadable_arrays_error(path: Path | str, error: Exception, remedy: str) -> EffaceError:
    """Build the error for a file that :func:`read_npz` or :func:`read_npy` refused."""
    return EffaceError(
        f"{path} cannot be read as plain arrays.",
        f"It is damaged, too large, or contains Python objects, which are never loaded: {error}",
        remedy,
    )


ARRAY_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
"""What reading a damaged or hostile file of arrays can raise."""
HEADER_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    SyntaxError,
    OverflowError,
    RecursionError,
    MemoryError,
)
"""What NumPy raises for a type that it cannot make; it reads some of them as Python."""


def _check_array(file: IO[bytes], stored: int, name: str) -> int:
    """Check the header of an array against the ``stored`` bytes, and return the bytes that the array takes."""
    start = file.read(8)
    if len(start) < 8 or start[:6] != np.lib.format.MAGIC_PREFIX or start[6] not in (1, 2, 3):
        raise ValueError(f"'{name}' is not an array")
    width = 2 if start[6] == 1 else 4
    length = int(struct.unpack("<H" if width == 2 else "<I", file.read(width).ljust(width, b"\0"))[0])
    if length > min(LONGEST_HEADER, stored):
        raise ValueError(f"the header of '{name}' claims {length} bytes")
    header = _parse_header(file.read(length), start[6], name)
    try:
        dtype: Any = np.lib.format.descr_to_dtype(header["descr"])
    except HEADER_ERRORS as error:
        raise ValueError(f"the header of '{name}' claims a type that is unknown") from error
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects")
    if not dtype.itemsize:
        raise ValueError(f"the items of '{name}' have no bytes")
    count = 1
    for side in header["shape"]:
        if not isinstance(side, int) or side < 0:
            raise ValueError(f"the header of '{name}' claims the shape {header['shape']}")
        count *= side
    size = count * dtype.itemsize
    if size != stored - 8 - width - length:
        raise ValueError(f"the header of '{name}' claims {size} bytes, but {stored - 8 - width - length} are stored")
    return size


def _parse_header(header: bytes, version: int, name: str) -> dict[str, Any]:
    try:
        parsed = ast.literal_eval(header.decode("latin1" if version < 3 else "utf-8").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header of '{name}' is damaged") from error
    if not isinstance(parsed, dict) or set(parsed) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"the header of '{name}' is damaged")
    if not isinstance(parsed["shape"], tuple):
        raise ValueError(f"the header of '{name}' is damaged")  # noqa: TRY004
    return parsed


def _require_characters(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array, or raise if a text in it holds a number that is no character: NumPy stores any."""
    fields = [array[field] for field in array.dtype.names] if array.dtype.names else [array]
    for field in fields:
        if field.dtype.kind != "U" or not field.size or not field.dtype.itemsize:
            continue
        plain = np.ascontiguousarray(field).reshape(-1)
        codes = plain.view(np.dtype(np.uint32).newbyteorder(field.dtype.byteorder))
        if int(codes.max()) > sys.maxunicode:
            raise ValueError(f"'{name}' holds a text with a character that does not exist")
    return array


def _check_memory(size: int) -> None:
    free = free_memory()
    if size > USABLE * free:
        raise ValueError(f"it takes {size / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB are free")
