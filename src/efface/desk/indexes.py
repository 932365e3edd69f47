"""FAISS indexes: which vector has which number, and the same index without some, checked against the first.

FAISS numbers its vectors: by their order, or by numbers that an ``IndexIDMap`` or an inverted file keeps. Lines of a
file of keys are the order; numbers of an index that are not 0, 1, 2 ... need the column ``id`` of a ``.keys.csv``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efface.desk.row_keys import RowKeys
from efface.errors import EffaceError, optional_imports

INDEX_SUFFIXES = (".faiss", ".index")
_REBUILD = "Build it again from vectors without the forgotten: `efface embed`."


@dataclass(frozen=True, eq=False)
class IndexContents:
    """What an index holds."""

    numbers: np.ndarray | None
    """The numbers that it keeps itself, int64 ``[n]``; None if they are the order of its vectors."""
    digests: np.ndarray
    """A digest of each stored vector, uint64 ``[n]``, in the order of the numbers."""

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and digests, sorted: equal for two indexes with the same vectors under the same numbers."""
        numbers = np.arange(len(self.digests)) if self.numbers is None else self.numbers
        order = np.lexsort((self.digests, numbers))
        return numbers[order], self.digests[order]

    def without(self, gone: np.ndarray) -> IndexContents:
        """What stays when the vectors with these numbers go; where the order numbers them, the others move up."""
        if self.numbers is None:
            return IndexContents(None, np.delete(self.digests, gone))
        keep = ~np.isin(self.numbers, gone)
        return IndexContents(self.numbers[keep], self.digests[keep])


def numbers_of_rows(path: Path, contents: IndexContents, keys: RowKeys) -> np.ndarray:
    """The number of the vector of each key, int64.

    Raises:
        EffaceError: Keys and vectors do not go together, or it is not clear which vector is whose.

    """
    count, given, order = len(contents.digests), keys.numbers(), np.arange(len(contents.digests))
    if len(keys.keys) != count:
        raise EffaceError(
            f"{path} has {count} vectors, and {keys.name} {len(keys.keys)} keys.",
            "There must be one key for each vector, also where a key or a number has several.",
            _REBUILD,
        )
    if given is None:
        if contents.numbers is None or np.array_equal(contents.numbers, order):
            return order
        raise EffaceError(
            f"{path} keeps numbers of its own, and {keys.name} does not have them.",
            "They are not 0, 1, 2 and so on: a line does not tell which vector it is about.",
            f"Write {path.stem}.keys.csv with the columns key and id: the key of each vector, and its number.",
        )
    held = order if contents.numbers is None else contents.numbers
    if not np.array_equal(np.sort(given), np.sort(held)):
        raise EffaceError(
            f"The numbers in {keys.name} are not those of the vectors in {path}.",
            "Each number of a vector must be in the column id as often as the index has it.",
            _REBUILD,
        )
    if len(set(zip(given.tolist(), keys.keys, strict=True))) != len(set(given.tolist())):
        raise EffaceError(
            f"{keys.name} has several keys for one number.", "Whose its vectors are is not known.", _REBUILD
        )
    return given


def write_index_without(path: Path, fresh: Path, keys: RowKeys, keep: np.ndarray) -> np.ndarray | None:
    """Write an index again without some vectors, read it, and compare it with the first.

    Args:
        path: The index.
        fresh: The file to write.
        keys: The keys of its vectors.
        keep: Which of them stay, bool.

    Returns:
        The numbers of those that stay, for the column of numbers; None if their order says it.

    Raises:
        EffaceError: It cannot be read or checked, keys and vectors do not go together, or vectors cannot be removed.

    """
    faiss: Any = import_faiss()
    index = _read(faiss, path)
    before = _contents(faiss, index, path)
    numbers = numbers_of_rows(path, before, keys)
    gone = np.unique(numbers[~keep])
    expected = before.without(gone)
    try:
        index.remove_ids(gone)
    except RuntimeError as error:
        raise EffaceError(
            f"{path} is an index from which no vector can be removed ({type(index).__name__}).",
            str(error).strip().splitlines()[-1][:200],
            _REBUILD,
        ) from error
    faiss.write_index(index, str(fresh))
    after = _contents(faiss, _read(faiss, fresh), path)
    if len(expected.digests) != int(keep.sum()) or not all(
        np.array_equal(one, other) for one, other in zip(expected.pairs(), after.pairs(), strict=True)
    ):
        raise EffaceError(
            f"{path} without the forgotten would not hold the other vectors as before; it was left as it is.",
            f"{type(index).__name__} does not remove single vectors faithfully.",
            _REBUILD,
        )
    if before.numbers is not None:
        return numbers[keep]
    if keys.numbers() is None:
        return None
    return np.searchsorted(np.sort(numbers[keep]), numbers[keep])


def read_contents(path: Path) -> IndexContents:
    """Read what an index holds.

    Raises:
        EffaceError: It cannot be read, is of a kind that cannot be checked, or FAISS is not installed.

    """
    faiss: Any = import_faiss()
    return _contents(faiss, _read(faiss, path), path)


def _contents(faiss: Any, index: Any, path: Path) -> IndexContents:
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIDMap):
        below = _contents(faiss, inner.index, path)
        if below.numbers is not None and not np.array_equal(below.numbers, np.arange(len(below.numbers))):
            raise _unchecked_error(path, inner)
        return IndexContents(faiss.vector_to_array(inner.id_map).astype(np.int64), below.digests)
    if isinstance(inner, faiss.IndexIVF):
        return _inverted(faiss, inner, path)
    if inner.ntotal == 0:
        return IndexContents(None, np.empty(0, np.uint64))
    if isinstance(inner, faiss.IndexFlatCodes):
        codes = faiss.vector_to_array(inner.codes).reshape(inner.ntotal, -1)
    else:
        try:
            codes = inner.reconstruct_n(0, inner.ntotal)
        except RuntimeError as error:
            raise _unchecked_error(path, inner) from error
    return IndexContents(None, _digests(codes))


def _inverted(faiss: Any, index: Any, path: Path) -> IndexContents:
    """The contents of an inverted file, in the order of its numbers."""
    lists = faiss.downcast_InvertedLists(index.invlists)
    if not isinstance(lists, faiss.ArrayInvertedLists):
        raise _unchecked_error(path, index)
    numbers, digests = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for one in range(lists.nlist):
        size = lists.list_size(one)
        if size:
            numbers.append(faiss.rev_swig_ptr(lists.get_ids(one), size).copy())
            codes = faiss.rev_swig_ptr(lists.get_codes(one), size * lists.code_size)
            digests.append(_digests(codes.reshape(size, -1), one))
    if index.ntotal != sum(map(len, numbers)):
        raise _unchecked_error(path, index)
    found = np.concatenate(numbers)
    order = np.argsort(found, kind="stable")
    return IndexContents(found[order], np.concatenate(digests)[order])


def _digests(codes: np.ndarray, cell: int = -1) -> np.ndarray:
    """A digest of each row; of an inverted file also of the list that it is in, which is a part of the vector."""
    start = str(cell).encode()
    rows = np.ascontiguousarray(codes)
    made = (hashlib.blake2b(row.tobytes(), digest_size=8, key=start).digest() for row in rows)
    return np.frombuffer(b"".join(made), dtype="<u8").astype(np.uint64)


def _unchecked_error(path: Path, index: Any) -> EffaceError:
    return EffaceError(
        f"{path} is an index of which nobody can tell which vectors it holds ({type(index).__name__}).",
        "What is removed from it could not be checked.",
        _REBUILD,
    )


def _read(faiss: Any, path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as error:
        said = str(error).strip().splitlines() or ["It is damaged."]
        raise EffaceError(f"{path} cannot be read as an index.", said[-1][:200], _REBUILD) from error


def import_faiss() -> Any:
    """Import FAISS; if it is not installed, the error says how to."""
    with optional_imports("reading an index", "faiss"):
        import faiss
    return faiss
