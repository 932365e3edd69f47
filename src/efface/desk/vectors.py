"""Stored embeddings: find rows of forgotten ids, and write the file again without them, checked before it replaces.

``.npz`` with the arrays ``embeddings`` and ``keys``; ``.npy`` with a file of keys beside it, both as ``efface embed``
writes them; ``.parquet`` with a column ``key``, ``id`` or ``keys``. NumPy; pyarrow for Parquet.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from efface.data.array_files import ARRAY_ERRORS, read_npz, unreadable_arrays_error, write_npz
from efface.desk.forgotten import ForgottenIds
from efface.desk.keyed_rows import drop_keyed, keyed_ids, require_keyed
from efface.desk.parquet_rows import drop_parquet, parquet_ids, parquet_texts
from efface.desk.row_keys import WRITE_AGAIN, texts_of
from efface.errors import EffaceError
from efface.files import atomic_path
from efface.runs.vectors import LABEL_COLUMNS

VECTOR_SUFFIXES = (".npz", ".npy", ".parquet")
_EMBEDDINGS, _KEYS = "embeddings", "keys"
_ROWS = (_EMBEDDINGS, _KEYS, *LABEL_COLUMNS)
"""The arrays that have one row for each key."""


def vector_ids(path: Path) -> list[str]:
    """The ids of the rows of a file of vectors; one that has several rows is there as often.

    Raises:
        EffaceError: The file cannot be read, or nothing says which row is whose.

    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_ids(path)
    return _npz_ids(path) if kind == ".npz" else keyed_ids(path)


def drop_vectors(path: Path, ids: ForgottenIds) -> int:
    """Write a file of vectors again without the rows of forgotten ids, and check it; returns how many there were."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return drop_parquet(path, ids)
    return _drop_npz(path, ids) if kind == ".npz" else drop_keyed(path, ids)


def require_vectors(path: Path) -> None:
    """Raise if a file may hold vectors of which its keys do not tell: there is not one key for each row."""
    kind = path.suffix.lower()
    if kind == ".npz":
        arrays, names = _read_arrays(path, _ROWS)
        if _EMBEDDINGS in names:
            _require_rows(path, arrays)
    elif kind == ".npy":
        require_keyed(path)


def texts_beside_keys(path: Path) -> dict[str, list[str]]:
    """Name to texts of the arrays or columns that are not the keys, and could name examples as well."""
    if path.suffix.lower() == ".parquet":
        return parquet_texts(path)
    if path.suffix.lower() != ".npz":
        return {}
    names = [one for one in _read_arrays(path, ())[1] if one not in (_EMBEDDINGS, _KEYS)]
    found: dict[str, list[str]] = {}
    for name in names:
        array = _read_arrays(path, (name,))[0][name]
        if array.dtype.kind in "US":
            found[name] = texts_of(array.reshape(-1), f"texts '{name}'", path)
    return found


def _npz_ids(path: Path) -> list[str]:
    arrays, names = _read_arrays(path, (_KEYS,))
    if _KEYS not in arrays:
        raise EffaceError(
            f"{path} has no array 'keys'.", f"It holds {', '.join(sorted(names)[:5])}: nobody knows whose.", WRITE_AGAIN
        )
    return texts_of(arrays[_KEYS], "keys", path)


def _drop_npz(path: Path, ids: ForgottenIds) -> int:
    names = vector_ids(path)
    gone = ids.among(names)
    if not gone:
        return 0
    arrays, _ = _read_arrays(path)
    _require_rows(path, arrays)
    _require_clear(path, arrays, len(names))
    keep = np.array([one not in gone for one in names])
    kept = {name: array[keep] if name in _ROWS else array for name, array in arrays.items()}
    with atomic_path(path) as fresh:
        with open(fresh, "wb") as file:
            write_npz(file, kept)
        written, _ = _read_arrays(fresh)
        same = written.keys() == kept.keys() and all(_is_same(written[name], array) for name, array in kept.items())
        if not same or ids.among(texts_of(written[_KEYS], "keys", path)):
            raise EffaceError(f"{path} would not hold the rows that stay; it was left as it is.", remedy=WRITE_AGAIN)
        shutil.copymode(path, fresh)
    return int((~keep).sum())


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _require_rows(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise unless there is one row of embeddings, and one of each other array of rows, for each key."""
    keys, rows = arrays.get(_KEYS), arrays.get(_EMBEDDINGS)
    if keys is None or rows is None or rows.ndim != 2 or keys.shape != rows.shape[:1]:
        shown = "no embeddings" if rows is None else f"{rows.dtype} {list(rows.shape)}"
        raise EffaceError(
            f"{path} does not hold one vector for each key.",
            f"It holds {shown} and {'no' if keys is None else len(keys)} keys; embeddings must be [keys, numbers].",
            WRITE_AGAIN,
        )
    wrong = [name for name in LABEL_COLUMNS if name in arrays and arrays[name].shape[:1] != keys.shape]
    if wrong:
        raise EffaceError(f"{path} has {len(keys)} keys, and not as many {wrong[0]}.", remedy=WRITE_AGAIN)


def _require_clear(path: Path, arrays: dict[str, np.ndarray], count: int) -> None:
    """Raise if an unknown array could have rows of the keys: it is as long as they are, or a multiple of that."""
    for name, array in arrays.items():
        if name not in _ROWS and any(side and side % count == 0 for side in array.shape):
            raise EffaceError(
                f"{path} has an array '{name}' {list(array.shape)}, which may have something of each of {count} keys.",
                f"Rows are taken out of {', '.join(_ROWS)} only; what this one means must not be guessed.",
                "Write the file without it, or without the forgotten.",
            )


def _read_arrays(path: Path, names: tuple[str, ...] | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        return read_npz(path, names)
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(path, error, WRITE_AGAIN) from error
