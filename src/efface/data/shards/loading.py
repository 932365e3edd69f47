"""The data sources that are shards: WebDataset tars, and tables of Arrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.data.dataset import Data
from efface.data.decoded_pixels import pixels_home
from efface.data.image_files import ImageFile, ImageOptions
from efface.data.lazy_pixels import LazyPixels
from efface.data.names import require_unique_keys
from efface.data.picture_data import empty_unknown_labels, load_pictures
from efface.data.preprocessing import Preprocessing
from efface.data.preprocessing_files import read_preprocessing
from efface.data.shards.fields import REPEATED
from efface.data.shards.hub import download_dataset, is_hub_path
from efface.data.shards.paths import ShardListing, list_shards
from efface.data.shards.saved import is_saved_dataset, list_saved
from efface.data.shards.table_pictures import (
    TABLE_SHARDS,
    TableOptions,
    choose_columns,
    describe_unused,
    list_table_pictures,
)
from efface.data.shards.tables import TableShard
from efface.data.shards.tar_pictures import TAR_SUFFIXES, TarOptions, list_tar_pictures, require_flag
from efface.errors import EffaceError


def load_tars(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
    white: int | None = None,
    labels: bool = True,
    preprocessing: Preprocessing | str | None = None,
    decode: str = "auto",
    picture: str | None = None,
    key_suffix: bool = False,
    shard_keys: bool = False,
    columns: dict[str, str] | None = None,
    unknown: str | None = None,
) -> Data:
    """Load WebDataset tars: members with the same name before the first dot are one example.

    The key is that name, such as cats/a for cats/a.jpg. The label is the member .cls, the caption .txt, and .json can
    hold label, caption and group; without any of these the folders in the tar are the classes. Members are read where
    they are: nothing is extracted. Shards whose names begin with train and test or val are the official parts.

    Args:
        root: A tar, a folder of tars, or a pattern such as shard-{000000..000009}.tar.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.
        white: The value of white in pictures with 16 bits, such as 4095 where they hold 12-bit values; by default 65535
            if the values reach into the upper half.
        labels: Whether folders in the tars are classes.
        preprocessing: In place of size: how pictures are resized and cropped, as settings ({resize: 256, crop: [224,
            224], resampling: bicubic}), or a file of timm, transformers or open_clip that states it.
        decode: memory (once, into one array), lazy (each time when pictures are needed) or auto: lazy for pictures
            above 64 pixels whose array would take more than a quarter of the free memory, unless a cache is given.
        picture: Ending of the member that is the picture, such as jpg, where several could be.
        key_suffix: Whether the key is the picture's name with its suffix, as in a folder: cats/a.jpg.
        shard_keys: Put the name of the shard before each key, where keys repeat from shard to shard.
        columns: Fields of .json members with other names, such as {caption: text}; {key: id} takes the key from there.
        unknown: The label, or a list of labels, that stands for an unknown one, such as -1 or nan.

    """
    options = ImageOptions(size, channels, skip_broken, cache, white, read_preprocessing(preprocessing), decode)
    tar_options = TarOptions.of(picture, key_suffix, shard_keys, columns)
    require_flag("labels", labels)
    listing = list_shards(root, TAR_SUFFIXES)
    items: list[ImageFile] = []
    stated: set[str] = set()
    for shard in listing.shards:
        for one in list_tar_pictures(shard, tar_options, listing.skipped):
            items.append(one.item)
            stated |= one.fields
    if labels and "label" not in stated and items:
        heads = [_class_folder(one, shard_keys) for one in items]
        if all(heads) and len(set(heads)) > 1:
            items = [replace(one, label=head) for one, head in zip(items, heads, strict=True)]
            stated.add("label")
    return _load(items, stated, options, limit, limit_seed, listing, unknown)


def load_tables(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
    white: int | None = None,
    columns: dict[str, str] | None = None,
    keys: str | None = None,
    shard_keys: bool = False,
    unknown: str | None = None,
    preprocessing: Preprocessing | str | None = None,
    decode: str = "auto",
) -> Data:
    """Load tables of encoded pictures: Parquet files, or a folder that datasets wrote with save_to_disk.

    Read are the columns image (bytes, or bytes with a path), key or __key__, label or cls, caption or text, and group.
    Without a column of keys the paths beside the bytes are the keys. Names of classes that datasets stored are used.
    Shards whose names begin with train and test or validation are the official parts. Needs the extra data.

    Args:
        root: A .parquet, a folder of them, a pattern such as part-{00..09}.parquet, a folder of save_to_disk, or
            hf://datasets/OWNER/NAME, which is downloaded.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.
        white: The value of white in pictures with 16 bits, such as 4095 where they hold 12-bit values; by default 65535
            if the values reach into the upper half.
        columns: Columns with other names, such as {image: photo, key: id}.
        keys: Where no column names the pictures: content (a digest of the bytes) or row (shard and row, which must then
            never change).
        shard_keys: Put the name of the shard before each key, where keys repeat from shard to shard.
        unknown: The label, or a list of labels, that stands for an unknown one, such as -1 or nan.
        preprocessing: In place of size: how pictures are resized and cropped, as settings ({resize: 256, crop: [224,
            224], resampling: bicubic}), or a file of timm, transformers or open_clip that states it.
        decode: memory (once, into one array), lazy (each time when pictures are needed) or auto: lazy for pictures
            above 64 pixels whose array would take more than a quarter of the free memory, unless a cache is given.

    """
    options = ImageOptions(size, channels, skip_broken, cache, white, read_preprocessing(preprocessing), decode)
    table_options = TableOptions.of(columns, keys, shard_keys)
    listing = find_tables(root)
    items: list[ImageFile] = []
    stated: set[str] = set()
    names: list[tuple[str, ...] | None] = []
    notes: dict[str, None] = {}
    for shard in listing.shards:
        table = TableShard(shard.path)
        chosen = choose_columns(table, table_options)
        items += list_table_pictures(shard, table, chosen, table_options, pixels_home(options))
        stated |= set(chosen.others)
        names.append(table.class_names.get(chosen.others.get("label", "")))
        notes |= dict.fromkeys(describe_unused(chosen, listing.name))
    if table_options.keys == "content":
        items = list(_without_copies(items, listing.skipped))
    classes = names[0] if names and len(set(names)) == 1 else None
    try:
        data = _load(items, stated, options, limit, limit_seed, listing, unknown, classes)
    except BaseException:
        _release(items)
        raise
    if not isinstance(data.x, LazyPixels):
        _release(items)
    return replace(data, notes=(*notes, *data.notes))


def find_tables(root: str) -> ShardListing:
    """List the tables that a path stands for; a data set of the Hub is downloaded."""
    if is_hub_path(root):
        return list_shards(str(download_dataset(root)), TABLE_SHARDS)
    top = Path(root).expanduser()
    return list_saved(top) if is_saved_dataset(top) else list_shards(root, TABLE_SHARDS)


def _load(
    items: list[ImageFile],
    stated: set[str],
    options: ImageOptions,
    limit: int | None,
    limit_seed: int,
    listing: ShardListing,
    unknown: Any,
    classes: tuple[str, ...] | None = None,
) -> Data:
    if not items:
        kinds = ", ".join(sorted({kind for _, kind in listing.skipped}))
        raise EffaceError(
            f"There are no pictures in {listing.name}.", f"It contains: {kinds}." if kinds else "Its shards are empty."
        )
    require_unique_keys([item.key for item in items], listing.name, REPEATED)
    items = sorted(items, key=lambda item: item.key)  # as in a folder: the order of training follows from it
    if "label" in stated:
        items = empty_unknown_labels(items, unknown, listing.name)
    columns = stated | ({"official"} if any(item.official for item in items) else set())
    data = load_pictures(items, columns, options, limit, limit_seed, listing.name, classes)
    return replace(data, unread=listing.unread, notes=(*listing.notes, *data.notes))


def _class_folder(item: ImageFile, shard_keys: bool) -> str:
    """The first folder of a picture in its tar; empty if it has none."""
    key = item.key.partition("/")[2] if shard_keys else item.key
    return key.partition("/")[0] if "/" in key else ""


def _without_copies(items: list[ImageFile], skipped: Counter[tuple[str, str]]) -> Iterator[ImageFile]:
    """Leave out rows whose picture is in an earlier row, byte by byte, and count them."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            skipped[item.path.name, "copies of other pictures"] += 1
        else:
            seen.add(item.key)
            yield item


def _release(items: list[ImageFile]) -> None:
    """Remove the copies of encoded pictures that this process made."""
    for copies in {id(one): one for one in (getattr(item.place, "copies", None) for item in items) if one}.values():
        copies.release()
