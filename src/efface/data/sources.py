"""Sources: names and paths to Data. The literal dict ``SOURCES`` is all there is to register."""

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
TESTED = ("test", "val", "valid", "validation")
"""Sub-folders beside ``train`` that are read as the official test part."""


def load(source: str | os.PathLike[str], **options: Any) -> Data:
    """Data from a source's name or from a path: an image folder, a ``.csv`` or ``.jsonl`` manifest, an
    ``.npz``.

    ``options``: those of the source; ``efface data NAME`` lists them. A name wins over a file of that name.

    >>> load("fashion-mnist")
    >>> load("pictures/", size=32)
    """
    name = str(source)
    if name not in SOURCES:
        if "root" in options:
            raise EffaceError(
                f"The data is named twice: '{name}' and root '{options['root']}'.",
                "A path is itself the root.",
                f"Leave out data.root, or name a source: {', '.join(sorted(SOURCES))}.",
            )
        name, options = _from_path(name), {"root": str(source), **options}
    function = SOURCES[name]
    known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise EffaceError(
                f"The data source '{name}' has no option '{option}'.{suggest_name(option, known)}",
                f"Its options: {', '.join(known)}.",
            )
    missing = [key for key, one in known.items() if one.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise EffaceError(
            f"The data source '{name}' needs '{missing[0]}'.", remedy=f"Add --set data.{missing[0]}=PATH."
        )
    return function(**options)


def load_handwritten_digits(limit: int | None = None, limit_seed: int = 0) -> Data:
    """1 797 handwritten digits, 8 x 8 gray, 10 classes; comes with scikit-learn, no official test part.

    limit: keep a random subset of so many, stratified by class. limit_seed: seed of that subset.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x = (np.asarray(found["data"]).reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return limit_examples(Data.from_arrays(x, found["target"], name="digits"), limit, limit_seed)


def load_npz(root: str, limit: int | None = None, limit_seed: int = 0) -> Data:
    """Arrays in an .npz file: x, and where there are any y, keys, classes, group, text, official.

    root: the file. x: integers 0..255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C]. y: integers or names.
    limit: keep a random subset of so many (official training) images, stratified by class. limit_seed: its
    seed.
    """
    known = ("x", "y", "keys", "classes", "group", "text", "official")
    try:
        with open(root, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in known if name in file.files}
            there = list(file.files)
    except FileNotFoundError:
        raise EffaceError(f"There is no file {root}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise EffaceError(
            f"{root} cannot be read as an .npz of plain arrays.",
            f"It is damaged, or holds Python objects, which are not loaded: {error}",
            "Write it with numpy.savez(path, x=..., y=..., keys=...).",
        ) from error
    if "x" not in arrays:
        raise EffaceError(
            f"{root} holds no images.",
            f"They are looked for under the name 'x'; it holds: {', '.join(there) or 'nothing'}.",
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
    """A folder of images: one sub-folder for each class, or all of them in it and unlabelled.

    A key is the path below the folder, as in cats/a.png. Sub-folders named train and test (or val), each with
    a folder for each class, make official parts. root: the folder. size: scale the shorter side to so many
    pixels, then cut out the center; by default images stay as they are and must be of one size. channels: 1
    gray or 3 color; by default 1 if all images are gray. limit: decode only a random subset of so many
    (official training) images, stratified by class. limit_seed: its seed. skip_broken: leave out images that
    cannot be read, and record them. cache: folder for decoded pixels.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        raise EffaceError(f"There is no folder {root}.", remedy="Check --set data.root or the path.")
    items = _in_folder(top)
    labelled, divided = any(item.label for item in items), any(item.official for item in items)
    columns = {"label"} if labelled else set[str]()
    columns |= {"official"} if divided else set()
    options = ImageOptions(size, channels, skip_broken, cache)
    return _from_files(items, columns, options, limit, limit_seed, top.name or str(top))


def load_manifest(
    root: str,
    size: int | None = None,
    channels: int | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
    skip_broken: bool = False,
    cache: str | None = None,
) -> Data:
    """A table of images, .csv (with a header) or .jsonl: path, and where there are any key, label, caption,
    group.

    A path is relative to the table. A key is by default the path as it is written. An empty label is unknown.
    root: the table. size: scale the shorter side to so many pixels, then cut out the center; by default
    images stay as they are and must be of one size. channels: 1 gray or 3 color; by default 1 if all images
    are gray. limit: decode only a random subset of so many images, stratified by class. limit_seed: its seed.
    skip_broken: leave out images that cannot be read, and record them. cache: folder for decoded pixels.
    """
    table = Path(root).expanduser()
    rows = _table(table)
    columns = {column for row in rows for column in row}
    _refuse_slips(table, columns)
    items = [_item(table, number, row) for number, row in enumerate(rows, 1)]
    options = ImageOptions(size, channels, skip_broken, cache)
    return _from_files(items, columns, options, limit, limit_seed, table.name)


def _from_path(name: str) -> str:
    """Which source reads the path ``name``."""
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
            f"Files are {', '.join(TABLES)} (manifests) and .npz (arrays); folders hold images.",
            f"Name such a file, a folder, or a data source: {known}.",
        )
    raise EffaceError(
        f"There is no data source called '{name}', and no file or folder either.{suggest_name(name, SOURCES)}",
        f"Known sources: {known}.",
        "A path works too: an image folder, a .csv or .jsonl manifest, an .npz of arrays.",
    )


def _from_files(
    items: Sequence[ImageFile], columns: set[str], options: ImageOptions, limit: int | None, limit_seed: int, name: str
) -> Data:
    """Data of image files; ``columns``: what is known of them."""
    y, classes = encode_labels([item.label for item in items], name=name) if "label" in columns else (None, ())
    official = np.array([item.official for item in items]) if "official" in columns else None
    keys = np.array([item.key for item in items])
    kept = sample_positions(keys, y, official, limit, limit_seed, name)
    x, there, skipped = load_pixels([items[row] for row in kept], options)
    if skipped:
        absent = [one["key"] for one in skipped]
        kept = kept[~np.isin(keys[kept], absent)]
    return Data(
        x=x,
        keys=keys[kept],
        y=None if y is None else y[kept],
        classes=classes,
        group=np.array([item.group for item in there]) if "group" in columns else None,
        text=tuple(item.caption for item in there) if "caption" in columns else None,
        official=None if official is None else official[kept],
        name=name,
        skipped=tuple(skipped),
    )


def _in_folder(top: Path) -> list[ImageFile]:
    """The images below ``top``, sorted by key, with the class (and the official part) that their folders
    say."""
    names = sorted(path.relative_to(top).as_posix() for path in _walk(top))
    found = [name.split("/") for name in names if Path(name).suffix.lower() in SUFFIXES]
    if not found:
        others = sorted({Path(name).suffix.lower() or Path(name).name for name in names})
        raise EffaceError(
            f"There are no images in {top}.",
            f"It holds {len(names)} other files: {quote_first(others)}." if names else "It is empty.",
            f"Images end in {', '.join(sorted(SUFFIXES))}.",
        )
    loose = [parts[0] for parts in found if len(parts) == 1]
    if loose and len(loose) < len(found):
        raise EffaceError(
            f"{top} has {len(loose)} images beside its sub-folders: {quote_first(loose)}.",
            "Either every image lies in the folder of its class, or none does.",
            "Move them, or write a manifest.",
        )
    heads = {parts[0] for parts in found}
    if "train" in heads and heads & set(TESTED):
        return [_divided(top, parts, heads) for parts in found]
    return [ImageFile("/".join(p), top.joinpath(*p), label=p[0] if len(p) > 1 else "") for p in found]


def _divided(top: Path, parts: list[str], heads: set[str]) -> ImageFile:
    """An image below train/ or test/."""
    if len(heads) != 2:
        raise EffaceError(
            f"{top} has the sub-folders {', '.join(sorted(heads))}.",
            "With train and one of test, val beside it they are official parts; these are something else.",
            "Name one of them as the folder, or write a manifest.",
        )
    part = "train" if parts[0] == "train" else "test"
    label = parts[1] if len(parts) > 2 else ""
    return ImageFile("/".join(parts), top.joinpath(*parts), label=label, official=part)


def _walk(top: Path) -> Iterator[Path]:
    """Every file that is not hidden; links are followed, each folder once."""
    seen: set[str] = set()
    for here, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in files if not name.startswith("."))


def _table(table: Path) -> list[dict[str, Any]]:
    """The rows of a manifest, with the columns that are known or near to it."""
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows = _jsonl(text) if table.suffix.lower() == ".jsonl" else _csv(text)
    except FileNotFoundError:
        raise EffaceError(f"There is no manifest {table}.", remedy="Check --set data.root or the path.") from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise EffaceError(
            f"{table} cannot be read as a manifest.",
            str(error),
            f"A .csv with a header, or a .jsonl with an object on each line; columns: {', '.join(MANIFEST_COLUMNS)}.",
        ) from error
    if not rows:
        raise EffaceError(f"{table} lists no images.", "It is empty, or has a header alone.")
    return rows


def _csv(text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"Row {number} has not as many columns as the header.")
    return rows


def _jsonl(text: str) -> list[dict[str, Any]]:
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


def _refuse_slips(table: Path, columns: set[str]) -> None:
    """A column that is nearly one of ours is a slip that would go unnoticed."""
    for column in sorted(columns - set(MANIFEST_COLUMNS)):
        missing = [
            one
            for one in MANIFEST_COLUMNS
            if one not in columns and one in suggest_name(column.strip().lower(), MANIFEST_COLUMNS)
        ]
        if missing:
            raise EffaceError(
                f"{table} has a column '{column}' and no '{missing[0]}'.",
                "It would be ignored.",
                f"Name it '{missing[0]}' if it is meant so, and otherwise something less like it.",
            )
    if "path" not in columns:
        raise EffaceError(
            f"{table} has no column 'path'.",
            f"It has: {', '.join(sorted(columns))}.",
            f"Known: {', '.join(MANIFEST_COLUMNS)}.",
        )


def _item(table: Path, number: int, row: dict[str, Any]) -> ImageFile:
    """One row of a manifest."""
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
