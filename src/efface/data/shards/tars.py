"""Read WebDataset tars where they are: members are found by their headers, and nothing is ever extracted.

Members with the same name before the first dot are one example: ``a.jpg``, ``a.cls``, ``a.json``. A tar can claim
anything about itself, so sizes are checked before memory is taken, links, devices and names that lead elsewhere are
refused, and the tar must end where its end mark says.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from efface.data.picture_places import FilePart
from efface.errors import EffaceError

TAR_BLOCK = tarfile.BLOCKSIZE
LONGEST_TAR_HEADER = 2**20
"""Longest extended header of a member, in bytes: names have a few hundred."""
LONGEST_TEXT = 2**20
"""Longest label, caption or description of an example, in bytes."""
TEXTS = ("cls", "txt", "json")
_SAMPLE = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
_REMEDY = "Make the tar again, or leave it out."


@dataclass(frozen=True, slots=True)
class TarMember:
    """A plain file in a tar."""

    name: str
    start: int
    """Where its headers begin, in bytes."""
    part: FilePart
    """Where its content is."""

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.part.offset + -(-self.part.size // TAR_BLOCK) * TAR_BLOCK


@dataclass(slots=True)
class TarSample:
    """The members that belong to one example."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)
    """What follows the first dot of the name, in lower case, to the member."""


class _Headers:
    """A tar as ``tarfile`` reads it: headers only, never more at once than a header can be long."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_TAR_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


def read_members(path: Path) -> Iterator[TarMember]:
    """Find the plain files in a tar, in their order.

    Raises:
        EffaceError: It is no plain tar, is cut off or damaged, or holds links, devices or names that lead elsewhere.

    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b" or path.suffix.lower() in (".gz", ".tgz"):
            raise EffaceError(
                f"{path} is a compressed tar.",
                "Its members cannot be read one by one.",
                f"Decompress it: gunzip {path.name}.",
            )
        file.seek(0)
        reader: Any = _Headers(file)
        try:
            with tarfile.open(fileobj=reader, mode="r:") as opened:
                archive: Any = opened
                while (info := archive.next()) is not None:
                    archive.members.clear()  # they would fill the memory
                    if not info.isdir():
                        yield _check_member(path, info, size)
                _require_end(path, file, archive.offset, size)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
            raise EffaceError(
                f"{path} cannot be read as a tar.", f"It is damaged or cut off: {error}.", _REMEDY
            ) from error


def _check_member(path: Path, info: tarfile.TarInfo, size: int) -> TarMember:
    shown = ascii(info.name)
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "sparse" if info.issparse() else "no plain file"
        raise EffaceError(f"The member {shown} of {path} is {kind}.", "Only plain files are read from a tar.", _REMEDY)
    name = info.name.removeprefix("./")
    if name.startswith("/") or ".." in name.split("/") or not name:
        raise EffaceError(
            f"The member {shown} of {path} has a name that leads out of it.", "It is absolute, or has '..'.", _REMEDY
        )
    if info.size < 0 or info.offset_data + info.size > size:
        raise EffaceError(
            f"{path} is cut off: its member {shown} claims {info.size} bytes.",
            f"The file has {max(0, size - info.offset_data)} bytes after its header.",
            _REMEDY,
        )
    return TarMember(name, info.offset, FilePart(info.offset_data, info.size))


def _require_end(path: Path, file: IO[bytes], place: int, size: int) -> None:
    """Raise unless the tar ends where reading stopped: with zeros, and nothing after them."""
    if not size:
        raise EffaceError(f"{path} is empty.", "A tar without members has an end mark.", _REMEDY)
    file.seek(place)
    if file.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise EffaceError(
            f"{path} is damaged or cut off after {place} of {size} bytes.",
            "There is neither another member nor the mark of the end.",
            _REMEDY,
        )
    while chunk := file.read(2**20):
        if chunk.count(0) != len(chunk):
            raise EffaceError(
                f"{path} holds more after the mark of its end.",
                "Several tars may have been joined; what follows would not be read.",
                "Keep them as shards of their own.",
            )


def group_members(path: Path, skipped: Counter[tuple[str, str]], shard: str, *, suffixes: bool) -> dict[str, TarSample]:
    """Group the members of a tar into examples, by key.

    Args:
        path: The tar.
        skipped: Counts what is not read, by shard and kind.
        shard: Name of the shard.
        suffixes: Whether names are divided at the last dot, as those of files, and not at the first one.

    Raises:
        EffaceError: As :func:`read_members`; or two members have the same name.

    """
    samples: dict[str, TarSample] = {}
    for member in read_members(path):
        hidden = any(piece.startswith(".") for piece in member.name.split("/"))
        stem, dot, ending = member.name.rpartition(".")
        match = None if suffixes else _SAMPLE.fullmatch(member.name)
        key, ending = (match[1], match[2]) if match else (stem, ending) if suffixes and dot else ("", "")
        if hidden or not key or "/" in ending:
            skipped[shard, "hidden files" if hidden else "files without a suffix"] += 1
            continue
        sample = samples.setdefault(key, TarSample(key))
        if sample.members.setdefault(ending.lower(), member) is not member:
            raise EffaceError(
                f"{path} has two members that are called {member.name!a}.",
                "A key must identify one example; otherwise it is unclear which one to forget.",
                _REMEDY,
            )
    return samples


def read_text(path: Path, member: TarMember) -> str:
    """Read a member that is text in UTF-8.

    Raises:
        EffaceError: It is too long, or not UTF-8.

    """
    if member.part.size > LONGEST_TEXT:
        raise EffaceError(
            f"The member {member.name!a} of {path} has {member.part.size} bytes.",
            f"A label or caption has at most {LONGEST_TEXT}.",
            _REMEDY,
        )
    try:
        return member.part.read(path).decode("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise EffaceError(f"The member {member.name!a} of {path} is not text: {error}.", remedy=_REMEDY) from error


def read_fields(path: Path, sample: TarSample) -> dict[str, Any]:
    """Read what a sample says about its picture: ``cls`` is the label, ``txt`` the caption, ``json`` has fields.

    Raises:
        EffaceError: A member cannot be read, or its ``json`` is no object.

    """
    fields: dict[str, Any] = {}
    if "json" in sample.members:
        member = sample.members["json"]
        try:
            content = json.loads(read_text(path, member))
        except (ValueError, RecursionError) as error:
            raise EffaceError(f"The member {member.name!a} of {path} is no JSON: {error}.", remedy=_REMEDY) from error
        if not isinstance(content, dict):
            raise EffaceError(f"The member {member.name!a} of {path} is no JSON object.", remedy=_REMEDY)
        fields |= content
    for ending, name in (("cls", "label"), ("txt", "caption")):
        if ending in sample.members:
            fields[name] = read_text(path, sample.members[ending]).strip()
    return fields
