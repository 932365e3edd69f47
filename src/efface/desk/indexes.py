"""FAISS indexes: find and remove the vectors of forgotten ids, and check that they are gone.

FAISS numbers its vectors. Beside ``NAME.faiss`` (or ``.index``), ``NAME.keys.txt``, ``.keys.csv`` or ``.keys.npy`` says
whose they are: one id for each vector, in the order of the index; with columns ``key`` and ``id`` in the ``.csv``, the
numbers of an ``IndexIDMap`` or an inverted file.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from efface.desk.forgotten import ForgottenIds
from efface.desk.vectors import read_row_ids, write_row_ids
from efface.errors import EffaceError
from efface.files import atomic_path

INDEX_SUFFIXES = (".faiss", ".index")
_REBUILD = "Build it again from vectors without the forgotten: `efface embed`."


def index_ids(path: Path) -> dict[str, int]:
    """Id to number of the vectors of an index; without numbers of its own, their order.

    Raises:
        EffaceError: Nothing says whose the vectors are.

    """
    beside = keys_of_index(path)
    if beside.suffix == ".csv":
        with open(beside, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and "id" in rows[0]:
            return {row["key"]: int(row["id"]) for row in rows}
    return {name: number for number, name in enumerate(read_row_ids(beside))}


def keys_of_index(path: Path) -> Path:
    """The file beside an index that says whose its vectors are."""
    beside = [path.with_suffix(f".keys{suffix}") for suffix in (".csv", ".txt", ".npy")]
    found = next((one for one in beside if one.is_file()), None)
    if found is None:
        raise EffaceError(
            f"Nothing says whose vectors are in {path}.",
            f"There is none of {', '.join(one.name for one in beside)} beside it.",
            _REBUILD,
        )
    return found


def drop_from_index(path: Path, ids: ForgottenIds) -> int:
    """Write an index again without the vectors of forgotten ids; returns how many there were.

    The index is replaced first, then the file of ids; both are checked, as is a search for the removed vectors.
    """
    faiss: Any = _faiss()
    numbers = index_ids(path)
    gone = ids.among(numbers)
    index = _read(faiss, path)
    beside = keys_of_index(path)
    if not gone:
        return 0
    targets = np.array(sorted(numbers[one] for one in gone), dtype=np.int64)
    held = stored_numbers(faiss, index)
    if held is None and index.ntotal == len(numbers) - len(gone):
        pass  # a call that was cut replaced the index, and not the file of ids
    else:
        present = targets if held is None else targets[np.isin(targets, held)]
        before, probes = index.ntotal, _vectors(index, present)
        try:
            removed = int(index.remove_ids(present)) if len(present) else 0
        except RuntimeError as error:
            raise EffaceError(
                f"{path} is an index from which no vector can be removed ({type(index).__name__}).",
                str(error).strip().splitlines()[-1][:200],
                _REBUILD,
            ) from error
        if removed != len(present) or index.ntotal != before - removed:
            raise EffaceError(f"{path}: {removed} of {len(present)} vectors could be removed.", remedy=_REBUILD)
        with atomic_path(path) as fresh:
            faiss.write_index(index, str(fresh))
        _require_gone(faiss, _read(faiss, path), targets, probes, path, numbered=held is not None)
    _write_ids(beside, numbers, gone, numbered=held is not None)
    if ids.among(index_ids(path)) or _read(faiss, path).ntotal != len(index_ids(path)):
        raise EffaceError(f"{path} and {beside} do not go together after both were written again.", remedy=_REBUILD)
    return len(gone)


def stored_numbers(faiss: Any, index: Any) -> np.ndarray | None:
    """The numbers that an index keeps itself; None if they are the order of its vectors."""
    inner = faiss.downcast_index(index)
    if hasattr(inner, "id_map"):
        return faiss.vector_to_array(inner.id_map).copy()
    if hasattr(inner, "invlists"):
        lists = inner.invlists
        parts = [
            faiss.rev_swig_ptr(lists.get_ids(one), lists.list_size(one)).copy()
            for one in range(lists.nlist)
            if lists.list_size(one)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)
    return None


def _vectors(index: Any, numbers: np.ndarray) -> np.ndarray | None:
    """The vectors of some numbers, for a search after they were removed; None if the index cannot tell."""
    try:
        return np.stack([index.reconstruct(int(one)) for one in numbers]) if len(numbers) else None
    except RuntimeError:
        return None


def _require_gone(
    faiss: Any, index: Any, targets: np.ndarray, probes: np.ndarray | None, path: Path, *, numbered: bool
) -> None:
    """Raise if a removed vector is still in the index that was written."""
    held = stored_numbers(faiss, index)
    still = held is not None and bool(np.isin(targets, held).any())
    if probes is not None and index.ntotal and numbered:
        _, nearest = index.search(probes, 1)
        still = still or bool(np.isin(nearest, targets).any())
    if still:
        raise EffaceError(f"{path} still holds vectors of forgotten ids after it was written again.", remedy=_REBUILD)


def _write_ids(beside: Path, numbers: dict[str, int], gone: set[str], *, numbered: bool) -> None:
    """Write the ids that stay; with their numbers if the index keeps them, since its order then has gaps."""
    kept = {name: number for name, number in numbers.items() if name not in gone}
    if not numbered:
        write_row_ids(beside, list(kept))
        return
    table = beside.with_suffix(".csv")
    with atomic_path(table) as fresh, open(fresh, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["key", "id"], *([name, number] for name, number in kept.items())])
    if table != beside:
        beside.unlink()


def _read(faiss: Any, path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise EffaceError(
            f"{path} cannot be read as an index.", str(error).strip().splitlines()[-1][:200], _REBUILD
        ) from error


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise EffaceError(
            "Reading an index needs a library that is not installed: faiss.",
            remedy="Install it: pip install 'efface[faiss]'.",
        ) from error
    return faiss
