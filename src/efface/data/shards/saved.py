"""Folders that ``datasets`` wrote with ``save_to_disk``: which tables they have, and which official part each is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from efface.data.shards.paths import Shard, ShardListing, official_part
from efface.data.shards.tables import SPLITS, STATE
from efface.errors import EffaceError
from efface.files import read_json

_REMEDY = "Write it again with save_to_disk."


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is what ``datasets`` wrote with ``save_to_disk``."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def list_saved(top: Path) -> ShardListing:
    """List the tables of such a folder.

    Raises:
        EffaceError: It is damaged, names files elsewhere, or has splits that are neither train nor test.

    """
    if not (top / SPLITS).is_file():
        shards, skipped = _tables_in(top, "", "")
        return ShardListing(shards, top.name or str(top), skipped)
    splits = read_json(top / SPLITS, "list of splits", remedy=_REMEDY).get("splits")
    if not isinstance(splits, list) or not splits or not all(_is_name(one) for one in splits):
        raise EffaceError(f"{top / SPLITS} lists no splits.", remedy=_REMEDY)
    parts = {one: official_part(one) for one in splits}
    if len(splits) > 1 and ("" in parts.values() or "train" not in parts.values()):
        raise EffaceError(
            f"{top} has the splits {', '.join(splits)}.",
            "Splits train and test (or validation) are official parts, and no other may be beside them.",
            "Load one of its folders.",
        )
    listing = ShardListing([], top.name or str(top))
    for split in splits:
        shards, skipped = _tables_in(top / split, f"{split}/", parts[split] if len(splits) > 1 else "")
        listing.shards += shards
        listing.skipped += skipped
    return listing


def _tables_in(folder: Path, before: str, part: str) -> tuple[list[Shard], Counter[tuple[str, str]]]:
    state = read_json(folder / STATE, "state of a data set", remedy=_REMEDY)
    files: Any = state.get("_data_files")
    listed = files if isinstance(files, list) else []
    names = [str(one["filename"]) for one in listed if isinstance(one, dict) and _is_name(one.get("filename"))]
    if not names or len(names) < len(listed):
        raise EffaceError(f"{folder / STATE} does not list the tables of the folder.", remedy=_REMEDY)
    missing = [one for one in names if not (folder / one).is_file()]
    if missing:
        raise EffaceError(f"{folder} has no table '{missing[0]}', which it lists.", remedy=_REMEDY)
    others = Counter(
        (before.rstrip("/"), "tables beside those of the data set")
        for one in sorted(folder.glob("*.arrow"))
        if one.name not in names
    )
    shards = [Shard(folder / one, f"{before}{Path(one).stem}", part) for one in sorted(names)]
    return shards, others


def _is_name(name: Any) -> bool:
    """Whether it is the plain name of a file or folder, in no other folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
