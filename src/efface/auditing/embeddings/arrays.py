"""Read and check the embeddings that a data owner obtained from a model.

``.npy``: ``[n, views, d]``, or ``[n * views, d]`` with the views of one item in consecutive rows. ``.npz``: arrays
``forget`` and, if there are never-trained items to compare with, ``control``. With ``forget_keys`` and ``control_keys``
the rows of before and after are matched by key. Pickled content is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.data.array_files import ARRAY_ERRORS, read_npy, read_npz, row_chunks
from efface.data.names import quote_first
from efface.data.text_files import as_texts
from efface.errors import EffaceError

KNOWN = ("forget", "control", "forget_keys", "control_keys")
"""Names of the arrays in an ``.npz`` file."""


@dataclass(frozen=True, eq=False)
class EmbeddingSet:
    """Embeddings of the views of some items by one model."""

    z: np.ndarray
    """float32 ``[n, views, d]``, possibly mapped from its file; every row is finite and non-zero."""
    keys: np.ndarray
    """Name of each item, str ``[n]``: its key from the file, or its row number."""
    named: bool
    """Whether the keys came from the file."""


@dataclass(frozen=True, eq=False)
class EmbeddingPair:
    """Embeddings of the same items in the same views, before and after unlearning."""

    before: EmbeddingSet
    after: EmbeddingSet

    def __len__(self) -> int:
        return len(self.before.z)

    @property
    def views(self) -> int:
        """Number of views of each item."""
        return self.before.z.shape[1]


def read_embeddings(path: Path, views: int | None = None) -> dict[str, EmbeddingSet]:
    """Read the parts in one file: ``forget`` and, if present, ``control``.

    Args:
        path: An ``.npy`` or ``.npz`` file.
        views: Views per item, for two-dimensional arrays.

    Raises:
        EffaceError: If the file cannot be read, or holds anything but finite embeddings of two or more views.

    """
    stored = _arrays(Path(path))
    found: dict[str, EmbeddingSet] = {}
    for part in ("forget", "control"):
        if part not in stored:
            continue
        z = check_embeddings(stored[part], views, f"{path} ({part})" if path.suffix == ".npz" else str(path))
        keys = stored.get(f"{part}_keys")
        if keys is not None and (keys.shape != (len(z),) or len(np.unique(keys)) < len(z)):
            raise EffaceError(
                f"{path}: {part}_keys does not name the {len(z)} items of {part} once each.",
                f"Its shape is {keys.shape}, with {len(np.unique(keys))} different keys.",
            )
        listed = None if keys is None else as_texts(keys.tolist(), f"{part}_keys", str(path))
        names = np.arange(len(z)).astype(str) if listed is None else np.array(listed)
        found[part] = EmbeddingSet(z, names, keys is not None)
    return found


def match_embeddings(before: EmbeddingSet, after: EmbeddingSet, part: str) -> EmbeddingPair:
    """Pair the embeddings from before and after, matching rows by key.

    Raises:
        EffaceError: If they are not embeddings of the same items in the same number of views.

    """
    if before.z.shape[:2] != after.z.shape[:2]:
        raise EffaceError(
            f"Before and after do not match: {part} has [items, views] = {list(before.z.shape[:2])} before, "
            f"{list(after.z.shape[:2])} after.",
            "Corresponding rows must be the same items in the same views.",
            "Embed the same items with both models; with two-dimensional arrays check --views.",
        )
    if before.named != after.named:
        raise EffaceError(
            f"Only one of the two files names the items of {part}.", remedy=f"Put {part}_keys into both, or neither."
        )
    order = np.argsort(after.keys, kind="stable")
    place = np.minimum(np.searchsorted(after.keys, before.keys, sorter=order), len(order) - 1)
    rows = order[place]
    absent = before.keys[after.keys[rows] != before.keys]
    if len(absent):
        raise EffaceError(
            f"{len(absent)} items of {part} are in before but not in after.",
            f"For example: {quote_first(absent.tolist())}.",
        )
    if (rows == np.arange(len(rows))).all():
        return EmbeddingPair(before, after)  # not a copy: it may be as large as the memory
    return EmbeddingPair(before, EmbeddingSet(after.z[rows], after.keys[rows], after.named))


def check_embeddings(stored: np.ndarray, views: int | None, name: str) -> np.ndarray:
    """Convert an array to float32 ``[n, views, d]``.

    Raises:
        EffaceError: Unless every item has two or more views of finite, non-zero numbers.

    """
    if stored.dtype.kind not in "fiu":
        raise EffaceError(f"{name} holds {stored.dtype}, not numbers.", "Embeddings are real numbers.")
    if stored.ndim == 2 and views and views > 1 and len(stored) % views == 0:
        stored = stored.reshape(len(stored) // views, views, stored.shape[1])
    if stored.ndim == 2:
        raise _single_view_error(stored, views, name)
    if stored.ndim != 3 or 0 in stored.shape:
        raise EffaceError(
            f"{name} has the shape {stored.shape}.",
            "Expected [items, views, dimensions], or [items * views, dimensions] with --views.",
        )
    if stored.shape[1] < 2 or (views is not None and stored.shape[1] != views):
        expected = f", and --views says {views}" if views not in (None, stored.shape[1]) else ""
        raise EffaceError(
            f"{name} has {stored.shape[1]} view(s) of each item{expected}.", "At least two are needed.", _TWO_VIEWS
        )
    with np.errstate(over="ignore"):
        z = stored.astype(np.float32, copy=False)
    bad = sum(int((~np.isfinite(z[rows]).all(axis=(1, 2))).sum()) for rows in row_chunks(z))
    if bad:
        raise EffaceError(
            f"{name}: {bad} of {len(z)} items hold numbers that are not finite.",
            "NaN and infinity cannot be scored.",
            "Leave these items out of both files, or embed them again.",
        )
    zero = sum(int((np.abs(z[rows]).max(axis=2) == 0).any(axis=1).sum()) for rows in row_chunks(z))
    if zero:
        raise EffaceError(f"{name}: {zero} of {len(z)} items have a view that is all zeros.", "It has no direction.")
    return z


_TWO_VIEWS = "Embed each item in two or more random views (crops, flips): an item agrees with itself in any model."


def _single_view_error(stored: np.ndarray, views: int | None, name: str) -> EffaceError:
    if views and views > 1:
        return EffaceError(
            f"{name} has {len(stored)} rows, which is no multiple of {views} views.",
            "The views of one item must be in consecutive rows, the same number for each.",
        )
    return EffaceError(
        f"{name} has one view of each item: its shape is {stored.shape}.",
        "The cosine of a view with itself is 1 whatever the model, so the diagonal would show nothing.",
        f"{_TWO_VIEWS} Save [items, views, dimensions], or add --views K.",
    )


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    try:
        stored = read_npz(path)[0] if path.suffix == ".npz" else {"forget": read_npy(path, mapped=True)}
    except FileNotFoundError:
        raise EffaceError(f"There is no file {path}.", remedy="Check the path.") from None
    except ARRAY_ERRORS as error:
        raise EffaceError(
            f"{path} cannot be read as an array of numbers.",
            f"It is truncated, pickled or another kind of file: {error}",
            "Save it again with numpy.save (an array of numbers, not of objects) or numpy.savez.",
        ) from error
    if "forget" not in stored or set(stored) - set(KNOWN):
        raise EffaceError(
            f"{path} holds the arrays {', '.join(sorted(stored)) or 'none'}.",
            f"Expected forget and, optionally, {', '.join(KNOWN[1:])}.",
        )
    return stored
