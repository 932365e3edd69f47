"""How the pictures of a run are prepared: as was stated, else as the checkpoint states, and never in silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.data.preprocessing_files import StatedPreprocessing, read_preprocessing
from efface.data.shards.hub import is_hub_path
from efface.data.shards.table_pictures import TABLE_SHARDS
from efface.data.shards.tar_pictures import TAR_SUFFIXES
from efface.data.sources import SOURCES
from efface.data.text_files import TABLE_SUFFIXES

PICTURES = ("folder", "manifest", "parquet", "tar")
"""Sources whose pictures are files that can have any size."""
KEPT = ("preprocessing", "size", "channels", "white")
"""Options that say how pictures become pixels."""


def reads_pictures(options: Mapping[str, Any]) -> bool:
    """Whether data settings name a source of picture files, which are resized and cropped."""
    source = str(options.get("source", options.get("name", "")))
    if source in SOURCES:
        return source in PICTURES
    path = Path(source).expanduser()
    shards = (*TAR_SUFFIXES, *TABLE_SHARDS)
    return path.is_dir() or is_hub_path(source) or path.suffix.lower() in (*TABLE_SUFFIXES, *shards)


def prepare_as_stated(value: Any, stated: StatedPreprocessing | None) -> tuple[Any, list[str]]:
    """Let pictures be prepared as a checkpoint states, unless the user says otherwise.

    Args:
        value: The settings of the data: a source, or a mapping with its options.
        stated: What the checkpoint states; None if it states nothing.

    Returns:
        The settings, and sentences that say where the preparation comes from.

    """
    options = {"source": value} if isinstance(value, str) else dict(value or {})
    if not options or not reads_pictures(options):
        return value, []
    theirs = stated.pixels if stated is not None else None
    if options.get("preprocessing") is not None:
        ours = read_preprocessing(options["preprocessing"])
        assert ours is not None
        differs = theirs is not None and stated is not None and theirs != ours
        note = f"pictures are prepared as you state: {ours.describe()}"
        return options | {"preprocessing": ours.as_settings()}, [
            f"{note}; its {stated.source} states: {theirs.describe()}" if differs and stated and theirs else note
        ]
    if options.get("size") is not None:
        side = options["size"]
        note = f"pictures are prepared as data.size={side} says: largest centered square, scaled to {side} (bilinear)"
        if theirs is None or stated is None:
            return value, [f"{note}; no file states how it was trained (else: --set data.preprocessing.resize=N ...)"]
        return value, [f"{note}; its {stated.source} states: {theirs.describe()} (leave out data.size to follow it)"]
    if theirs is None or stated is None:
        return value, [
            "pictures are used at their own size; no file states how it was trained (else: --set "
            "data.preprocessing.resize=N --set data.preprocessing.crop=[N,N])"
        ]
    defaults = (
        f"; not stated there, so by its library's default: {', '.join(stated.defaults)}" if stated.defaults else ""
    )
    note = f"pictures are prepared as its {stated.source} states: {theirs.describe()}{defaults}"
    return options | {"preprocessing": theirs.as_settings()}, [note, *stated.notes]


def prepare_as_before(value: Any, stored: Any) -> Any:
    """Let other pictures be prepared like those of a run, unless the user says otherwise.

    Args:
        value: The settings of the data that the user names.
        stored: The settings of the run's data.

    """
    options = {"source": value} if isinstance(value, str) else dict(value or {})
    before = stored if isinstance(stored, Mapping) else {}
    if not options or not reads_pictures(options) or {"preprocessing", "size"} & options.keys():
        return value
    return {key: before[key] for key in KEPT if before.get(key) is not None} | options
