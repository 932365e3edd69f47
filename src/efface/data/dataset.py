"""The data set: images that are identified by a stable key, never by their position. NumPy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from efface.data.labels import UNKNOWN_LABEL, convert_labels
from efface.data.lazy_pixels import LazyPixels, Pixels
from efface.data.names import NameIndex, explain_absent, quote_first, require_unique_keys
from efface.data.pixels import convert_pixels, describe_darkness
from efface.data.text_files import as_texts
from efface.errors import EffaceError

OFFICIAL = ("train", "test")


@dataclass(frozen=True, eq=False)
class Data:
    """A data set of N images with keys, labels, groups and captions; all arrays are in the same order.

    Example:
        >>> data = Data.from_arrays(x, y, keys=["a.png", "b.png"])
        >>> data.positions(["b.png"])
        array([1])

    """

    x: Pixels
    """Pixels, uint8 [N, C, H, W], 0 to 255; in memory, memory-mapped, or decoded when rows are taken."""
    keys: np.ndarray
    """Identifiers of the examples, str [N]: unique and stable, such as ``train/00012`` or ``cats/a.png``."""
    y: np.ndarray | None = None
    """Labels, int64 [N]: positions in ``classes``, or -1 if unknown. None: the data has no labels."""
    classes: tuple[str, ...] = ()
    """Class names (``"0"``, ``"1"`` ... if they have none); empty without labels."""
    group: np.ndarray | None = None
    """The person, patient or other group that each example belongs to, str [N]."""
    text: tuple[str, ...] | None = None
    """Captions, one for each example."""
    official: np.ndarray | None = None
    """``train`` or ``test``, str [N], if the source has an official test set."""
    name: str = "data"
    """Name of the data in messages."""
    skipped: tuple[dict[str, str], ...] = ()
    """Broken items that were left out on request: ``key``, ``path`` and ``error`` of each."""
    unread: tuple[dict[str, Any], ...] = ()
    """Files that are not read as examples: ``folder``, ``kind`` (a suffix or a reason) and ``count`` of each kind."""
    notes: tuple[str, ...] = ()
    """What the source has to say to the user: how files were understood, and what was not read."""
    shards: tuple[str, ...] = ()
    """Paths of the files that hold several pictures each, such as tars; empty if each picture has its own."""
    shard: np.ndarray | None = None
    """Which of ``shards`` holds each example, int64 [N]; None without shards."""

    def __post_init__(self) -> None:
        if self.x.dtype != np.uint8 or self.x.ndim != 4 or 0 in self.x.shape:
            raise EffaceError(
                f"The images of {self.name} are {self.x.dtype} of shape {list(self.x.shape)}.",
                "Expected uint8 (0..255) of shape [N, C, H, W] with no empty dimension.",
                "Data.from_arrays converts other common layouts.",
            )
        n = len(self.x)
        fields = {
            "keys": self.keys,
            "y": self.y,
            "group": self.group,
            "text": self.text,
            "official": self.official,
            "shard": self.shard,
        }
        for field, value in fields.items():
            shape = [len(value)] if isinstance(value, tuple) else None if value is None else list(value.shape)
            if shape is not None and shape != [n]:
                raise EffaceError(
                    f"{self.name} has {n} images, but its {field} are {shape}.", "Expected one per image."
                )
        self._check_keys()
        self._check_labels()
        if self.official is not None and not set(np.unique(self.official)) <= set(OFFICIAL):
            unknown = sorted(set(np.unique(self.official).tolist()) - set(OFFICIAL))
            raise EffaceError(f"The official split of {self.name} has '{unknown[0]}'.", "Use 'train' and 'test'.")

    def _check_keys(self) -> None:
        if self.keys.dtype.kind != "U":
            raise EffaceError(f"The keys of {self.name} are {self.keys.dtype}.", "Keys are strings.")
        names: list[str] = self.keys.tolist()
        require_unique_keys(names, self.name)
        invalid = [ascii(key) for key in names if not _is_valid_key(key)]
        if invalid:
            raise EffaceError(
                f"{len(invalid)} keys of {self.name} cannot be written as text: {quote_first(invalid)}.",
                "A key is blank, or contains bytes that are not UTF-8.",
                "Rename these files or keys.",
            )

    def _check_labels(self) -> None:
        if self.y is None:
            return
        if len(set(self.classes)) < len(self.classes):
            raise EffaceError(f"Two classes of {self.name} have the same name.", "A name must stand for one class.")
        if self.y.dtype != np.int64:
            raise EffaceError(f"The labels of {self.name} are {self.y.dtype}.", "Labels are int64.")
        low, high = int(self.y.min()), int(self.y.max())
        if low < UNKNOWN_LABEL or high >= len(self.classes):
            raise EffaceError(
                f"The labels of {self.name} go from {low} to {high}, and it has {len(self.classes)} classes.",
                "A label is a position in the list of classes, or -1 if it is unknown.",
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    @cached_property
    def index(self) -> NameIndex:
        """The keys with their positions."""
        return NameIndex(self.keys.tolist())

    def positions(self, keys: Iterable[str]) -> np.ndarray:
        """Find the positions of ``keys``, int64, in the order of ``keys``.

        Raises:
            EffaceError: Some keys are not in the data; the message counts them and shows the first ones.

        """
        wanted = [str(key) for key in keys]
        places = self.index.positions
        absent = [key for key in wanted if key not in places]
        if absent:
            why, remedy = explain_absent(absent, places)
            raise EffaceError(
                f"{len(absent)} of {len(wanted)} ids are not in {self.name}: {quote_first(absent)}.",
                why or f"Its ids look like this: {quote_first(self.keys[:3].tolist())}.",
                remedy or "Check the spelling, and that the ids belong to this data.",
            )
        return np.array([places[key] for key in wanted], dtype=np.int64)

    def take(self, ids: Any) -> Data:
        """Copy the examples at positions ``ids``, in that order, into a new data set."""
        rows = np.asarray(ids, dtype=np.int64)
        return Data(
            x=self.x.take(rows) if isinstance(self.x, LazyPixels) else np.array(self.x[rows]),
            keys=self.keys[rows],
            y=None if self.y is None else self.y[rows],
            classes=self.classes,
            group=None if self.group is None else self.group[rows],
            text=None if self.text is None else tuple(self.text[row] for row in rows),
            official=None if self.official is None else self.official[rows],
            name=self.name,
            skipped=self.skipped,
            unread=self.unread,
            notes=self.notes,
            shards=self.shards,
            shard=None if self.shard is None else self.shard[rows],
        )

    def digest(self) -> str:
        """Compute the SHA-256 (hexadecimal) of all images with their keys, labels and captions, in any order."""
        sha = hashlib.sha256(repr((self.shape, self.classes, len(self))).encode())
        for row in np.argsort(self.keys, kind="stable"):
            label = None if self.y is None else int(self.y[row])
            group = None if self.group is None else str(self.group[row])
            text = None if self.text is None else self.text[row]
            official = None if self.official is None else str(self.official[row])
            sha.update(repr((str(self.keys[row]), label, group, text, official)).encode("utf-8", "surrogatepass"))
            sha.update(np.ascontiguousarray(self.x[row]).data)
        return sha.hexdigest()

    @staticmethod
    def from_arrays(
        x: Any,
        y: Any = None,
        keys: Iterable[str] | None = None,
        *,
        classes: Iterable[str] | None = None,
        group: Iterable[str] | None = None,
        text: Iterable[str] | None = None,
        official: Iterable[str] | None = None,
        name: str = "arrays",
        channels: int | None = None,
    ) -> Data:
        """Build a data set from arrays and check it.

        Args:
            x: Pixels, integers 0 to 255 of shape [N, H, W], [N, C, H, W] or [N, H, W, C]; [N, H, W, 4] is RGBA and is
                put on white.
            y: Labels [N]: integers (-1 is unknown) or class names (an empty one, None and NaN are unknown).
            keys: Identifiers [N]. By default ``00000``, ``00001`` ...; then the order of the rows must never change.
                Like all text they may be bytes, as HDF5 gives them, which are read as UTF-8.
            classes: Class names; by default those in ``y``, sorted.
            group: The person or other group of each example [N].
            text: Captions [N].
            official: ``train`` or ``test`` for each example [N].
            name: Name of the data in messages.
            channels: Number of channels, where the shape of ``x`` does not tell; 4 are kept and not read as RGBA.

        Raises:
            EffaceError: An array has the wrong shape, type or range, or a key is not unique.

        """
        pixels = convert_pixels(np.asarray(x), name, channels)
        names = [f"{row:05d}" for row in range(len(pixels))] if keys is None else as_texts(keys, "keys", name)
        class_list = None if classes is None else tuple(as_texts(classes, "classes", name))
        labels, class_names = convert_labels(y, class_list, name)
        return Data(
            x=pixels,
            keys=_strings(names),
            y=labels,
            classes=class_names,
            group=None if group is None else _strings(as_texts(group, "groups", name)),
            text=None if text is None else tuple(as_texts(text, "captions", name)),
            official=None if official is None else _strings(as_texts(official, "official parts", name)),
            name=name,
            notes=describe_darkness(pixels, name),
        )


def rank_by_hash(keys: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Draw a random number for every key, uint64 [N], that depends only on the key, ``seed`` and ``purpose``."""
    prefix = hashlib.blake2b(f"{purpose}:{seed}:".encode(), digest_size=8)
    numbers = bytearray()
    for key in keys.tolist():
        hasher = prefix.copy()
        hasher.update(key.encode("utf-8"))
        numbers += hasher.digest()
    return np.frombuffer(bytes(numbers), dtype="<u8")


def shuffle_by_key(keys: np.ndarray, strata: np.ndarray | None, seed: int, purpose: str) -> np.ndarray:
    """Shuffle the examples; the result depends on their keys and not on their order.

    Args:
        keys: Identifiers [N].
        strata: Stratum of each example [N], or None. With strata, any stretch of the order holds every stratum in
            proportion, to within one example. Each stratum has its own random offset, so small strata are not pushed
            to one end.
        seed: Seed of the shuffle.
        purpose: A name that makes this shuffle independent of others with the same seed.

    Returns:
        Positions, int64 [N].

    """
    rank = rank_by_hash(keys, seed, purpose)
    order = np.argsort(rank, kind="stable")
    if strata is None or not len(keys):
        return order
    place = np.empty(len(keys))
    for stratum in np.unique(strata):
        members = order[strata[order] == stratum]
        start = int(rank_by_hash(np.array([str(stratum)]), seed, f"{purpose} stratum")[0]) / 2**64
        place[members] = (np.arange(len(members)) + start) / len(members)
    return np.lexsort((rank, place))


def sample_positions(
    keys: np.ndarray,
    y: np.ndarray | None,
    official: np.ndarray | None,
    limit: int | frozenset[str] | None,
    seed: int,
    name: str,
) -> np.ndarray:
    """Draw a random subset of ``limit`` training examples and return its sorted positions.

    The subset is stratified by class if there are labels, and all official test examples are kept. The draw depends
    only on the keys and ``seed``, and a smaller limit gives a subset of a larger one.

    Args:
        keys: Identifiers [N].
        y: Labels [N], or None.
        official: ``train`` or ``test`` [N]; None: draw from all examples.
        limit: Number of training examples to keep, or the keys that an earlier draw kept; None keeps all.
        seed: Seed of the draw.
        name: Name of the data in messages.

    Raises:
        EffaceError: The limit is not a whole number from 1 to the number of training examples.

    """
    everything = np.arange(len(keys))
    pool = everything if official is None else np.flatnonzero(official == "train")
    if limit is None or isinstance(limit, frozenset):
        return everything if limit is None else np.flatnonzero(np.isin(keys, sorted(limit)))
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= len(pool):
        raise EffaceError(f"A limit of {limit!r} does not fit {name}.", f"Use a whole number from 1 to {len(pool)}.")
    kept = pool[shuffle_by_key(keys[pool], None if y is None else y[pool], seed, "limit")[:limit]]
    return np.sort(np.concatenate([kept, np.setdiff1d(everything, pool)]))


def limit_examples(data: Data, limit: int | None, seed: int) -> Data:
    """Keep only ``limit`` of the (official training) examples; see :func:`sample_positions`."""
    if limit is None:
        return data
    return data.take(sample_positions(data.keys, data.y, data.official, limit, seed, data.name))


def _is_valid_key(key: str) -> bool:
    """Return whether a key is not blank, has no NUL character and can be encoded as UTF-8."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return key.strip() != "" and "\0" not in key


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=np.str_) if values else np.empty(0, "U1")


def require_labels(data: Data, positions: Any, who: str) -> None:
    """Raise unless every example at ``positions`` has a label; ``who`` needs them."""
    if data.y is None or (data.y[positions] < 0).any():
        raise EffaceError(
            f"{who} needs labels, and {'the data has none' if data.y is None else 'some examples have none'}.",
            remedy="Give labels, or use a label-free objective: simclr, moco, byol.",
        )


def require_captions(data: Data, positions: Iterable[int], who: str) -> None:
    """Raise unless every example at ``positions`` has a caption; ``who`` needs them."""
    if data.text is None:
        raise EffaceError(
            f"{who} needs captions, and the data has none.",
            f"{data.name} has no column 'caption', from which the captions of a manifest are read.",
            "Name the column with the captions 'caption', or use a label-free objective: simclr, moco, byol.",
        )
    absent = [row for row in positions if not data.text[row].strip()]
    if absent:
        raise EffaceError(
            f"{who} needs captions, and {len(absent)} have none.",
            f"The first one is '{data.keys[absent[0]]}'.",
            "Add the captions, or leave these examples out of the manifest.",
        )
