"""Arrays and FAISS indexes with a file of keys beside them: find rows of forgotten ids, and write all without them.

``NAME.npy``, ``NAME.faiss`` and ``NAME.index`` may share one file of keys; then rows leave all of them at once. Nothing
is written unless there is one key for each row, and nothing is replaced before the new files were checked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from efface.desk.forgotten import ForgottenIds
from efface.desk.indexes import INDEX_SUFFIXES, numbers_of_rows, read_contents, write_index_without
from efface.desk.replacing import Replacement
from efface.desk.row_keys import WRITE_AGAIN, RowKeys, keys_beside, read_array, read_row_keys
from efface.errors import EffaceError
from efface.files import hold_lock

KEYED_SUFFIXES = (".npy", *INDEX_SUFFIXES)


def keyed_ids(path: Path) -> list[str]:
    """The key of each row of an array or vector of an index, as they are once a call that was cut has ended.

    Raises:
        EffaceError: Nothing says whose the rows are, or the keys cannot be read.

    """
    return list(_keys_of(path).keys)


def index_ids(path: Path) -> dict[str, list[int]]:
    """Id to all numbers of its vectors in an index; without numbers of its own, their order."""
    keys = _keys_of(path)
    numbers = keys.numbers()
    found: dict[str, list[int]] = {}
    for key, number in zip(keys.keys, range(len(keys.keys)) if numbers is None else numbers.tolist(), strict=True):
        found.setdefault(key, []).append(number)
    return found


def require_keyed(path: Path) -> None:
    """Raise unless there is one key for each row, so that nothing is in it of which the keys do not tell."""
    keys, current = _keys_of(path), Replacement(path).current(path)
    if path.suffix.lower() in INDEX_SUFFIXES:
        numbers_of_rows(current, read_contents(current), keys)
    else:
        _require_rows(current, read_array(current, mapped=True), keys)


def drop_keyed(path: Path, ids: ForgottenIds) -> int:
    """Write an array or index, its keys, and what shares them, again without forgotten ids.

    Killed at any moment, the next call ends with the same files.

    Returns:
        The number of rows that went; none if there were none.

    Raises:
        EffaceError: Keys and rows do not go together, or rows cannot be removed; then nothing was changed.

    """
    swap = Replacement(path)
    with hold_lock(path.with_name(f"{path.stem}.keys")):
        swap.finish()
        keys = _keys_of(path)
        gone = ids.among(keys.keys)
        if not gone:
            return 0
        keep = np.array([one not in gone for one in keys.keys])
        sharing = _sharing(path)
        with swap.staged() as folder:
            numbers = {one.name: _write_without(one, folder / one.name, keys, keep) for one in sharing}
            left = keys.kept(keep, _one_numbering([numbers[one.name] for one in sharing if _is_index(one)], path))
            written = read_row_keys(left.write(folder))
            if written.keys != left.keys or ids.among(written.keys):
                raise EffaceError(f"{written.name} would not hold the keys that stay.", remedy=WRITE_AGAIN)
    return int((~keep).sum())


def _keys_of(path: Path) -> RowKeys:
    return read_row_keys(keys_beside(path, [Replacement(path).ready]))


def _is_index(path: Path) -> bool:
    return path.suffix.lower() in INDEX_SUFFIXES


def _sharing(path: Path) -> list[Path]:
    """The arrays and indexes that share the keys of ``path``, with itself."""
    found = [
        one for one in sorted(path.parent.iterdir()) if one.stem == path.stem and one.suffix.lower() in KEYED_SUFFIXES
    ]
    for one in found:
        if one.is_symlink() or not one.is_file():
            raise EffaceError(f"{one} shares its keys, and is a link or a folder.", "", "Move it, or its keys.")
    return found


def _write_without(path: Path, fresh: Path, keys: RowKeys, keep: np.ndarray) -> np.ndarray | None:
    if _is_index(path):
        return write_index_without(path, fresh, keys, keep)
    rows = read_array(path)
    _require_rows(path, rows, keys)
    kept = rows[keep]
    with open(fresh, "wb") as file:
        np.save(file, kept)
    written = read_array(fresh)
    if written.dtype != kept.dtype or written.shape != kept.shape or written.tobytes() != kept.tobytes():
        raise EffaceError(f"{path} would not hold the rows that stay.", remedy=WRITE_AGAIN)
    return None


def _require_rows(path: Path, rows: np.ndarray, keys: RowKeys) -> None:
    if rows.ndim != 2 or len(rows) != len(keys.keys):
        raise EffaceError(
            f"{path} does not hold one row for each key.",
            f"It holds {rows.dtype} {list(rows.shape)}, and {keys.name} {len(keys.keys)} keys.",
            WRITE_AGAIN,
        )


def _one_numbering(found: list[np.ndarray | None], path: Path) -> np.ndarray | None:
    """The numbers of the rows that stay, which all indexes that share their keys must have alike."""
    first = found[0] if found else None
    for other in found[1:]:
        same = first is other or (first is not None and other is not None and np.array_equal(first, other))
        if not same:
            raise EffaceError(
                f"The indexes beside {path} number their vectors differently, and share one file of keys.",
                remedy="Give each of them keys of its own.",
            )
    return first
