"""Data sources: load a data set by name or from a path. To add a source, add it to the dict ``SOURCES``."""

from __future__ import annotations

import csv
import inspect
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data, encode_labels, limit_examples, quote_first, sample_positions
from efface.data.image_files import SUFFIXES, ImageFile, ImageOptions, load_pixels
from efface.data.public_datasets import load_cifar10, load_cifar100, load_fashion_mnist, load_svhn
from efface.errors import EffaceError, suggest_name

TABLES = (".csv", ".jsonl")
MANIFEST_COLUMNS = ("key", "path", "label", "caption", "group")
TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Sub-folders next to ``train`` that are read as the official test set."""


def load(source: str | os.PathLike[str], **options: Any) -> Data:
    """Load a data set.

    Args:
        source: The name of a source, or the path of an image folder, a ``.csv`` or ``.jsonl`` manifest, or an ``.npz``.
            A name takes precedence over a file of that name.
        options: The options of the source; ``efface data NAME`` lists them.

    Raises:
        EffaceError: The source or an option is unknown, or the data cannot be read.

    Example:
        >>> load("fashion-mnist")
        >>> load("pictures/", size=32)

    """
    name = str(source)
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
    for option in options:
        if option not in known:
            raise EffaceError(
                f"The data source '{name}' has no option '{option}'.{suggest_name(option, known)}",
                f"Its options: {', '.join(known)}.",
            )
    missing = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise EffaceError(
            f"The data source '{name}' needs '{missing[0]}'.", remedy=f"Add --set data.{missing[0]}=PATH."
        )
    seed = options.get("limit_seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise EffaceError(f"The option 'limit_seed' cannot be {seed!r}.", "It is a whole number, at least 0.")
    return loader(**options)


def load_handwritten_digits(limit: int | None = None, limit_seed: int = 0) -> Data:
    """Load 1 797 handwritten digits, 8 x 8 gray, 10 classes; part of scikit-learn, no official test set.

    Args:
        limit: Keep a random subset of this size, stratified by class.
        limit_seed: Seed of the subset.

    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    x = (np.asarray(digits["data"]).reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return limit_examples(Data.from_arrays(x, digits["target"], name="digits"), limit, limit_seed)


def load_npz(root: str, limit: int | None = None, limit_seed: int = 0) -> Data:
    """Load the arrays of an .npz file: x, and optionally y, keys, classes, group, text and official.

    x holds integers 0 to 255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C], and y holds integers or class names.

    Args:
        root: Path of the file.
        limit: Keep a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.

    """
    known = ("x", "y", "keys", "classes", "group", "text", "official")
    try:
        with open(root, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in known if name in file.files}
            names = list(file.files)
    except FileNotFoundError:
        raise EffaceError(f"There is no file {root}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise EffaceError(
            f"{root} cannot be read as an .npz of plain arrays.",
            f"It is damaged, or contains Python objects, which are never loaded: {error}",
            "Write it with numpy.savez(path, x=..., y=..., keys=...).",
        ) from error
    if "x" not in arrays:
        raise EffaceError(
            f"{root} contains no images.",
            f"The images must have the name 'x'; the file contains: {', '.join(names) or 'nothing'}.",
            "Write it with numpy.savez(path, x=..., y=..., keys=...).",
        )
    return limit_examples(Data.from_arrays(**arrays, name=Path(root).name), limit, limit_seed)


def load_image_folder(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
) -> Data:
    """Load a folder of images: one sub-folder for each class, or a flat folder without labels.

    The key of an image is its path below the folder, such as cats/a.png. Sub-folders named train and test (or val),
    each with a folder for each class, are read as the official training and test sets.

    Args:
        root: Path of the folder.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many (official training) images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.

    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise EffaceError(f"There is no folder {root}.", remedy="Check --set data.root or the path.")
    items = _list_images(top)
    columns = {column for column in ("label", "official") if any(getattr(item, column) for item in items)}
    options = ImageOptions(size, channels, skip_broken, cache)
    return _load_files(items, columns, options, limit, limit_seed, top.name or str(top))


def load_manifest(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
) -> Data:
    """Load a table of images, .csv or .jsonl, with a column path and optionally key, label, caption and group.

    A .csv has a header. Paths are relative to the table. The key is by default the path as it is written. An empty
    label is unknown.

    Args:
        root: Path of the table.
        size: Scale the shorter side to this many pixels, then crop the center; by default images keep their size, which
            must be the same for all.
        channels: 1 (gray) or 3 (color); by default 1 if all images are gray.
        limit: Decode only a random subset of this many images, stratified by class.
        limit_seed: Seed of the subset.
        skip_broken: Leave out images that cannot be read, and record them.
        cache: Folder for decoded pixels.

    """
    table = Path(root).expanduser()
    rows = _read_table(table)
    columns = {column for row in rows for column in row}
    _check_columns(table, columns)
    items = [_parse_row(table, number, row) for number, row in enumerate(rows, 1)]
    options = ImageOptions(size, channels, skip_broken, cache)
    return _load_files(items, columns, options, limit, limit_seed, table.name)


def _choose_source(name: str) -> str:
    """Return the name of the source that reads the path ``name``."""
    path = Path(name).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file() and path.suffix.lower() in TABLES:
        return "manifest"
    if path.is_file() and path.suffix.lower() == ".npz":
        return "npz"
    known = ", ".join(sorted(SOURCES))
    if path.is_file():
        raise EffaceError(
            f"{name} is not a kind of file that can be read as data.",
            f"Supported are {', '.join(TABLES)} (manifests), .npz (arrays), and folders of images.",
            f"Use such a file, a folder, or the name of a data source: {known}.",
        )
    raise EffaceError(
        f"There is no data source called '{name}', and no file or folder either.{suggest_name(name, SOURCES)}",
        f"Known sources: {known}.",
        "A path works too: an image folder, a .csv or .jsonl manifest, an .npz of arrays.",
    )


def _load_files(
    items: Sequence[ImageFile], columns: set[str], options: ImageOptions, limit: int | None, limit_seed: int, name: str
) -> Data:
    """Load image files; ``columns`` says which of label, official, group and caption are known."""
    y, classes = encode_labels([item.label for item in items], name=name) if "label" in columns else (None, ())
    official = np.array([item.official for item in items]) if "official" in columns else None
    keys = np.array([item.key for item in items])
    kept = sample_positions(keys, y, official, limit, limit_seed, name)
    x, loaded, skipped = load_pixels([items[row] for row in kept], options)
    if skipped:
        absent = [item["key"] for item in skipped]
        kept = kept[~np.isin(keys[kept], absent)]
    return Data(
        x=x,
        keys=keys[kept],
        y=None if y is None else y[kept],
        classes=classes,
        group=np.array([item.group for item in loaded]) if "group" in columns else None,
        text=tuple(item.caption for item in loaded) if "caption" in columns else None,
        official=None if official is None else official[kept],
        name=name,
        skipped=tuple(skipped),
    )


def _list_images(top: Path) -> list[ImageFile]:
    """List the images below ``top``, sorted by key, with the class and official part given by their folders."""
    names = sorted(path.relative_to(top).as_posix() for path in _walk(top))
    images = [name.split("/") for name in names if Path(name).suffix.lower() in SUFFIXES]
    if not images:
        others = sorted({Path(name).suffix.lower() or Path(name).name for name in names})
        raise EffaceError(
            f"There are no images in {top}.",
            f"It contains {len(names)} other files: {quote_first(others)}." if names else "It is empty.",
            f"Image files end in {', '.join(sorted(SUFFIXES))}.",
        )
    loose = [parts[0] for parts in images if len(parts) == 1]
    if loose and len(loose) < len(images):
        raise EffaceError(
            f"{top} has {len(loose)} images besides its sub-folders: {quote_first(loose)}.",
            "Either all images are in the folders of their classes, or none is.",
            "Move them, or write a manifest.",
        )
    heads = {parts[0] for parts in images}
    if "train" in heads and heads & set(TEST_FOLDERS):
        return [_official_image(top, parts, heads) for parts in images]
    return [ImageFile("/".join(p), top.joinpath(*p), label=p[0] if len(p) > 1 else "") for p in images]


def _official_image(top: Path, parts: list[str], heads: set[str]) -> ImageFile:
    """Describe an image below train/ or test/; ``parts`` is its path, ``heads`` are all sub-folders of ``top``."""
    if len(heads) != 2:
        raise EffaceError(
            f"{top} has the sub-folders {', '.join(sorted(heads))}.",
            "Folders train and test (or val) are official parts, and no other folder may be next to them.",
            "Load one of the sub-folders, or write a manifest.",
        )
    part = "train" if parts[0] == "train" else "test"
    label = parts[1] if len(parts) > 2 else ""
    return ImageFile("/".join(parts), top.joinpath(*parts), label=label, official=part)


def _walk(top: Path) -> Iterator[Path]:
    """Iterate over all files that are not hidden; links are followed, and each folder is read once."""
    seen: set[str] = set()
    for here, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))


def _read_table(table: Path) -> list[dict[str, Any]]:
    """Read the rows of a manifest."""
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows = _parse_jsonl(text) if table.suffix.lower() == ".jsonl" else _parse_csv(text)
    except FileNotFoundError:
        raise EffaceError(f"There is no manifest {table}.", remedy="Check --set data.root or the path.") from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise EffaceError(
            f"{table} cannot be read as a manifest.",
            str(error),
            f"Use a .csv with a header, or a .jsonl with one object per line; columns: {', '.join(MANIFEST_COLUMNS)}.",
        ) from error
    if not rows:
        raise EffaceError(f"{table} lists no images.", "It is empty, or has only a header.")
    return rows


def _parse_csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"Row {number} does not have as many columns as the header.")
    return rows


def _parse_jsonl(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} holds a {type(row).__name__}, not an object.")  # noqa: TRY004
        rows.append(row)
    return rows


def _check_columns(table: Path, columns: set[str]) -> None:
    """Raise if there is no column ``path``, or if a column looks like a misspelled one that would be ignored."""
    for column in sorted(columns - set(MANIFEST_COLUMNS)):
        suggestion = suggest_name(column.strip().lower(), MANIFEST_COLUMNS)
        missing = [known for known in MANIFEST_COLUMNS if known not in columns and known in suggestion]
        if missing:
            raise EffaceError(
                f"{table} has a column '{column}' but no '{missing[0]}'.",
                "It would be ignored.",
                f"Rename it to '{missing[0]}' if that is meant, or otherwise to a less similar name.",
            )
    if "path" not in columns:
        raise EffaceError(
            f"{table} has no column 'path'.",
            f"It has: {', '.join(sorted(columns))}.",
            f"Known: {', '.join(MANIFEST_COLUMNS)}.",
        )


def _parse_row(table: Path, number: int, row: dict[str, Any]) -> ImageFile:
    """Convert one row of a manifest."""
    values: dict[str, str] = {}
    for column in MANIFEST_COLUMNS:
        value = row.get(column)
        if isinstance(value, (dict, list, float, bool)):
            raise EffaceError(f"Item {number} of {table} has the {column} {value!r}.", "It should be text.")
        values[column] = "" if value is None else str(value).strip()
    if not values["path"] or ("key" in row and not values["key"]):
        raise EffaceError(f"Item {number} of {table} has no {'key' if values['path'] else 'path'}.")
    path = table.parent / Path(values.pop("path")).expanduser()
    return ImageFile(**(values | {"key": values["key"] or str(row["path"]).strip()}), path=path)


SOURCES: dict[str, Callable[..., Data]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_handwritten_digits,
    "fashion-mnist": load_fashion_mnist,
    "folder": load_image_folder,
    "manifest": load_manifest,
    "npz": load_npz,
    "svhn": load_svhn,
}
