"""Which shards a path stands for: a file, a folder, or a pattern with braces such as ``shard-{000000..000009}.tar``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from efface.data.image_folders import TEST_FOLDERS, TRAIN_FOLDERS, describe_unread, list_unread, walk_files
from efface.data.names import quote_first
from efface.errors import EffaceError

MOST_FILES = 100_000
"""A pattern may not stand for more files than this."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file that holds pictures."""

    path: Path
    name: str
    """Its path below the folder, without the suffix."""
    official: str = ""
    """``train`` or ``test``, if all shards say which in their name or folder."""


@dataclass
class ShardListing:
    """The shards that a path stands for, and what else is there."""

    shards: list[Shard]
    name: str
    """What the data are called in messages."""
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many files or members are not read, by shard or folder and kind."""

    @property
    def unread(self) -> tuple[dict[str, Any], ...]:
        """What is not read, as in :attr:`efface.data.dataset.Data.unread`."""
        return tuple(list_unread(self.skipped))

    @property
    def notes(self) -> list[str]:
        """What is not read, as a sentence."""
        return describe_unread(self.skipped, self.name)


def list_shards(root: str, suffixes: Collection[str]) -> ShardListing:
    """List the shards that a path stands for, sorted by name.

    Args:
        root: A shard, a folder in which shards are, or a pattern: ``{000..009}`` counts, ``{a,b}`` chooses.
        suffixes: How the shards end, in lower case.

    Raises:
        EffaceError: There are none, some of a pattern are missing, or only some say whether they are train or test.

    """
    top = Path(root).expanduser()
    if top.is_dir():
        names, skipped = walk_files(top)
        paths = [name for name in names if Path(name).suffix.lower() in suffixes]
        for name in names:
            if Path(name).suffix.lower() not in suffixes:
                kind = Path(name).suffix.lower() or "files without a suffix"
                skipped[name.rpartition("/")[0], kind] += 1
        if not paths:
            raise EffaceError(
                f"There are no shards in {top}.",
                f"Shards end in {', '.join(sorted(suffixes))}.",
                "Check --set data.root or the path.",
            )
        found = [(top / name, name) for name in paths]
        return ShardListing(_with_parts(found), top.name or str(top), skipped)
    files = [top] if top.exists() or not is_pattern(root) else [Path(one).expanduser() for one in expand_braces(root)]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise EffaceError(
            f"{len(missing)} of {len(files)} shards are missing: {quote_first(missing)}.",
            remedy="Check --set data.root or the path.",
        )
    return ShardListing(_with_parts([(path, path.name) for path in sorted(set(files))]), top.name)


def is_pattern(root: str) -> bool:
    """Whether a path is a pattern that stands for several shards."""
    return bool(_BRACES.search(root))


def expand_braces(pattern: str) -> list[str]:
    """List the paths that a pattern stands for.

    Example:
        >>> expand_braces("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']

    """
    pieces = _BRACES.split(pattern)
    choices: list[list[str]] = []
    count = 1
    for number, piece in enumerate(pieces):
        choices.append(list(_choices(piece, MOST_FILES // count + 1)) if number % 2 else [piece])
        count *= len(choices[-1])
        if count > MOST_FILES:
            raise EffaceError(
                f"{pattern} stands for more than {MOST_FILES} shards.", remedy="Name a folder, or a smaller range."
            )
    return ["".join(parts) for parts in product(*choices)]


def _choices(inside: str, most: int) -> Iterator[str]:
    """What a pair of braces stands for; at most ``most`` of it."""
    span = _RANGE.fullmatch(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = int(span[1]), int(span[2])
    if last < first:
        raise EffaceError(f"The range {{{inside}}} counts down.", remedy="Write the smaller number first.")
    width = len(span[1]) if span[1].startswith("0") and len(span[1]) > 1 else 0
    for number in range(first, min(last + 1, first + most)):
        yield f"{number:0{width}d}" if width else str(number)


def holds_shards(folder: Path, suffixes: Collection[str], pictures: Collection[str]) -> bool:
    """Whether a folder, or one right below it, has shards and no pictures of its own."""
    found = False
    for here in (folder, *(one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith("."))):
        try:
            for item in here.iterdir():
                suffix = item.suffix.lower()
                if suffix in pictures and not item.name.startswith("."):
                    return False
                found = found or (suffix in suffixes and item.is_file())
        except OSError:
            continue
    return found


def _with_parts(found: list[tuple[Path, str]]) -> list[Shard]:
    """Say for each shard whether it is of the official training or test set, if their names do."""
    parts = [_part_of(name) for _, name in found]
    if not {"train", "test"} <= set(parts):
        parts = [""] * len(found)
    elif "" in parts:
        odd = [name for (_, name), part in zip(found, parts, strict=True) if not part]
        raise EffaceError(
            f"{len(odd)} shards are neither train nor test: {quote_first(odd)}.",
            "The others are official parts by their names, and it is unclear what these are.",
            "Load one part, or name the shards by a pattern with braces.",
        )
    return [
        Shard(path, name[: -len(path.suffix)] if path.suffix else name, part)
        for (path, name), part in zip(found, parts, strict=True)
    ]


def _part_of(name: str) -> str:
    """``train`` or ``test`` by the folder of a shard, or the first word of its name; empty if neither says it."""
    return next((part for piece in name.split("/") if (part := official_part(piece))), "")


def official_part(name: str) -> str:
    """``train`` or ``test`` by the first word of a name, such as ``train-00000``; empty if it says neither."""
    word = re.match(r"[A-Za-z]*", name)
    first = word[0].lower() if word else ""
    return "train" if first in TRAIN_FOLDERS else "test" if first in TEST_FOLDERS else ""
