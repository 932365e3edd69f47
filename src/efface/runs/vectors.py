"""Files of embeddings with their keys: what ``efface embed`` wrote, or others. NumPy only; parquet needs pyarrow."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.array_files import ARRAY_ERRORS, read_npy, read_npz, unreadable_arrays_error
from efface.data.names import quote_first
from efface.data.text_files import as_texts, read_list, read_table
from efface.errors import EffaceError, optional_imports

LABEL_COLUMNS = ("label", "labels", "class", "y")
"""Names of the column, or of the array, that holds labels."""
VECTOR_COLUMNS = ("embedding", "embeddings", "vector", "features")
_FORMS = "Use an .npz of embeddings and keys as `efface embed` writes it, an .npy beside its keys, or a .parquet."


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings by key."""

    keys: np.ndarray
    """Str ``[n]``, each once."""
    features: np.ndarray
    """Numbers ``[n, d]``; possibly memory-mapped."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, if the file has them."""
    encoder: str = ""
    """Digest of the encoder's weights, if the file names it."""

    def find(self, keys: Sequence[str], where: str) -> np.ndarray:
        """Find the rows of ``keys``, int64, in their order; unknown and repeated keys raise."""
        places = {key: row for row, key in enumerate(self.keys.tolist())}
        return find_places(places, keys, where)


def find_places(places: Mapping[Any, int], keys: Sequence[Any], where: str, shown: Sequence[str] = ()) -> np.ndarray:
    """Look up rows by key.

    Args:
        places: Key to row.
        keys: Keys to look up.
        where: What holds the rows, for the message.
        shown: The keys as they are shown; by default ``keys``.

    Raises:
        EffaceError: A key is unknown, or is given twice.

    """
    names = list(shown or keys)
    absent = [str(name) for name, key in zip(names, keys, strict=True) if key not in places]
    if absent:
        raise EffaceError(
            f"{len(absent)} of {len(keys)} ids are not in {where}: {quote_first(absent)}.",
            "They were never there, or were deleted before.",
            "Leave them out, or check their spelling.",
        )
    if len(set(keys)) < len(keys):
        raise EffaceError(
            f"{len(keys) - len(set(keys))} ids are listed more than once.",
            "An example can be deleted only once.",
            "Remove the repeated ids.",
        )
    return np.array([places[key] for key in keys], dtype=np.int64)


def read_vectors(path: Path, *, rows: bool = False) -> Vectors:
    """Read a file of embeddings.

    Args:
        path: An ``.npz`` with ``embeddings`` and ``keys`` (and possibly ``labels``, ``model``), an ``.npy`` beside a
            file of keys, or a ``.parquet`` with a column ``key`` and one of vectors.
        rows: Only some rows are going to be looked at: where possible the others are not read.

    Raises:
        EffaceError: It cannot be read, or does not hold one row of finite numbers for each key.

    """
    path = Path(path)
    readers = {".npy": _read_npy, ".parquet": _read_parquet}
    if path.suffix not in (".npz", *readers):
        raise EffaceError(f"{path} is no file of embeddings.", f"Its name ends in '{path.suffix}'.", _FORMS)
    if not path.is_file():
        raise EffaceError(f"There is no file {path}.", remedy="Check the path.")
    found = _read_npz(path, mapped=rows) if path.suffix == ".npz" else readers[path.suffix](path)
    if found.features.ndim != 2 or found.features.dtype.kind != "f" or found.keys.shape != found.features.shape[:1]:
        shape = f"{found.features.dtype} {list(found.features.shape)} with {list(found.keys.shape)} keys"
        raise EffaceError(f"{path} does not hold one vector for each key.", f"It holds {shape}.", _FORMS)
    if found.labels is not None and len(found.labels) != len(found.keys):
        raise EffaceError(f"{path} has {len(found.labels)} labels and {len(found.keys)} keys.", "", _FORMS)
    if len(set(found.keys.tolist())) < len(found.keys):
        raise EffaceError(f"{path} has keys more than once.", "It is unclear which row one of them names.", _FORMS)
    return found


def read_labels(path: Path, keys: np.ndarray) -> tuple[str, ...]:
    """Read the labels of ``keys`` from a table with the columns ``key`` and ``label``.

    Raises:
        EffaceError: It is no such table, or a key has no label or two.

    """
    path = Path(path)
    try:
        table = read_table(path, "key")
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read as a table.", str(error), _TABLE) from error
    column = next((name for name in LABEL_COLUMNS if name in table.columns), None)
    if "key" not in table.columns or column is None:
        raise EffaceError(f"{path} has the columns {', '.join(table.columns) or 'none'}.", "", _TABLE)
    rows = {str(row.get("key")): row.get(column) for row in table.rows}
    if len(rows) < len(table.rows):
        raise EffaceError(f"{path} has keys more than once.", "Their labels would be ambiguous.", _TABLE)
    absent = [key for key in keys.tolist() if rows.get(key) in (None, "")]
    if absent:
        raise EffaceError(
            f"{len(absent)} of {len(keys)} embeddings have no label in {path}: {quote_first(absent)}.", "", _TABLE
        )
    return tuple(str(rows[key]) for key in keys.tolist())


_TABLE = "Give a .csv, .tsv or .jsonl with the columns key and label, one row for each embedding."


def read_forget_list(value: str) -> list[str]:
    """Read the keys that a request names: ``@keys:a,b``, or the path of a list.

    Raises:
        EffaceError: The file cannot be read, or no key is named.

    """
    if value.startswith("@keys:"):
        keys = [one.strip() for one in value.removeprefix("@keys:").split(",") if one.strip()]
    elif value.startswith("@"):
        raise EffaceError(f"'{value}' does not list ids.", "A head knows no classes and groups.", _LIST)
    else:
        try:
            keys = list(read_list(Path(value).expanduser()).ids)
        except OSError as error:
            raise EffaceError(f"{value} cannot be read.", error.strerror or str(error), _LIST) from error
    if not keys:
        raise EffaceError(f"{value} names no ids.", "There is nothing to delete.", _LIST)
    return keys


_LIST = "Write @keys:a,b, or the path of a .txt, .csv, .json or .jsonl of keys."


def _texts(values: np.ndarray, path: Path, what: str) -> np.ndarray:
    if values.dtype.kind == "U":
        return values
    return np.array(as_texts(values.tolist(), what, str(path)), dtype=np.str_)


def _read_npz(path: Path, *, mapped: bool) -> Vectors:
    try:
        stored, names = read_npz(path, ("keys", "model", *LABEL_COLUMNS))
        if "embeddings" not in names or "keys" not in stored:
            raise EffaceError(f"{path} holds the arrays {', '.join(sorted(names))}.", remedy=_FORMS)
        features = _map_array(path, "embeddings.npy") if mapped else None
        if features is None:
            features = read_npz(path, ("embeddings",))[0]["embeddings"]
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(path, error, _FORMS) from error
    label = next((stored[name] for name in LABEL_COLUMNS if name in stored), None)
    labels = None if label is None else tuple(_texts(label, path, "labels").tolist())
    return Vectors(_texts(stored["keys"], path, "keys"), features, labels, str(stored.get("model", "")))


def _map_array(path: Path, name: str) -> np.ndarray | None:
    """Map an array of an .npz into memory, so that single rows can be read; None if it is compressed."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
        start = file.tell()
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, kind = read(file)
        if kind.hasobject or (file.tell() - start) + int(np.prod(shape)) * kind.itemsize != info.file_size:
            raise ValueError(f"{name} is not as long as it says")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype=kind, mode="r", offset=file.tell(), shape=shape, order=order)


def _read_npy(path: Path) -> Vectors:
    beside = [path.with_suffix(f".keys{suffix}") for suffix in (".txt", ".csv")]
    listed = next((one for one in beside if one.is_file()), None)
    if listed is None:
        raise EffaceError(f"There is no file of keys beside {path}.", f"It would be {beside[0]}.", _FORMS)
    try:
        features = read_npy(path)
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(path, error, _FORMS) from error
    return Vectors(np.array(read_list(listed).ids, dtype=np.str_), features)


def _read_parquet(path: Path) -> Vectors:
    with optional_imports(f"reading {path}", "parquet"):
        from pyarrow import ArrowException, parquet
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise unreadable_arrays_error(path, error, _FORMS) from error
    column = next((name for name in VECTOR_COLUMNS if name in table.column_names), None)
    if "key" not in table.column_names or column is None:
        raise EffaceError(f"{path} has the columns {', '.join(table.column_names)}.", "", _FORMS)
    rows = table.column(column).combine_chunks()
    if "list" not in str(rows.type) or rows.null_count or len(set(rows.value_lengths().to_pylist())) > 1:
        raise EffaceError(f"The vectors in {path} differ in length, or are missing.", "", _FORMS)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    labels = None if label is None else tuple(as_texts(table.column(label).to_pylist(), "labels", str(path)))
    keys = as_texts(table.column("key").to_pylist(), "keys", str(path))
    features = rows.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    return Vectors(np.array(keys, dtype=np.str_), features, labels)
