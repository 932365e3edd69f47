"""Stored embeddings: find rows of forgotten ids, and write the file again without them.

``.npz`` with arrays ``embeddings`` and ``keys``; ``.npy`` with ``NAME.keys.txt`` or ``NAME.keys.csv`` beside it, both
as ``efface embed`` writes them; ``.parquet`` with a column ``key``, ``id`` or ``keys``. NumPy; pyarrow for Parquet.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from efface.desk.forgotten import ForgottenIds
from efface.errors import EffaceError
from efface.files import atomic_path

KEY_COLUMNS = ("key", "id", "keys")
VECTOR_SUFFIXES = (".npz", ".npy", ".parquet")
_UNREADABLE = "Write it again with `efface embed`, which leaves the forgotten out, or remove it."


def vector_ids(path: Path) -> list[str]:
    """The ids of the rows of a file of vectors.

    Raises:
        EffaceError: The file cannot be read, or nothing says which row is whose.

    """
    if path.suffix == ".parquet":
        table = _parquet().read_table(path, columns=[_column(path)])
        return [str(one) for one in table.column(0).to_pylist()]
    if path.suffix == ".npz":
        return [str(one) for one in _arrays(path)["keys"].tolist()]
    return read_row_ids(_keys_beside(path))


def drop_vectors(path: Path, ids: ForgottenIds) -> int:
    """Write a file of vectors again without the rows of forgotten ids, and check it; returns how many there were."""
    names = vector_ids(path)
    gone = ids.among(names)
    if not gone:
        return 0
    keep = np.array([one not in gone for one in names])
    if path.suffix == ".parquet":
        _drop_parquet(path, keep)
    elif path.suffix == ".npz":
        arrays = {
            name: array[keep] if array.ndim and len(array) == len(keep) else array
            for name, array in _arrays(path).items()
        }
        with atomic_path(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    else:
        _drop_npy(path, keep)
    left = vector_ids(path)
    if ids.among(left) or left != [one for one in names if one not in gone]:
        raise EffaceError(f"{path} still holds rows of forgotten ids after it was written again.", remedy=_UNREADABLE)
    return int((~keep).sum())


def read_row_ids(path: Path) -> list[str]:
    """Read the ids of rows, in their order, from a text file, a table or an array."""
    if path.suffix == ".npy":
        return [str(one) for one in np.load(path, allow_pickle=False).tolist()]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        rows = list(csv.reader(text.splitlines(keepends=True)))
        return [row[0] for row in rows[1:]]
    return text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")


def write_row_ids(path: Path, names: list[str]) -> None:
    """Write what :func:`read_row_ids` reads."""
    with atomic_path(path) as fresh:
        if path.suffix == ".npy":
            with open(fresh, "wb") as file:
                np.save(file, np.array(names))
        elif path.suffix == ".csv":
            with open(fresh, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["key"], *([one] for one in names)])
        else:
            fresh.write_text("".join(f"{one}\n" for one in names), encoding="utf-8")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read as vectors.", str(error), _UNREADABLE) from error
    if "keys" not in found:
        raise EffaceError(
            f"{path} has no array 'keys'.", f"It holds {', '.join(sorted(found)[:5])}: nobody knows whose.", _UNREADABLE
        )
    return found


def _keys_beside(path: Path) -> Path:
    beside = [path.with_suffix(".keys.txt"), path.with_suffix(".keys.csv")]
    found = next((one for one in beside if one.is_file()), None)
    if found is None:
        raise EffaceError(
            f"Nothing says whose vectors are in {path}.", f"There is no {beside[0].name} beside it.", _UNREADABLE
        )
    return found


def _drop_npy(path: Path, keep: np.ndarray) -> None:
    """Write vectors and keys again. The keys go first: a cut leaves fewer keys than rows, which is noticed."""
    keys = _keys_beside(path)
    names, vectors = read_row_ids(keys), np.load(path, allow_pickle=False)
    if len(names) != len(vectors):
        raise EffaceError(f"{path} has {len(vectors)} rows, and {keys} {len(names)} ids.", remedy=_UNREADABLE)
    with atomic_path(path) as fresh:
        with open(fresh, "wb") as file:
            np.save(file, vectors[keep])
        write_row_ids(keys, [one for one, stays in zip(names, keep.tolist(), strict=True) if stays])


def _drop_parquet(path: Path, keep: np.ndarray) -> None:
    import pyarrow

    parquet: Any = _parquet()
    table = parquet.read_table(path)
    with atomic_path(path) as fresh:
        parquet.write_table(table.filter(pyarrow.array(keep)), fresh)


def _column(path: Path) -> str:
    names = _parquet().read_schema(path).names
    found = next((one for one in KEY_COLUMNS if one in names), None)
    if found is None:
        raise EffaceError(
            f"Nothing says whose vectors are in {path}.",
            f"Its columns are {', '.join(names[:6])}; ids are looked for in {', '.join(KEY_COLUMNS)}.",
            _UNREADABLE,
        )
    return found


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise EffaceError(
            "Reading .parquet needs a library that is not installed: pyarrow.",
            remedy="Install it: pip install 'efface[faiss]'.",
        ) from error
    return parquet
