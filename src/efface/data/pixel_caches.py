"""Find what still holds certain pictures: caches, which outlive the files, and shards, which hold others as well.

A cache lists digests of the keys in it and the folder that its files have in common. Caches of older versions do not;
only the one that is in use is then known. A shard (a tar, a table) is never removed: it is to be written again without
them (:mod:`efface.data.shards.rewriting`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data
from efface.data.lazy_pixels import LazyPixels

CACHE_INDEX = "index.json"


def describe_items(keys: Iterable[str], paths: Sequence[Path]) -> dict[str, Any]:
    """Describe what a cache holds, for its index: digests of the keys, and the folder that the files have in common."""
    try:
        root = os.path.commonpath([path.parent.absolute() for path in paths])
    except ValueError:  # no files, or on different drives
        root = ""
    return {"items": [_hash_key(key) for key in keys], "root": root}


def find_caches(data: Data, keys: Iterable[str], former: Sequence[str] = ()) -> dict[Path, int]:
    """Find the folders of decoded pictures in which some of the examples are.

    Args:
        data: The data as they are loaded now; their own cache and those beside it are searched.
        keys: Keys of the examples; they may be absent from the data.
        former: Where the files were before, if they were moved.

    Returns:
        Folder to the number of examples, the cache in use first. Empty if the pictures were not decoded from files.

    """
    wanted = set(keys)
    hashed = {_hash_key(key) for key in wanted}
    if isinstance(data.x, LazyPixels):
        own, home = None, data.x.home
        root, found = str(describe_items((), [item.path for item in data.x.items])["root"]), dict[Path, int]()
    else:
        file = getattr(data.x, "filename", None) if isinstance(data.x, np.memmap) else None
        if file is None or not (Path(file).parent / CACHE_INDEX).is_file():
            return {}
        own, home = Path(file).parent, Path(file).parent.parent
        root, found = str(_read_index(own).get("root", "")), {own: len(wanted & set(data.keys.tolist()))}
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        index = _read_index(folder) if folder != own else {}
        if any(_related(one, str(index.get("root", ""))) for one in (root, *former)):
            found[folder] = len(hashed & set(index.get("items", ())))
    return {folder: count for folder, count in found.items() if count}


def purge_caches(data: Data, keys: Iterable[str], former: Sequence[str] = ()) -> dict[str, str]:
    """Remove every cache in which some of the examples are; returns what was done with each, and what shards remain."""
    done: dict[str, str] = {}
    for folder, count in find_caches(data, keys, former).items():
        shutil.rmtree(folder, ignore_errors=True)
        gone = "removed" if not folder.exists() else "could not be removed"
        done[f"decoded pictures in {folder}"] = f"{gone}: it held {count} forgotten pictures"
    return done | list_residual_shards(data, keys)


def list_residual_caches(data: Data, keys: Iterable[str], former: Sequence[str] = ()) -> dict[str, str]:
    """Describe each cache and shard in which examples still are: ``decoded pictures in FOLDER``, ``shard FILE``."""
    found = {
        f"decoded pictures in {folder}": f"kept: it holds {count} forgotten pictures (--purge-cache removes it)"
        for folder, count in find_caches(data, keys, former).items()
    }
    return found | list_residual_shards(data, keys)


def find_shards(data: Data, keys: Iterable[str]) -> dict[str, int]:
    """Find the shards that still hold some of the examples, and how many of them; in the order of the shards."""
    if data.shard is None:
        return {}
    held = data.shard[np.isin(data.keys, sorted(set(keys)))]
    counts = np.bincount(held, minlength=len(data.shards))
    return {path: int(count) for path, count in zip(data.shards, counts, strict=True) if count}


def list_residual_shards(data: Data, keys: Iterable[str]) -> dict[str, str]:
    """Describe every shard in which some of the examples still are, by ``shard FILE``."""
    return {
        f"shard {path}": f"kept: it holds {count} forgotten pictures (`efface rewrite` writes it without them)"
        for path, count in find_shards(data, keys).items()
    }


def _hash_key(key: str) -> str:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / CACHE_INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _related(one: str, other: str) -> bool:
    """Whether two folders are the same, or one is in the other."""
    if not one or not other:
        return False
    return Path(one) == Path(other) or Path(one) in Path(other).parents or Path(other) in Path(one).parents
