"""Write the shards that hold forgotten pictures again without them, and verify that none is left.

Each new shard is written beside the old one, read back and compared, and only then takes its place: a process that is
killed leaves the old shard or the new one. What is kept is kept to the byte: members of a tar are copied with their
headers, rows of a table by row groups.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from efface.data.names import quote_first, require_unique_keys
from efface.data.shards.contents import ShardContent, TableContent, TarContent
from efface.data.shards.fields import REPEATED
from efface.data.shards.hub import is_hub_path
from efface.data.shards.loading import find_tables
from efface.data.shards.paths import Shard, holds_shards, list_shards
from efface.data.shards.saved import is_saved_dataset
from efface.data.shards.table_pictures import TABLE_SHARDS, TableOptions
from efface.data.shards.tar_pictures import TAR_SUFFIXES, TarOptions
from efface.data.split_parts import EARLIER, read_split
from efface.data.text_files import read_list
from efface.errors import EffaceError, suggest_name
from efface.files import atomic_path, file_digest, hold_lock

TAR_SETTINGS = ("columns", "shard_keys", "picture", "key_suffix")
TABLE_SETTINGS = ("columns", "shard_keys", "keys")
"""Options of the two sources that say what the key of a picture is."""


@dataclass(frozen=True)
class RewrittenShard:
    """A shard that was written again, or is to be."""

    path: str
    removed: int
    """How many forgotten pictures it held."""
    kept: int
    """How many pictures it holds without them."""
    before: str
    """SHA-256 of the file as it was."""
    after: str = ""
    """SHA-256 of the file as it is; empty if it was only planned."""

    def line(self) -> str:
        """It as a line of text."""
        now = self.after or "not written"
        return f"{self.path}: {self.removed} removed, {self.kept} kept; sha256 before {self.before}, after {now}"


@dataclass(frozen=True)
class Rewriting:
    """What became of the shards of a data set."""

    shards: tuple[RewrittenShard, ...]
    examined: int
    """How many shards were read."""
    absent: int = 0
    """How many of the listed ids no shard holds."""
    copies: tuple[str, ...] = ()
    """Ids of pictures that are kept and are byte for byte a forgotten one."""

    def as_dict(self) -> dict[str, Any]:
        """It as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """It as lines of text."""
        found = [one.line() for one in self.shards]
        removed, verified = sum(one.removed for one in self.shards), all(one.after for one in self.shards)
        found.append(
            f"{removed} {'picture' if removed == 1 else 'pictures'} in {len(self.shards)} of {self.examined} shards"
            + (": written again, read back, and none of the ids and pictures is left there." if verified else ".")
        )
        if self.absent:
            found.append(f"{self.absent} of the listed ids are in no shard.")
        if self.copies:
            found.append(
                f"{len(self.copies)} pictures with other ids are byte for byte forgotten ones, and are still there: "
                f"{quote_first(self.copies)}. To remove them, list them too."
            )
        return found


def rewrite_shards(root: str, keys: Collection[str], options: Mapping[str, Any], *, dry_run: bool = False) -> Rewriting:
    """Write the shards that hold some pictures again without them.

    Args:
        root: The data: a shard, a folder of shards, or a pattern.
        keys: Keys of the pictures, as the data are loaded with ``options``.
        options: The options of the source that say what a key is; others are of no effect here.
        dry_run: Only say what would be done.

    Raises:
        EffaceError: No shard holds any of the keys, a shard is damaged, keys are not unique or are rows, or a new shard
            is not what it should be. What was written before then stays written.

    """
    wanted = set(keys)
    if not wanted:
        raise EffaceError("No ids were listed.", "Nothing would be rewritten.", "Name a list with at least one id.")
    shards, opened = _open(root, options)
    everything: list[str] = []
    holding: list[Shard] = []
    sizes, digests = set[int](), set[str]()
    for shard in shards:
        content = opened(shard)
        everything += content.keys
        if not wanted.isdisjoint(content.keys):
            holding.append(shard)
            for size, digest in content.digest_pictures(wanted):
                sizes.add(size)
                digests.add(digest)
    if not holding:
        raise EffaceError(
            f"No shard of {root} holds any of the {len(wanted)} listed ids.",
            "They were removed before, or are other ids: these look like "
            f"{quote_first(everything[:3]) or 'nothing, there are no pictures'}.",
            "Check the ids, and give the options with which the data are loaded, such as --set data.key_suffix=true.",
        )
    if options.get("keys") != "content":
        require_unique_keys(everything, root, REPEATED)
    copies = [key for shard in shards for key in opened(shard).find_copies(sizes, digests, wanted)]
    done = [_rewrite(shard, opened, wanted, (sizes, digests, set(copies)), dry_run=dry_run) for shard in holding]
    absent = len(wanted - set(everything))
    return Rewriting(tuple(done), len(shards), absent, tuple(copies))


def read_forgotten(path: Path) -> list[str]:
    """Read the ids that are forgotten: from a list, or from the split of a run folder, with those of earlier requests.

    Raises:
        EffaceError: There is no such list or run, or it names nothing.

    """
    path = path.expanduser()
    try:
        if not path.is_dir():
            return list(read_list(path).ids)
    except OSError as error:
        raise EffaceError(
            f"There is no list of ids at {path}.", str(error), "Check the path after --forget."
        ) from error
    parts = read_split(path)["parts"]
    found = [*parts["forget"], *parts.get(EARLIER, ())]
    if not found:
        raise EffaceError(f"{path} was asked to forget nothing.", remedy="Name a run that `efface unlearn` made.")
    return found


Opener = Callable[[Shard], ShardContent]


def _open(root: str, options: Mapping[str, Any]) -> tuple[list[Shard], Opener]:
    """List the shards of a path, and say how each is opened."""
    if is_hub_path(root):
        raise EffaceError(
            f"{root} is on the Hub, and what is here is a copy of it.",
            "Its owner has to write it again.",
            "Download it to a folder of your own, and name that folder.",
        )
    top = Path(root).expanduser()
    suffix = top.suffix.lower()
    if top.is_dir():
        tables = is_saved_dataset(top) or not holds_shards(top, TAR_SUFFIXES, ())
    elif suffix in (*TAR_SUFFIXES, *TABLE_SHARDS):
        tables = suffix in TABLE_SHARDS
    else:
        raise EffaceError(
            f"{root} is no shard, no folder of shards and no pattern.",
            f"Shards end in {', '.join((*TAR_SUFFIXES, *TABLE_SHARDS))}; pictures with files of their own are deleted.",
            "Name the data of the run.",
        )
    known = TABLE_SETTINGS if tables else TAR_SETTINGS
    unknown = [name for name in options if name not in {*TABLE_SETTINGS, *TAR_SETTINGS, *_IGNORED}]
    if unknown:
        raise EffaceError(
            f"Shards have no option '{unknown[0]}'.{suggest_name(unknown[0], known)}", f"Known: {', '.join(known)}."
        )
    given = {name: options.get(name) for name in ("columns", "picture", "keys")}
    flags = {name: options.get(name, False) for name in ("shard_keys", "key_suffix")}
    if not tables:
        rules = TarOptions.of(given["picture"], flags["key_suffix"], flags["shard_keys"], given["columns"])
        return list_shards(root, TAR_SUFFIXES).shards, lambda shard: TarContent(shard, rules)
    columns = TableOptions.of(given["columns"], given["keys"], flags["shard_keys"])
    if columns.keys == "row":
        raise EffaceError(
            "Tables whose keys are rows cannot be rewritten.",
            "Without some rows, all others would get other keys.",
            "Name a column: --set data.columns.key=NAME. Or --set data.keys=content.",
        )
    return find_tables(root).shards, lambda shard: TableContent(shard, columns)


_IGNORED = ("size", "channels", "limit", "limit_seed", "skip_broken", "cache", "white", "labels", "preprocessing",
           "decode", "unknown", "classes")  # fmt: skip
"""Options of the sources that do not change what the key of a picture is."""


def _rewrite(
    shard: Shard, opened: Opener, wanted: Set[str], gone: tuple[Set[int], Set[str], Set[str]], *, dry_run: bool
) -> RewrittenShard:
    """Write one shard again, verify it, and put it in the place of the old one."""
    path = shard.path.resolve()  # a link stays a link
    shard = replace(shard, path=path)
    if path.stat().st_nlink > 1:
        raise EffaceError(
            f"{path} has {path.stat().st_nlink} names (hard links).",
            "Under the others its pictures would stay.",
            "Remove the other names, or copy the file to one of its own.",
        )
    with hold_lock(path, EffaceError(f"{path} is being written by another process.", remedy="Wait, and try again.")):
        old = opened(shard)
        status = path.stat()
        removed = sum(key in wanted for key in old.keys)
        plan = RewrittenShard(str(shard.path), removed, len(old.keys) - removed, file_digest(path))
        if dry_run or not removed:
            return plan
        for half in path.parent.glob(f"{glob.escape(path.name)}.*-*.tmp"):
            half.unlink()  # of a command that was killed: nobody else writes while this one holds the lock
        with atomic_path(path) as fresh:
            old.write_without(wanted, fresh)
            shutil.copymode(path, fresh)
            new = opened(replace(shard, path=fresh))
            _verify(old, new, wanted, gone)
            _sync(fresh)
            now = path.stat()
            if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise EffaceError(f"{path} changed while it was rewritten.", remedy="Run the same command again.")
            after = file_digest(fresh)
    return replace(plan, after=after)


def _verify(old: ShardContent, new: ShardContent, wanted: Set[str], gone: tuple[Set[int], Set[str], Set[str]]) -> None:
    """Raise unless the new shard holds all that is kept, as it was, and none of the forgotten keys and pictures."""
    sizes, digests, copies = gone
    kept = [key for key in old.keys if key not in wanted]
    left = set(new.find_copies(sizes, digests, set())) - copies
    if new.keys != kept or left or new.fingerprint(set()) != old.fingerprint(wanted):
        raise EffaceError(
            f"What was written in the place of {old.shard.path} is not what it should be.",
            f"{len(set(new.keys) & wanted)} forgotten ids and {len(left)} forgotten pictures are in it, or something "
            "else is missing.",
            "The shard was left as it is. Check the disk, and report this.",
        )


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
