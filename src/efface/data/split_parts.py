"""A split: the parts of a data set by position, stored by key; some keys may be absent from the data. NumPy only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data
from efface.data.stored import StoredSplit
from efface.errors import EffaceError
from efface.files import SPLIT, read_json, write_text

EARLIER = "earlier"
SPLIT_PARTS = ("forget", "retain", "valid", "holdout", "spare", "test", EARLIER)
NEVER_TRAINED = ("valid", "holdout", "spare", "test")


def no_positions() -> np.ndarray:
    """Return an empty array of positions."""
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Split:
    """A data set divided into disjoint parts, each as sorted positions (int64).

    Example:
        >>> split = select_forget_set(partition(data), data, "@class:cat")
        >>> data.take(split.forget)

    """

    forget: np.ndarray = field(default_factory=no_positions)
    """F: trained on and to be forgotten."""
    retain: np.ndarray = field(default_factory=no_positions)
    """R: trained on and kept."""
    valid: np.ndarray = field(default_factory=no_positions)
    """V: never trained on; methods may use it."""
    holdout: np.ndarray = field(default_factory=no_positions)
    """H: never trained on and reserved for the audit: the non-members that F is compared with, with the same mix."""
    spare: np.ndarray = field(default_factory=no_positions)
    """The other never-trained holdout examples; empty when F is a random draw."""
    test: np.ndarray = field(default_factory=no_positions)
    """Never trained on; utility is measured on it."""
    earlier: np.ndarray = field(default_factory=no_positions)
    """Forgotten by earlier requests: no longer trained on, but not non-members either."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How the split was made: ``selector``, ``seed``, ``random``, ``matched`` (``class``, ``group`` or None), ``sizes``
    and ``warnings``. After a forget request also ``copies`` (the first ones, with their keys) and ``resolved`` (what
    the selector stands for: see :func:`efface.data.selectors.describe_selection`); after several requests also
    ``earlier`` (``selector``, ``random``, ``matched`` and ``count`` of each request before the last), and
    ``skipped``: keys that were asked to be forgotten, or are of a forgotten group, but were never trained on, and
    ``before``: keys that a checkpoint of another library was made to forget before it came here."""
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys of a part that are not in the data at hand, such as erased pictures; they count for size and digest."""

    @property
    def train(self) -> np.ndarray:
        """What the original model is trained on: forget and retain, sorted."""
        return np.sort(np.concatenate([self.forget, self.retain]))

    def sizes(self) -> dict[str, int]:
        """Count the examples of each part, absent ones too; ``earlier`` is left out if it is empty."""
        counts = {part: len(getattr(self, part)) + len(self.absent.get(part, ())) for part in SPLIT_PARTS}
        return counts if counts[EARLIER] else {part: n for part, n in counts.items() if part != EARLIER}

    def keys(self, data: Data, part: str) -> list[str]:
        """List the keys of a part: those in the data, then the absent ones."""
        return [*data.keys[getattr(self, part)].tolist(), *self.absent.get(part, ())]

    def present(self) -> Split:
        """Return the split of what is in the data at hand; without absent keys that is the split itself."""
        return replace(self, absent={}) if self.absent else self

    def check(self, n: int) -> None:
        """Raise unless the parts are sorted and disjoint, and all positions are below ``n``."""
        positions = np.concatenate([getattr(self, part) for part in SPLIT_PARTS])
        if len(positions) and (positions.min() < 0 or positions.max() >= n):
            raise EffaceError(
                f"The split contains position {positions.max() if positions.max() >= n else positions.min()}.",
                f"The data has {n} examples.",
            )
        for part in SPLIT_PARTS:
            positions = getattr(self, part)
            if (np.diff(positions) <= 0).any():
                raise EffaceError(f"The positions of {part} are not sorted, or one is repeated.")
        for number, part in enumerate(SPLIT_PARTS):
            for other in SPLIT_PARTS[number + 1 :]:
                shared = np.intersect1d(getattr(self, part), getattr(self, other))
                if len(shared):
                    raise EffaceError(
                        f"{part} and {other} share {len(shared)} examples.",
                        "An example cannot be in two parts: non-members must not be trained on.",
                    )

    def digest(self, data: Data) -> str:
        """Compute the SHA-256 (hexadecimal) of the keys of every part; the order of the data does not matter."""
        sha = hashlib.sha256()
        for part in self.sizes():
            keys = sorted(self.keys(data, part))
            sha.update("\0".join([part, str(len(keys)), *keys, ""]).encode())
        return sha.hexdigest()

    def to_dict(self, data: Data) -> dict[str, Any]:
        """Convert the split to a JSON-able dictionary of keys."""
        parts = {part: self.keys(data, part) for part in self.sizes()}
        return {"parts": parts, "provenance": self.provenance}

    @staticmethod
    def from_dict(
        data: Data, stored: Mapping[str, Any], *, may_lack: Collection[str] = (), without: Collection[str] = ()
    ) -> Split:
        """Restore a split from the result of :meth:`to_dict` by looking its keys up in ``data``.

        Args:
            data: The data set.
            stored: The stored split.
            may_lack: The parts of which examples may be absent from the data, because they were erased.
            without: Keys that count as absent although the data has them: other pictures are under their names.

        Raises:
            EffaceError: ``stored`` is not a split, or keys of parts other than ``may_lack`` are not in the data.

        """
        parts: Any = stored.get("parts")
        if not isinstance(parts, Mapping) or set(parts) | {EARLIER} != set(SPLIT_PARTS):
            raise EffaceError(
                "This is not a stored split.",
                f"It should have 'parts' with the names {', '.join(SPLIT_PARTS[:-1])}.",
                "Make it again.",
            )
        given, usable = dict[str, Any](parts), set(data.keys.tolist()) - set(without)
        absent = {part: tuple(key for key in given.get(part, ()) if key not in usable) for part in may_lack}
        try:
            lost = {part: set(keys) for part, keys in absent.items()}
            kept = {part: [key for key in keys if key not in lost.get(part, ())] for part, keys in given.items()}
            found = {part: np.sort(data.positions(keys)) for part, keys in kept.items()}
        except EffaceError as error:
            raise EffaceError(
                "The stored split does not fit the data.",
                f"{error.what} {error.why}",
                "Load the data that the split was made from, with the same source and the same options.",
            ) from error
        absent = {part: keys for part, keys in absent.items() if keys}
        split = Split(**found, provenance=dict(stored.get("provenance", {})), absent=absent)
        split.check(len(data))
        return split

    def save(self, folder: Path, data: Data) -> None:
        """Write the split into a run folder, by keys."""
        write_text(folder / SPLIT, json.dumps(self.to_dict(data)), private=True)

    @staticmethod
    def load(folder: Path, data: Data, *, may_lack: Collection[str] = (), without: Collection[str] = ()) -> Split:
        """Read what :meth:`save` wrote; raise if it is damaged or does not fit the data; see :meth:`from_dict`."""
        return Split.from_dict(data, read_split(folder), may_lack=may_lack, without=without)


def read_split(folder: Path) -> dict[str, Any]:
    """Read the ``split.json`` of a run folder or of a plan of references, by keys and without the data."""
    return read_json(Path(folder) / SPLIT, "split", schema=StoredSplit)
