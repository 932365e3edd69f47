"""Data sources: load a data set by name or from a path. To add a source, add it to the dict ``SOURCES``."""

from __future__ import annotations

import csv
import difflib
import inspect
import os
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.data.array_files import ARRAY_ERRORS, read_npz, unreadable_arrays_error
from efface.data.class_order import state_classes
from efface.data.dataset import Data, limit_examples
from efface.data.image_files import ImageFile, ImageOptions, image_suffixes
from efface.data.image_folders import list_images
from efface.data.names import quote_first
from efface.data.picture_data import empty_unknown_labels, load_pictures
from efface.data.preprocessing import Preprocessing
from efface.data.preprocessing_files import read_preprocessing
from efface.data.public_datasets import (
    load_cifar10,
    load_cifar100,
    load_fashion_mnist,
    load_handwritten_digits,
    load_svhn,
)
from efface.data.shards.hub import is_hub_path
from efface.data.shards.loading import load_tables, load_tars
from efface.data.shards.paths import holds_shards, is_pattern
from efface.data.shards.saved import is_saved_dataset
from efface.data.shards.table_pictures import TABLE_SHARDS
from efface.data.shards.tar_pictures import TAR_SUFFIXES
from efface.data.text_files import TABLE_SUFFIXES, Table, read_table
from efface.errors import EffaceError, suggest_name

MANIFEST_COLUMNS = ("key", "path", "label", "caption", "group")
MISSPELLED = 0.75
"""Similarity from which the name of an unknown column is taken for a misspelled one."""


def load(source: str | os.PathLike[str], **options: Any) -> Data:
    """Load a data set.

    Args:
        source: The name of a source, or the path of an image folder, a ``.csv`` or ``.jsonl`` manifest, an ``.npz``, or
            shards: ``.tar``, ``.parquet``, a folder of them, or a pattern. A name takes precedence over a file of it.
        options: The options of the source; ``efface data NAME`` lists them. ``classes`` goes with every source: the
            order of the classes, see :func:`efface.data.class_order.state_classes`.

    Raises:
        EffaceError: The source or an option is unknown, or the data cannot be read.

    Example:
        >>> load("fashion-mnist")
        >>> load("pictures/", size=32)

    """
    name, classes = str(source), options.pop("classes", None)
    if name not in SOURCES:
        if "root" in options:
            raise EffaceError(
                f"The data is named twice: '{name}' and root '{options['root']}'.",
                "A path is used as the root.",
                f"Leave out data.root, or name a source: {', '.join(sorted(SOURCES))}.",
            )
        name, options = _choose_source(name), {"root": str(source), **options}
    loader = SOURCES[name]
    known = inspect.signature(loader).parameters
    for option, value in options.items():
        if option not in known:
            raise EffaceError(
                f"The data source '{name}' has no option '{option}'.{suggest_name(option, known)}",
                f"Its options: {', '.join(known)}.",
            )
        if known[option].annotation == "bool" and not isinstance(value, bool):
            raise EffaceError(f"The option '{option}' cannot be {value!r}.", "It is true or false.")
    missing = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise EffaceError(
            f"The data source '{name}' needs '{missing[0]}'.", remedy=f"Add --set data.{missing[0]}=PATH."
        )
    seed = options.get("limit_seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise EffaceError(f"The option 'limit_seed' cannot be {seed!r}.", "It is a whole number, at least 0.")
    data = loader(**options)
    return data if classes is None else state_classes(data, classes)


def load_npz(root: str, channels: int | None = None, limit: int | None = None, limit_seed: int = 0) -> Data:
    """Load the arrays of an .npz file: x, and optionally y, keys, classes, group, text and official.

    x holds integers 0 to 255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C], and y holds integers or class names.

    Args:
        root: Path of the file.
        channels: Number of channels, where the shape of x does not tell; 4 are kept and not read as RGBA.
        limit: Keep a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.

    """
    known = ("x", "y", "keys", "classes", "group", "text", "official")
    remedy = "Write it with numpy.savez(path, x=..., y=..., keys=...)."
    try:
        arrays, names = read_npz(Path(root).expanduser(), known)
    except FileNotFoundError:
        raise EffaceError(f"There is no file {root}.") from None
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(root, error, remedy) from error
    if "x" not in arrays:
        raise EffaceError(
            f"{root} contains no images.",
            f"The images must have the name 'x'; the file contains: {', '.join(names) or 'nothing'}.",
            remedy,
        )
    data = Data.from_arrays(**arrays, name=Path(root).name, channels=channels)
    return limit_examples(data, limit, limit_seed)


def load_image_folder(
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
) -> Data:
    """Load a folder of images: one sub-folder for each class, or a flat folder without labels.

    The key of an image is its path below the folder, such as cats/a.png. Sub-folders named train and test or val (or
    both), each with a folder for each class, are read as the official training and test sets.

    Args:
        root: Path of the folder.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.
        white: The value of white in pictures with 16 bits, such as 4095 where they hold 12-bit values; by default 65535
            if the values reach into the upper half.
        labels: Whether the sub-folders are classes.
        preprocessing: In place of size: how pictures are resized and cropped, as settings ({resize: 256, crop: [224,
            224], resampling: bicubic}), or a file of timm, transformers or open_clip that states it.
        decode: memory (once, into one array), lazy (each time when pictures are needed) or auto: lazy for pictures
            above 64 pixels whose array would take more than a quarter of the free memory, unless a cache is given.

    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise EffaceError(f"There is no folder {root}.", remedy="Check --set data.root or the path.")
    listing = list_images(top)
    columns = {column for column in ("label", "official") if any(getattr(item, column) for item in listing.images)}
    if not labels:
        columns -= {"label"}
        listing.notes = [note for note in listing.notes if "data.labels" not in note]
    options = ImageOptions(size, channels, skip_broken, cache, white, read_preprocessing(preprocessing), decode)
    data = load_pictures(listing.images, columns, options, limit, limit_seed, top.name or str(top))
    return replace(data, unread=tuple(listing.unread), notes=(*listing.notes, *data.notes))


def load_manifest(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
    white: int | None = None,
    columns: dict[str, str] | None = None,
    encoding: str | None = None,
    unknown: str | None = None,
    preprocessing: Preprocessing | str | None = None,
    decode: str = "auto",
) -> Data:
    """Load a table of images, .csv, .tsv or .jsonl, with a column path and optionally key, label, caption and group.

    A .csv has a header, and commas, semicolons or tabs between its columns. Paths are relative to the table. The key is
    by default the path as it is written. An empty label is unknown.

    Args:
        root: Path of the table.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.
        white: The value of white in pictures with 16 bits, such as 4095 where they hold 12-bit values; by default 65535
            if the values reach into the upper half.
        columns: Columns with other names, such as {caption: title}: captions are read from the column title.
        encoding: Encoding of the table, such as cp1252; by default UTF-8, or what a byte order mark says.
        unknown: The label, or a list of labels, that stands for an unknown one, such as -1 or nan.
        preprocessing: In place of size: how pictures are resized and cropped, as settings ({resize: 256, crop: [224,
            224], resampling: bicubic}), or a file of timm, transformers or open_clip that states it.
        decode: memory (once, into one array), lazy (each time when pictures are needed) or auto: lazy for pictures
            above 64 pixels whose array would take more than a quarter of the free memory, unless a cache is given.

    """
    table = Path(root).expanduser()
    wanted = str((columns or {}).get("path", "path")) if isinstance(columns, Mapping | None) else "path"
    found = _read_manifest(table, wanted, encoding)
    mapping = _check_mapping(table, columns, found.columns)
    notes = [*found.notes, *_check_columns(table, found.columns, mapping)]
    items = [_parse_row(table, number, row, mapping) for number, row in enumerate(found.rows, 1)]
    written = [table.parent / Path(str(row.get(wanted)).strip()).expanduser() for row in found.rows]
    pairs = zip(items, written, strict=True)
    moved = sum(item.path != path and not str(path).isascii() and not path.exists() for item, path in pairs)
    if moved:
        notes.append(f"{moved} paths of {table.name} were found with other code points (Unicode NFC, NFD).")
    items = empty_unknown_labels(items, unknown, table.name)
    present = {name for name in MANIFEST_COLUMNS if mapping.get(name, name) in found.columns}
    options = ImageOptions(size, channels, skip_broken, cache, white, read_preprocessing(preprocessing), decode)
    data = load_pictures(items, present, options, limit, limit_seed, table.name)
    return replace(data, notes=(*notes, *data.notes))


def _choose_source(name: str) -> str:
    """Return the name of the source that reads the path ``name``."""
    path = Path(name).expanduser()
    if is_hub_path(name):
        return "parquet"
    if path.is_dir():
        return _choose_folder(path)
    if (path.is_file() or is_pattern(name)) and path.suffix.lower() in (*TAR_SUFFIXES, *TABLE_SHARDS):
        return "tar" if path.suffix.lower() in TAR_SUFFIXES else "parquet"
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return "manifest"
    if path.is_file() and path.suffix.lower() == ".npz":
        return "npz"
    known = ", ".join(sorted(SOURCES))
    if path.is_file():
        raise EffaceError(
            f"{name} is not a kind of file that can be read as data.",
            f"Supported are {', '.join(TABLE_SUFFIXES)} (manifests), .npz (arrays), {', '.join(TAR_SUFFIXES)} "
            f"(WebDataset), {', '.join(TABLE_SHARDS)} (tables), and folders of images.",
            f"Use such a file, a folder, or the name of a data source: {known}.",
        )
    raise EffaceError(
        f"There is no data source called '{name}', and no file or folder either.{suggest_name(name, SOURCES)}",
        f"Known sources: {known}.",
        "A path works too: an image folder, a .csv or .jsonl manifest, an .npz of arrays, .tar or .parquet shards.",
    )


def _choose_folder(folder: Path) -> str:
    """Return the name of the source that reads a folder: one of shards, or of images."""
    if is_saved_dataset(folder):
        return "parquet"
    for source, suffixes in (("tar", TAR_SUFFIXES), ("parquet", TABLE_SHARDS)):
        if holds_shards(folder, suffixes, image_suffixes()):
            return source
    return "folder"


def _read_manifest(table: Path, wanted: str, encoding: str | None) -> Table:
    """Read the rows of a manifest."""
    try:
        found = read_table(table, wanted, encoding)
    except FileNotFoundError:
        raise EffaceError(f"There is no manifest {table}.", remedy="Check --set data.root or the path.") from None
    except (OSError, ValueError, csv.Error) as error:
        raise EffaceError(
            f"{table} cannot be read as a manifest.",
            str(error),
            f"Use a .csv with a header, or a .jsonl with one object per line; columns: {', '.join(MANIFEST_COLUMNS)}.",
        ) from error
    if not found.rows:
        raise EffaceError(f"{table} lists no images.", "It is empty, or has only a header.")
    return found


def _check_mapping(table: Path, columns: Mapping[str, str] | None, known: Collection[str]) -> dict[str, str]:
    """Check ``data.columns``: a known name, and the column of the table that is read for it."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise EffaceError(
            f"data.columns cannot be {columns!r}.",
            remedy="Write --set data.columns.caption=NAME, with a column's name.",
        )
    for name, column in columns.items():
        if name not in MANIFEST_COLUMNS:
            raise EffaceError(
                f"data.columns maps '{name}', which no manifest has.{suggest_name(name, MANIFEST_COLUMNS)}",
                f"Known: {', '.join(MANIFEST_COLUMNS)}.",
                "Write it as data.columns.caption=NAME: first the known name, then the column of the table.",
            )
        if column not in known:
            raise EffaceError(
                f"data.columns.{name} names '{column}', and {table} has no such column.",
                f"It has: {', '.join(known)}.",
            )
    return dict(columns)


def _check_columns(table: Path, columns: Sequence[str], mapping: Mapping[str, str]) -> list[str]:
    """Raise if there is no column ``path``, or one looks misspelled; say which columns are not used."""
    read = {name: mapping.get(name, name) for name in MANIFEST_COLUMNS}
    unused = [column for column in columns if column not in read.values()]
    for column in unused:
        alike = difflib.get_close_matches(column.strip().lower(), MANIFEST_COLUMNS, 1, MISSPELLED)
        missing = [known for known in alike if read[known] not in columns]
        if missing:
            raise EffaceError(
                f"{table} has a column '{column}' but no '{missing[0]}'.",
                "It would be ignored.",
                f"If that is meant: rename it, or --set data.columns.{missing[0]}='{column}'. Otherwise give it a less "
                "similar name.",
            )
    if read["path"] not in columns:
        raise EffaceError(
            f"{table} has no column 'path'.",
            f"It has: {', '.join(sorted(columns))}.",
            f"Known: {', '.join(MANIFEST_COLUMNS)}. For another name: --set data.columns.path=NAME.",
        )
    return (
        [f"{table.name}: not used are the columns {quote_first(unused)} (data.columns can map them)."] if unused else []
    )


def _parse_row(table: Path, number: int, row: dict[str, Any], mapping: Mapping[str, str]) -> ImageFile:
    """Convert one row of a manifest. Spaces are part of keys and paths, and not of labels, captions and groups."""
    values: dict[str, str] = {}
    for column in MANIFEST_COLUMNS:
        value = row.get(mapping.get(column, column))
        if isinstance(value, float) and value != value:
            value = None  # as pandas writes a missing value
        if isinstance(value, (dict, list, float, bool)):
            raise EffaceError(f"Item {number} of {table} has the {column} {value!r}.", "It should be text.")
        text = "" if value is None else str(value)
        values[column] = text if column in ("key", "path") else text.strip()
    written, has_key = values.pop("path"), mapping.get("key", "key") in row
    if not written.strip() or (has_key and not values["key"].strip()):
        raise EffaceError(f"Item {number} of {table} has no {'key' if written.strip() else 'path'}.")
    if "\0" in written:
        raise EffaceError(f"Item {number} of {table} has a path with a NUL character.")
    try:
        written, path = _find_picture(table, written)
    except (OSError, RuntimeError) as error:  # a name that no file system holds, or a home that nobody has
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise EffaceError(f"Item {number} of {table} has a path that cannot be used: {why}.") from error
    return ImageFile(values["key"] or written, path, values["label"], values["caption"], values["group"])


def _find_picture(table: Path, written: str) -> tuple[str, Path]:
    """The path as it is written in a table, or, if only that is there, without outer spaces or in another form."""
    path = table.parent / Path(written).expanduser()
    if written != written.strip() and not path.exists():
        written = written.strip()
        path = table.parent / Path(written).expanduser()
    if not written.isascii() and not path.exists():
        forms = {Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")}
        existing = [form for form in forms if form.exists()]
        path = existing[0] if len(existing) == 1 else path
    return written, path


SOURCES: dict[str, Callable[..., Data]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_handwritten_digits,
    "fashion-mnist": load_fashion_mnist,
    "folder": load_image_folder,
    "manifest": load_manifest,
    "npz": load_npz,
    "parquet": load_tables,
    "svhn": load_svhn,
    "tar": load_tars,
}
