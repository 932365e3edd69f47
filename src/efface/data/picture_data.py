"""Build a data set from pictures that are listed: labels, subset, pixels. NumPy only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from efface.data.dataset import Data, sample_positions
from efface.data.decoded_pixels import load_pixels
from efface.data.image_files import ImageFile, ImageOptions
from efface.data.labels import encode_labels, refuse_unknown_names
from efface.data.names import read_number, require_unique_keys


def load_pictures(
    items: Sequence[ImageFile],
    columns: Collection[str],
    options: ImageOptions,
    limit: int | None,
    limit_seed: int,
    name: str,
    classes: tuple[str, ...] | None = None,
) -> Data:
    """Load pictures that are listed.

    Args:
        items: The pictures.
        columns: Which of label, official, group and caption are known.
        options: How they are decoded.
        limit: As in :func:`efface.data.dataset.sample_positions`.
        limit_seed: Seed of the subset.
        name: Name of the data in messages.
        classes: Names of the classes in their order; by default those of the labels, sorted.

    """
    labels = [item.label for item in items]
    y, names = encode_labels(labels, classes, name) if "label" in columns else (None, ())
    official = np.array([item.official for item in items]) if "official" in columns else None
    require_unique_keys([item.key for item in items], name)  # before some are left out, as broken or by the limit
    keys = np.array([item.key for item in items])
    kept = sample_positions(keys, y, official, limit, limit_seed, name)
    x, loaded, skipped, notes = load_pixels([items[row] for row in kept], options)
    if skipped:
        absent = [item["key"] for item in skipped]
        kept = kept[~np.isin(keys[kept], absent)]
    shards, shard = _shards_of(loaded)
    return Data(
        x=x,
        keys=keys[kept],
        y=None if y is None else y[kept],
        classes=names,
        group=np.array([item.group for item in loaded]) if "group" in columns else None,
        text=tuple(item.caption for item in loaded) if "caption" in columns else None,
        official=None if official is None else official[kept],
        name=name,
        skipped=tuple(skipped),
        notes=notes,
        shards=shards,
        shard=shard,
    )


def empty_unknown_labels(items: Sequence[ImageFile], unknown: Any, name: str) -> list[ImageFile]:
    """Empty the labels that ``unknown`` lists; refuse others that likely stand for none."""
    listed = [] if unknown is None else unknown if isinstance(unknown, (list, tuple)) else [unknown]
    none = {str(value) for value in listed}
    numbers = {read_number(value) for value in none} - {None}
    found = [
        replace(item, label="") if item.label in none or read_number(item.label) in numbers else item for item in items
    ]
    refuse_unknown_names((item.label for item in found), (), name)
    return found


def _shards_of(items: Sequence[ImageFile]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The files that hold several pictures, and which of them holds each."""
    if all(item.place is None for item in items):
        return (), None
    paths = {path: number for number, path in enumerate(dict.fromkeys(str(item.path.absolute()) for item in items))}
    return tuple(paths), np.array([paths[str(item.path.absolute())] for item in items], np.int64)
