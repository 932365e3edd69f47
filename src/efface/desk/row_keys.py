"""Files of keys: whose the rows of an array or the vectors of an index are, one key for each, in their order.

``NAME.keys.txt``, ``NAME.keys.csv`` with a column ``key`` (and ``id``, if an index has numbers of its own) or
``NAME.keys.npy``, beside ``NAME.npy`` or ``NAME.faiss``. They are read by the rules of ``efface.data.text_files``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from efface.data.array_files import ARRAY_ERRORS, read_npy, unreadable_arrays_error
from efface.data.text_files import as_texts, read_list, read_table
from efface.errors import EffaceError

KEY_ENDS = (".keys.txt", ".keys.csv", ".keys.npy")
"""How the name of a file of keys ends."""
WRITE_AGAIN = "Write it again with `efface embed`, which leaves the forgotten out, or remove it."
_KEY, _NUMBER = "key", "id"
_WHOLE = re.compile(r"\s*-?[0-9]{1,19}\s*")
_LARGEST = 2**63
"""What no number of a vector reaches: FAISS has 64 bits, one of them for the sign."""
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class RowKeys:
    """The keys of rows, and the numbers that an index gave to the rows, where a file has them."""

    name: str
    """Name of the file."""
    keys: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...] = ()
    """The rows of a table, with all its columns; empty for other files."""

    def numbers(self) -> np.ndarray | None:
        """The column of numbers, int64; None if there is none.

        Raises:
            EffaceError: One of them is no whole number.

        """
        column = _column(self.rows[0], _NUMBER) if self.rows else None
        if column is None:
            return None
        texts = [str(row[column]) for row in self.rows]
        found = [int(one) if _WHOLE.fullmatch(one) else _LARGEST for one in texts]
        if max(map(abs, found)) >= _LARGEST:
            raise EffaceError(
                f"The column {_NUMBER} of {self.name} has cells that are no whole numbers.",
                "It must have the numbers under which the index knows its vectors.",
                WRITE_AGAIN,
            )
        return np.array(found, dtype=np.int64)

    def kept(self, keep: np.ndarray, numbers: np.ndarray | None) -> RowKeys:
        """The keys of the rows that stay; with numbers if an index has them, which needs a table."""
        chosen = np.flatnonzero(keep).tolist()
        keys = tuple(self.keys[one] for one in chosen)
        rows: tuple[Mapping[str, Any], ...] = tuple(self.rows[one] for one in chosen) if self.rows else ()
        if numbers is None:
            return RowKeys(self.name, keys, rows)
        if not self.rows:
            rows = tuple({_KEY: key} for key in keys)
        column = (_column(self.rows[0], _NUMBER) if self.rows else None) or _NUMBER
        rows = tuple({**row, column: str(number)} for row, number in zip(rows, numbers.tolist(), strict=True))
        return RowKeys(f"{Path(self.name).stem}.csv", keys, rows)

    def write(self, folder: Path) -> Path:
        """Write them into a folder, under their name; returns the file."""
        path = folder / self.name
        kind = path.suffix.lower()
        if kind == ".npy":
            with open(path, "wb") as file:
                np.save(file, np.array(self.keys, dtype=np.str_))
        elif kind == ".csv":
            rows = self.rows or tuple({_KEY: key} for key in self.keys)
            with open(path, "w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]) if rows else [_KEY])
                table.writeheader()
                table.writerows(rows)
        else:
            path.write_text("".join(f"{one}\n" for one in self.keys), encoding="utf-8", newline="")
        return path


def read_row_keys(path: Path) -> RowKeys:
    """Read a file of keys.

    Raises:
        EffaceError: It cannot be read as one; what it holds is not quoted, since the ledger must have no ids.

    """
    kind = path.suffix.lower()
    if kind == ".npy":
        return RowKeys(path.name, tuple(texts_of(read_array(path), "keys", path)))
    if kind != ".csv":
        return RowKeys(path.name, read_quietly(path, lambda: read_list(path).ids))
    table = read_quietly(path, lambda: read_table(path, _KEY))
    column = _column(dict.fromkeys(table.columns), _KEY)
    if column is None:
        return RowKeys(path.name, read_quietly(path, lambda: read_list(path).ids))
    keys = tuple(str(row[column]) for row in table.rows)
    if not all(keys):
        raise EffaceError(f"{path} has rows without a key.", "Whose they are is not known.", WRITE_AGAIN)
    return RowKeys(path.name, keys, table.rows)


def read_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Read an ``.npy``; one that is damaged, or holds Python objects, raises an :class:`EffaceError`."""
    try:
        return read_npy(path, mapped=mapped)
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(path, error, WRITE_AGAIN) from error


def texts_of(values: np.ndarray | Iterable[Any], field: str, path: Path) -> list[str]:
    """Convert an array, or the cells of a column, to texts: bytes are UTF-8, whole numbers are written out."""
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise EffaceError(
                f"The {field} of {path} have {values.ndim} axes.", "One key belongs to one row.", WRITE_AGAIN
            )
        values = values.tolist()
    try:
        return as_texts(values, "keys", path.name)
    except EffaceError as error:
        raise EffaceError(
            f"The {field} of {path} are not text or whole numbers.", "Bytes are read as UTF-8.", WRITE_AGAIN
        ) from error


def read_quietly(path: Path, read: Callable[[], _Read]) -> _Read:
    """Read a file of texts; an error says where and what is wrong, and quotes nothing of what the file holds."""
    try:
        return read()
    except EffaceError as error:
        raise EffaceError(error.what, remedy=error.remedy) from error
    except (ValueError, csv.Error) as error:
        raise EffaceError(
            f"{path} cannot be read as a table.", "Its rows do not fit its header.", WRITE_AGAIN
        ) from error


def _column(columns: Mapping[str, Any], wanted: str) -> str | None:
    """The column of that name, with or without spaces around it."""
    return next((name for name in columns if name.strip() == wanted), None)


def keys_beside(path: Path, also: Sequence[Path] = ()) -> Path:
    """The file that says whose the rows of ``path`` are.

    Args:
        path: The array or index.
        also: Folders that come before its own: files that are about to be moved beside it.

    Raises:
        EffaceError: There is none, or there are several.

    """
    for folder in (*also, path.parent):
        found = [one for one in sorted(folder.iterdir()) if is_keys_of(one.name, path)] if folder.is_dir() else []
        if len(found) > 1:
            raise EffaceError(
                f"Several files say whose vectors are in {path}.",
                f"There are {' and '.join(one.name for one in found)}.",
                "Remove those that are not right.",
            )
        if found:
            return found[0]
    raise EffaceError(
        f"Nothing says whose vectors are in {path}.",
        f"There is none of {', '.join(path.stem + end for end in KEY_ENDS)} beside it.",
        WRITE_AGAIN,
    )


def is_keys_of(name: str, path: Path) -> bool:
    """Whether a name is that of a file of keys of ``path``."""
    return name.startswith(path.stem) and name[len(path.stem) :].lower() in KEY_ENDS
