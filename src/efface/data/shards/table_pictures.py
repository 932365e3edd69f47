"""List the pictures in tables of Arrow, with their keys and what is said about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from efface.data.image_files import ImageFile
from efface.data.names import quote_first
from efface.data.shards.copies import PictureCopies, RowPlace
from efface.data.shards.fields import as_field, check_columns
from efface.data.shards.paths import Shard
from efface.data.shards.tables import TableShard
from efface.data.shards.tar_pictures import require_flag
from efface.errors import EffaceError, suggest_name

TABLE_SHARDS = (".parquet", ".arrow")
TABLE_COLUMNS = ("key", "image", "label", "caption", "group")
USUAL: dict[str, tuple[str, ...]] = {
    "key": ("key", "__key__"),
    "label": ("label", "cls"),
    "caption": ("caption", "text", "txt"),
    "group": ("group",),
}
"""Names of columns that are read without being told, the first that is there."""
KEY_KINDS = ("content", "row")


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How the columns of a table are understood."""

    columns: dict[str, str] = field(default_factory=dict)
    """Columns with other names."""
    keys: Literal["content", "row"] | None = None
    """What the key is where no column says it: a digest of the encoded picture, or shard and row."""
    shard_keys: bool = False
    """Whether the name of the shard comes before each key."""

    @staticmethod
    def of(columns: Any, keys: Any, shard_keys: Any) -> TableOptions:
        """Check what a user said.

        Raises:
            EffaceError: A value is of another kind.

        """
        if keys is not None and keys not in KEY_KINDS:
            raise EffaceError(
                f"The option 'keys' cannot be {keys!r}.{suggest_name(str(keys), KEY_KINDS)}",
                "It is content (a digest of the picture's bytes) or row (the shard and the row).",
            )
        require_flag("shard_keys", shard_keys)
        return TableOptions(columns=check_columns(columns, TABLE_COLUMNS), keys=keys, shard_keys=shard_keys)


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table are read for what."""

    image: str
    key: str | None
    """None: the path in the column of pictures, or what the options say."""
    has_path: bool
    others: dict[str, str]
    """Of label, caption and group, the column that says it."""
    unused: tuple[str, ...]

    def light(self) -> list[str]:
        """The columns that are read to list the rows; pictures are none of them."""
        found = [] if self.key is None else [self.key]
        return [*dict.fromkeys([*found, *self.others.values()])]


def choose_columns(table: TableShard, options: TableOptions) -> TableColumns:
    """Choose which columns of a table are read for what.

    Raises:
        EffaceError: A stated column is not there, or it is unclear which one holds the pictures.

    """
    names = list(table.schema.names)
    for name, column in options.columns.items():
        if column not in names:
            raise EffaceError(
                f"data.columns.{name} names '{column}', and {table.path} has no such column."
                f"{suggest_name(column, names)}",
                f"It has: {', '.join(names)}.",
            )
    candidates = table.picture_columns()
    image = options.columns.get("image") or ("image" if "image" in candidates else None)
    if image is None and len(candidates) != 1:
        raise EffaceError(
            f"It is unclear which column of {table.path} holds the pictures.",
            f"It has: {', '.join(names)}; of these hold bytes: {', '.join(candidates) or 'none'}.",
            "Say which: --set data.columns.image=NAME.",
        )
    image = image or candidates[0]
    if image not in candidates:
        raise EffaceError(
            f"The column '{image}' of {table.path} holds no encoded pictures.",
            f"Its type is {table.schema.field(image).type}; pictures are bytes, or bytes with a path.",
            "Say which column does: --set data.columns.image=NAME.",
        )
    found = {
        name: options.columns.get(name) or next((one for one in usual if one in names and one != image), None)
        for name, usual in USUAL.items()
    }
    kind = table.schema.field(image).type
    has_path = table.arrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
    read = {image, *(one for one in found.values() if one)}
    return TableColumns(
        image=image,
        key=found.pop("key"),
        has_path=has_path,
        others={name: column for name, column in found.items() if column},
        unused=tuple(name for name in names if name not in read),
    )


def list_keys(shard: Shard, table: TableShard, chosen: TableColumns, options: TableOptions) -> Iterator[str]:
    """The key of each row of a table, in the order of the rows.

    Raises:
        EffaceError: A row has none, or nothing names the pictures.

    """
    column = chosen.key
    if column is None and options.keys == "content":
        for picture in table.pictures(chosen.image):
            yield hashlib.sha256(picture or b"").hexdigest()[:32]
        return
    before = f"{shard.name}/" if options.shard_keys else ""
    if column is None and options.keys == "row":
        yield from (f"{shard.name}/{row:07d}" for row in range(table.rows))
        return
    if column is None and not chosen.has_path:
        raise _unnamed_error(shard.path)
    place = column if column is not None else f"{chosen.image}.path"
    row = 0
    for batch in table.batches([place]):
        values = batch.column(0) if column is not None else batch.column(0).field("path")
        for value in values.to_pylist():
            where = f"Row {row} of {shard.path}"
            key = as_field(value, "key", where) if not isinstance(value, str) else value
            if not key.strip():
                raise (
                    _unnamed_error(shard.path)
                    if column is None
                    else EffaceError(
                        f"{where} has no key: '{column}' is empty.", "Every picture needs a name that stays."
                    )
                )
            yield before + key
            row += 1


def list_table_pictures(
    shard: Shard, table: TableShard, chosen: TableColumns, options: TableOptions, home: Path
) -> list[ImageFile]:
    """List the pictures of a table, row by row; none of them is read.

    Args:
        shard: The table's place and name.
        table: The table.
        chosen: Its columns.
        options: How they are understood.
        home: The folder of caches, for copies of the encoded pictures.

    """
    keys = list(list_keys(shard, table, chosen, options))
    copies = PictureCopies(table, chosen.image, home, keys)
    said: dict[str, list[str]] = {name: [] for name in chosen.others}
    classes = table.class_names
    light = list(dict.fromkeys(chosen.others.values()))
    for batch in table.batches(light) if light else ():
        for name, column in chosen.others.items():
            values = batch.column(batch.schema.names.index(column)).to_pylist()
            said[name] += [_name_class(value, name, classes.get(column), shard) for value in values]
    return [
        ImageFile(
            key,
            shard.path,
            **{name: values[row] for name, values in said.items()},
            official=shard.official,
            place=RowPlace(copies, row),
        )
        for row, key in enumerate(keys)
    ]


def _name_class(value: Any, name: str, classes: tuple[str, ...] | None, shard: Shard) -> str:
    """The label of a row as text; a position in a list of classes is replaced by its name."""
    if name == "label" and classes is not None and isinstance(value, int):
        if value == -1:
            return ""  # as datasets writes an unknown one
        if not 0 <= value < len(classes):
            raise EffaceError(f"A label of {shard.path} is {value}, and it names {len(classes)} classes.")
        return classes[value]
    return as_field(value, name, f"A row of {shard.path}")


def describe_unused(chosen: TableColumns, name: str) -> list[str]:
    """Say which columns of a table are not used."""
    if not chosen.unused:
        return []
    return [f"{name}: not used are the columns {quote_first(chosen.unused)} (data.columns can map them)."]


def _unnamed_error(path: Path) -> EffaceError:
    return EffaceError(
        f"Nothing names the pictures of {path}.",
        "There is no column 'key' or '__key__', and no path beside the bytes.",
        "Say which column does: --set data.columns.key=NAME. Or --set data.keys=content: a digest of each picture; or "
        "data.keys=row, if the rows never change.",
    )
