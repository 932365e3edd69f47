"""What a shard holds, as far as it is written again: keys, digests of pictures, and the shard without some of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Set
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from efface.data.picture_places import FilePart
from efface.data.shards.paths import Shard
from efface.data.shards.table_pictures import TableOptions, choose_columns, list_keys
from efface.data.shards.tables import TableShard, unreadable_table_error
from efface.data.shards.tar_pictures import TarOptions, TarPicture, list_tar_pictures
from efface.data.shards.tars import TAR_BLOCK, read_members

TAR_RECORD = 20 * TAR_BLOCK
"""The length of a tar is a multiple of this."""
CHUNK = 2**20


class ShardContent(Protocol):
    """The pictures of a shard."""

    shard: Shard

    @property
    def keys(self) -> list[str]:
        """The key of each picture, in the order of the shard."""
        ...

    def digest_pictures(self, keys: Set[str]) -> Iterator[tuple[int, str]]:
        """Size and SHA-256 of the encoded pictures with these keys."""
        ...

    def find_copies(self, sizes: Set[int], digests: Set[str], but: Set[str]) -> Iterator[str]:
        """Keys of the pictures with one of the sizes and digests, but those of ``but``."""
        ...

    def fingerprint(self, without: Set[str]) -> str:
        """SHA-256 of all that the shard says, without the pictures with these keys."""
        ...

    def write_without(self, keys: Set[str], path: Path) -> None:
        """Write the shard to ``path`` without the pictures with these keys."""
        ...


class TarContent:
    """The pictures of a WebDataset tar.

    Args:
        shard: The tar.
        options: How its members are understood.

    """

    def __init__(self, shard: Shard, options: TarOptions) -> None:
        self.shard, self.options = shard, options

    @cached_property
    def _pictures(self) -> list[TarPicture]:
        return list(list_tar_pictures(self.shard, self.options, Counter()))

    @property
    def keys(self) -> list[str]:
        """The key of each picture, in the order of the shard."""
        return [one.item.key for one in self._pictures]

    def digest_pictures(self, keys: Set[str]) -> Iterator[tuple[int, str]]:
        """Size and SHA-256 of the encoded pictures with these keys."""
        for one in self._pictures:
            if one.item.key in keys:
                part = _part(one)
                yield part.size, _digest(part, self.shard.path)

    def find_copies(self, sizes: Set[int], digests: Set[str], but: Set[str]) -> Iterator[str]:
        """Keys of the pictures with one of the sizes and digests, but those of ``but``."""
        for one in self._pictures:
            part = _part(one)
            if one.item.key not in but and part.size in sizes and _digest(part, self.shard.path) in digests:
                yield one.item.key

    def fingerprint(self, without: Set[str]) -> str:
        """SHA-256 of the names and contents of all members, without those of the pictures with these keys."""
        gone, sha = self._members_of(without), hashlib.sha256()
        for member in read_members(self.shard.path):
            if member.start not in gone:
                digest = _digest(member.part, self.shard.path)
                sha.update(repr((member.name, member.part.size, digest)).encode("utf-8", "surrogatepass"))
        return sha.hexdigest()

    def write_without(self, keys: Set[str], path: Path) -> None:
        """Copy all members with their headers, but those of the pictures with these keys."""
        gone, place = self._members_of(keys), 0
        with open(self.shard.path, "rb") as source, open(path, "wb") as target:
            for member in read_members(self.shard.path):
                # What lies between two members are folders and headers that are about all that follows.
                _copy(source, target, place, member.start)
                if member.start not in gone:
                    _copy(source, target, member.start, member.end)
                place = member.end
            source.seek(place)
            while (block := source.read(TAR_BLOCK)) and any(block):  # folders after the last member
                target.write(block)
            target.write(bytes(2 * TAR_BLOCK))
            target.write(bytes(-target.tell() % TAR_RECORD))

    def _members_of(self, keys: Set[str]) -> set[int]:
        """Where all members of the samples begin whose pictures have these keys."""
        return {
            member.start for one in self._pictures if one.item.key in keys for member in one.sample.members.values()
        }


class TableContent:
    """The pictures of a table.

    Args:
        shard: The table.
        options: How its columns are understood.

    """

    def __init__(self, shard: Shard, options: TableOptions) -> None:
        self.shard, self.options = shard, options
        self.table = TableShard(shard.path)
        self.columns = choose_columns(self.table, options)

    @cached_property
    def _keys(self) -> list[str]:
        return list(list_keys(self.shard, self.table, self.columns, self.options))

    @property
    def keys(self) -> list[str]:
        """The key of each row."""
        return self._keys

    def digest_pictures(self, keys: Set[str]) -> Iterator[tuple[int, str]]:
        """Size and SHA-256 of the encoded pictures with these keys."""
        for key, picture in self._rows():
            if key in keys:
                yield len(picture), hashlib.sha256(picture).hexdigest()

    def find_copies(self, sizes: Set[int], digests: Set[str], but: Set[str]) -> Iterator[str]:
        """Keys of the pictures with one of the sizes and digests, but those of ``but``."""
        for key, picture in self._rows():
            if key not in but and len(picture) in sizes and hashlib.sha256(picture).hexdigest() in digests:
                yield key

    def fingerprint(self, without: Set[str]) -> str:
        """SHA-256 of the schema and all values, without the rows with these keys."""
        sha = hashlib.sha256(self.table.schema.to_string().encode("utf-8", "surrogatepass"))
        keys = iter(self.keys)
        for batch in self.table.batches(self.table.schema.names):
            columns = [batch.column(number) for number in range(batch.num_columns)]
            for row, key in zip(range(batch.num_rows), keys, strict=False):
                if key not in without:
                    for column in columns:
                        _feed(sha, column[row].as_py())
        return sha.hexdigest()

    def write_without(self, keys: Set[str], path: Path) -> None:
        """Write the rows with other keys, by row groups, with the schema and the compression of the table."""
        with self.table.errors():
            self.table.write_rows(path, [key not in keys for key in self.keys])

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        pictures = self.table.pictures(self.columns.image)
        for key, picture in zip(self.keys, pictures, strict=True):
            yield key, picture or b""


def _part(one: TarPicture) -> FilePart:
    assert isinstance(one.item.place, FilePart)
    return one.item.place


def _digest(part: FilePart, path: Path) -> str:
    sha = hashlib.sha256()
    with part.open(path) as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _copy(source: Any, target: Any, start: int, end: int) -> None:
    """Copy the bytes from ``start`` up to ``end``."""
    source.seek(start)
    while start < end:
        chunk = source.read(min(CHUNK, end - start))
        if not chunk:
            raise unreadable_table_error(Path(source.name), EOFError("it ends in the middle of a member"))
        target.write(chunk)
        start += len(chunk)


def _feed(sha: Any, value: Any) -> None:
    """Add a value of a table to a digest, such that other values give another one."""
    if isinstance(value, (bytes, bytearray)):
        sha.update(f"b{len(value)}:".encode())
        sha.update(value)
    elif isinstance(value, dict):
        sha.update(f"d{len(value)}:".encode())
        for name, one in value.items():
            _feed(sha, name)
            _feed(sha, one)
    elif isinstance(value, list):
        sha.update(f"l{len(value)}:".encode())
        for one in value:
            _feed(sha, one)
    else:
        text = repr(value).encode("utf-8", "surrogatepass")
        sha.update(f"r{len(text)}:".encode())
        sha.update(text)
