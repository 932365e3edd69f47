"""Parquet files of vectors: find rows of forgotten ids, and write the file again without them. Needs pyarrow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from efface.desk.forgotten import ForgottenIds
from efface.desk.row_keys import WRITE_AGAIN, texts_of
from efface.errors import EffaceError, optional_imports
from efface.files import atomic_path

KEY_COLUMNS = ("key", "id", "keys")
"""The columns in which ids are looked for, the first that is there."""


def parquet_ids(path: Path) -> list[str]:
    """The id of each row.

    Raises:
        EffaceError: The file is damaged, or has no column of ids, or one that holds neither text nor whole numbers.

    """
    pyarrow = _import_pyarrow()
    schema = _read(path).schema_arrow
    found = next((one for one in KEY_COLUMNS if one in schema.names), None)
    if found is None or schema.names.count(found) > 1:
        raise EffaceError(
            f"Nothing says whose vectors are in {path}.",
            f"Its columns are {', '.join(schema.names[:6])}; ids are looked for in {', '.join(KEY_COLUMNS)}.",
            WRITE_AGAIN,
        )
    kind = schema.field(found).type
    if not _is_text(kind) and not pyarrow.types.is_integer(kind):
        raise EffaceError(f"The column {found} of {path} holds {kind}.", "Ids are text or whole numbers.", WRITE_AGAIN)
    return texts_of(_column(path, found), f"cells of {found}", path)


def parquet_texts(path: Path) -> dict[str, list[str]]:
    """Name to cells of the columns of text that are not the ids."""
    schema = _read(path).schema_arrow
    own = next((one for one in KEY_COLUMNS if one in schema.names), None)
    names = [one.name for one in schema if one.name != own and _is_text(one.type)]
    return {one: texts_of(_column(path, one), f"cells of {one}", path) for one in names if schema.names.count(one) == 1}


def drop_parquet(path: Path, ids: ForgottenIds) -> int:
    """Write a file again without the rows of forgotten ids, and check it; returns how many there were."""
    names = parquet_ids(path)
    gone = ids.among(names)
    if not gone:
        return 0
    keep = np.array([one not in gone for one in names])
    pyarrow = _import_pyarrow()
    kept = _read_table(path).filter(pyarrow.array(keep))
    with atomic_path(path) as fresh:
        pyarrow.parquet.write_table(kept, fresh)
        written = _read_table(fresh)
        same = written.schema.equals(kept.schema) and all(map(_is_same_column, written.columns, kept.columns))
        if not same or parquet_ids(fresh) != [one for one in names if one not in gone]:
            raise EffaceError(f"{path} would not hold the rows that stay; it was left as it is.", remedy=WRITE_AGAIN)
        shutil.copymode(path, fresh)
    return int((~keep).sum())


def _is_same_column(one: Any, other: Any) -> bool:
    """Whether two columns are equal; NaN, which equals nothing, is compared as text."""
    return one.equals(other) or repr(one.to_pylist()) == repr(other.to_pylist())


def _is_text(kind: Any) -> bool:
    types = _import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, types.is_fixed_size_binary))


def _column(path: Path, name: str) -> list[Any]:
    return _read_table(path, [name]).column(0).to_pylist()


def _read_table(path: Path, columns: list[str] | None = None) -> Any:
    error_kinds = (_import_pyarrow().ArrowException, OSError)
    try:
        return _read(path).read(columns=columns)
    except error_kinds as error:
        raise _damaged_error(path) from error


def _read(path: Path) -> Any:
    pyarrow = _import_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged_error(path) from error


def _damaged_error(path: Path) -> EffaceError:
    return EffaceError(f"{path} cannot be read as Parquet.", "It is damaged or something else.", WRITE_AGAIN)


def _import_pyarrow() -> Any:
    with optional_imports("reading .parquet", "faiss"):
        import pyarrow.parquet
    return pyarrow
