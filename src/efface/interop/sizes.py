"""Check what a file claims against its own size and this machine's memory, before any of that memory is taken."""

from __future__ import annotations

import json
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import EffaceError

MAX_HEADER_BYTES = 100_000_000
"""The largest header that the safetensors format allows."""
MAX_DEPTH, MAX_VALUES = 100, 5_000_000
"""Checkpoints nest a few levels deep and hold some hundred thousand values."""
SLACK = 64 * 2**20
"""Bytes that a tensor may show beyond its storage (a row that is repeated), and an archive beyond its file."""
MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux writes a limit on this process's memory."""


def available_memory() -> int | None:
    """Return the bytes of memory that this machine can still give; ``None`` where it does not say."""
    found: list[int] = []
    for name in MEMORY_FILES:
        if Path(name).is_file():
            text = Path(name).read_text(encoding="ascii").strip()
            found += [int(text)] if text.isdigit() else []
    if Path("/proc/meminfo").is_file():
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found += [int(rows["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in rows else []
    return min(found, default=None)


def require_memory(path: Path, needed: int | None = None) -> None:
    """Raise an error if a file is larger than the memory that is free.

    Args:
        path: The file.
        needed: Bytes that it takes; by default its size.

    """
    needed, free = path.stat().st_size if needed is None else needed, available_memory()
    if free is not None and needed > free:
        raise EffaceError(
            f"{path} does not fit into memory.",
            f"Its tensors take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free.",
            "Use a machine with more memory, if the file is what you think it is.",
        )


def require_safetensors_size(path: Path) -> None:
    """Raise an error unless the header of a safetensors file describes exactly the bytes that are in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
            raise _damaged(path, f"Its header should have {length} bytes, and the file has {size}.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"Its header is not JSON: {str(error)[:80]}.") from error
    entries = header.items() if isinstance(header, dict) else ()
    for name, entry in entries:
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        offsets = entry.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(one) is int for one in offsets):
            raise _damaged(path, f"The header does not say where '{name}' lies.")
        end = offsets[1]
        if not 0 <= offsets[0] <= end <= size - 8 - length:
            raise _damaged(path, f"'{name}' should end at byte {end} of {size - 8 - length}.")


def require_archive_size(path: Path) -> None:
    """Raise an error if a zip archive would unpack to more than the file holds; torch does not compress."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked, size = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > size + SLACK:
        raise EffaceError(
            f"{path} was refused: it unpacks to {unpacked / 2**30:.1f} GiB, and the file has {size / 2**20:.1f} MiB.",
            "torch does not compress checkpoints; an archive that grows is damaged, repacked or made to fill memory.",
            "Fetch it again, or save it again with torch.save.",
        )


def require_plausible(path: Path, content: Any) -> None:
    """Raise an error if what was loaded is nested too deeply, or has tensors without the numbers that they claim."""
    counts: dict[int, int] = {}
    stack: list[tuple[Any, int, bool]] = [(content, 0, False)]
    while stack:
        value, depth, done = stack.pop()
        inside = _children(value)
        if isinstance(value, Tensor):
            _require_numbers(path, value)
        if inside is None or (not done and id(value) in counts):
            continue
        if depth > MAX_DEPTH:
            raise EffaceError(
                f"{path} was refused: its values are nested more than {MAX_DEPTH} levels deep.",
                "No library nests a checkpoint like that.",
                "Save the state dict alone: torch.save(model.state_dict(), ...).",
            )
        if done:
            counts[id(value)] = 1 + sum(counts.get(id(item), 1) for item in inside)
            if counts[id(value)] > MAX_VALUES:
                raise EffaceError(
                    f"{path} was refused: it unfolds to more than {MAX_VALUES:,} values.",
                    "The same containers are in it again and again.",
                    "Save the state dict alone: torch.save(model.state_dict(), ...).",
                )
        else:
            stack.append((value, depth, True))
            stack += [(item, depth + 1, False) for item in inside]


def _children(value: Any) -> list[Any] | None:
    """Return what a container holds; ``None`` for a value that holds nothing."""
    if isinstance(value, Namespace):
        return list(vars(value).values())
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


def _require_numbers(path: Path, value: Tensor) -> None:
    kind = "sparse" if value.layout is not torch.strided else "without data" if value.is_meta else ""
    if kind:
        raise EffaceError(
            f"{path} holds a tensor that is {kind}, of shape {tuple(value.shape)}.",
            "Only dense tensors with their numbers can be unlearned.",
            "Convert it with .to_dense(), or save the weights themselves." if kind == "sparse" else "Fetch it again.",
        )
    shown, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if shown > stored + SLACK:
        raise EffaceError(
            f"{path} was refused: a tensor of shape {tuple(value.shape)} has only {stored} bytes in the file.",
            f"It would take {shown / 2**30:.1f} GiB of memory.",
            "Fetch it again, or save it with .contiguous().",
        )


def _damaged(path: Path, why: str) -> EffaceError:
    return EffaceError(f"{path} is damaged or truncated.", why, "Fetch it again.")
