"""Data: images whose identity is a stable key, never a position. numpy only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from efface.errors import EffaceError

OFFICIAL = ("train", "test")
UNKNOWN_LABEL = -1


@dataclass(frozen=True, eq=False)
class Data:
    """N images with their keys and what is known of them; every array is in the same order."""

    x: np.ndarray
    """Pixels, uint8 [N, C, H, W], 0..255; in memory or memory-mapped."""
    keys: np.ndarray
    """Names of the examples, str [N]: unique and stable, such as ``train/00012`` or ``cats/a.png``."""
    y: np.ndarray | None = None
    """Labels, int64 [N]: positions in ``classes``; -1 where unknown. None: the data has no labels."""
    classes: tuple[str, ...] = ()
    """Names of the labels (``"0"``, ``"1"`` ... where they have none); empty without labels."""
    group: np.ndarray | None = None
    """Who or what each example belongs to (a person, a patient), str [N]."""
    text: tuple[str, ...] | None = None
    """Captions, N of them."""
    official: np.ndarray | None = None
    """``train`` or ``test``, str [N], where the source has an official test part."""
    name: str = "data"
    """What to call the data in messages."""
    skipped: tuple[dict[str, str], ...] = ()
    """Broken items that were left out because that was asked for: ``key``, ``path``, ``error``."""

    def __post_init__(self) -> None:
        if self.x.dtype != np.uint8 or self.x.ndim != 4 or 0 in self.x.shape:
            raise EffaceError(
                f"The images of {self.name} are {self.x.dtype} of shape {list(self.x.shape)}.",
                "Images are uint8 (0..255) of shape [N, C, H, W], none of them 0.",
                "Data.from_arrays accepts the other common layouts.",
            )
        n = len(self.x)
        fields = {
            "keys": self.keys,
            "y": self.y,
            "group": self.group,
            "text": self.text,
            "official": self.official,
        }
        for field, value in fields.items():
            shape = [len(value)] if isinstance(value, tuple) else None if value is None else list(value.shape)
            if shape is not None and shape != [n]:
                raise EffaceError(f"{self.name} has {n} images, but its {field} are {shape}.", "One for each image.")
        self._check_keys()
        self._check_labels()
        if self.official is not None and not set(np.unique(self.official)) <= set(OFFICIAL):
            strange = sorted(set(np.unique(self.official).tolist()) - set(OFFICIAL))
            raise EffaceError(f"The official parts of {self.name} hold '{strange[0]}'.", "They are 'train' and 'test'.")

    def _check_keys(self) -> None:
        if self.keys.dtype.kind != "U":
            raise EffaceError(f"The keys of {self.name} are {self.keys.dtype}.", "Keys are strings.")
        names: list[str] = self.keys.tolist()
        if len(set(names)) < len(names):
            seen: set[str] = set()
            twice = [key for key in names if key in seen or seen.add(key)]
            raise EffaceError(
                f"{len(twice)} keys of {self.name} are used more than once: {quote_first(twice)}.",
                "A key names one example: who is to be forgotten must be clear.",
                "Give every example a key of its own.",
            )
        odd = [ascii(key) for key in names if not _plain(key)]
        if odd:
            raise EffaceError(
                f"{len(odd)} keys of {self.name} cannot be written as text: {quote_first(odd)}.",
                "A key is empty, or holds bytes that are not UTF-8.",
                "Rename these files or keys.",
            )

    def _check_labels(self) -> None:
        if self.y is None:
            return
        if self.y.dtype != np.int64:
            raise EffaceError(f"The labels of {self.name} are {self.y.dtype}.", "Labels are int64.")
        low, high = int(self.y.min()), int(self.y.max())
        if low < UNKNOWN_LABEL or high >= len(self.classes):
            raise EffaceError(
                f"The labels of {self.name} go from {low} to {high}, and it has {len(self.classes)} classes.",
                "A label is a position in the classes, or -1 where it is unknown.",
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.x.shape
        return channels, height, width

    @cached_property
    def _index(self) -> dict[str, int]:
        return {key: position for position, key in enumerate(self.keys.tolist())}

    def positions(self, keys: Iterable[str]) -> np.ndarray:
        """Where the keys are, int64, in their order; an error counts and shows the unknown ones."""
        asked = [str(key) for key in keys]
        absent = [key for key in asked if key not in self._index]
        if absent:
            raise EffaceError(
                f"{len(absent)} of {len(asked)} ids are not in {self.name}: {quote_first(absent)}.",
                f"Its ids look like this: {quote_first(self.keys[:3].tolist())}.",
                "Check the spelling, and that this is the data which the ids are about.",
            )
        return np.array([self._index[key] for key in asked], dtype=np.int64)

    def take(self, ids: Any) -> Data:
        """The examples at positions ``ids`` as Data of their own (a copy), in that order."""
        rows = np.asarray(ids, dtype=np.int64)
        return Data(
            x=np.array(self.x[rows]),
            keys=self.keys[rows],
            y=None if self.y is None else self.y[rows],
            classes=self.classes,
            group=None if self.group is None else self.group[rows],
            text=None if self.text is None else tuple(self.text[row] for row in rows),
            official=None if self.official is None else self.official[rows],
            name=self.name,
            skipped=self.skipped,
        )

    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all that is known of every example, whatever their order."""
        whole = hashlib.sha256(repr((self.shape, self.classes, len(self))).encode())
        for row in np.argsort(self.keys, kind="stable"):
            label = None if self.y is None else int(self.y[row])
            group = None if self.group is None else str(self.group[row])
            text = None if self.text is None else self.text[row]
            official = None if self.official is None else str(self.official[row])
            whole.update(repr((str(self.keys[row]), label, group, text, official)).encode("utf-8", "surrogatepass"))
            whole.update(np.ascontiguousarray(self.x[row]).data)
        return whole.hexdigest()

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
    ) -> Data:
        """Data from arrays.

        ``x``: integers 0..255, [N, H, W], [N, C, H, W] or [N, H, W, C]; RGBA is put on white. ``y``: integers
        (-1 unknown) or names, N of them. ``keys``: by default ``00000``, ``00001`` ... : then keep the order
        for ever.
        """
        pixels = _images(np.asarray(x), name)
        count = len(pixels)
        names = [f"{row:05d}" for row in range(count)] if keys is None else [str(key) for key in keys]
        labels, called = _labels(y, None if classes is None else tuple(str(one) for one in classes), name)
        return Data(
            x=pixels,
            keys=_strings(names),
            y=labels,
            classes=called,
            group=None if group is None else _strings([str(one) for one in group]),
            text=None if text is None else tuple(str(one) for one in text),
            official=None if official is None else _strings([str(one) for one in official]),
            name=name,
        )


def quote_first(items: Sequence[str], count: int = 5) -> str:
    """The first few of many, quoted, for a message."""
    return ", ".join(f"'{one}'" for one in items[:count]) + (", ..." if len(items) > count else "")


def rank_by_hash(keys: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """A random number for every key, uint64 [N], from the key, ``seed`` and ``purpose`` alone."""
    start = hashlib.blake2b(f"{purpose}:{seed}:".encode(), digest_size=8)
    numbers = bytearray()
    for key in keys.tolist():
        one = start.copy()
        one.update(key.encode("utf-8"))
        numbers += one.digest()
    return np.frombuffer(bytes(numbers), dtype="<u8")


def shuffle_by_key(keys: np.ndarray, strata: np.ndarray | None, seed: int, purpose: str) -> np.ndarray:
    """A random order of the examples, int64 [N], which depends on their keys and not on their order.

    With ``strata`` ([N]) it is a stratified one: any stretch of it holds every stratum in proportion, to
    within one example. Its start is drawn for each stratum apart, so small strata are not pushed to one end.
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
    limit: int | None,
    seed: int,
    name: str,
) -> np.ndarray:
    """Sorted positions of ``limit`` of the official training examples (of all, where none are official).

    They are a random subset, stratified by class where there are labels; official test examples are kept. The
    draw depends on the keys and ``seed`` only, and a smaller limit gives a subset of a larger one's.
    """
    everything = np.arange(len(keys))
    pool = everything if official is None else np.flatnonzero(official == "train")
    if limit is None:
        return everything
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit <= len(pool):
        raise EffaceError(f"A limit of {limit!r} does not fit {name}.", f"Whole numbers from 1 to {len(pool)} do.")
    kept = pool[shuffle_by_key(keys[pool], None if y is None else y[pool], seed, "limit")[:limit]]
    return np.sort(np.concatenate([kept, np.setdiff1d(everything, pool)]))


def limit_examples(data: Data, limit: int | None, seed: int) -> Data:
    """The data with only ``limit`` of its (official training) examples; see :func:`subset`."""
    if limit is None:
        return data
    return data.take(sample_positions(data.keys, data.y, data.official, limit, seed, data.name))


def _plain(key: str) -> bool:
    """Whether a key can be written down: not empty, no NUL, nothing of a file name that is not UTF-8."""
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return key != "" and "\0" not in key


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array(values, dtype=np.str_) if values else np.empty(0, "U1")


def _images(x: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8 [N, C, H, W]."""
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise EffaceError(
            f"The images of {name} have shape {list(x.shape)}.",
            "Expected [N, H, W], [N, C, H, W] or [N, H, W, C], none of them 0.",
        )
    if x.dtype.kind not in "uib":
        raise EffaceError(
            f"The images of {name} are {x.dtype}.",
            "Pixels are integers from 0 to 255.",
            "For numbers in [0, 1]: (x * 255).round().astype('uint8').",
        )
    if x.dtype != np.uint8:
        if x.min() < 0 or x.max() > 255:
            raise EffaceError(f"The pixels of {name} go from {x.min()} to {x.max()}.", "They go from 0 to 255.")
        x = x.astype(np.uint8)
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3, 4):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if x.shape[1] == 4:
            alpha = x[:, 3:].astype(np.uint16)
            x = ((x[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return x


def _labels(y: Any, classes: tuple[str, ...] | None, name: str) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as int64 and the names of the classes."""
    if y is None:
        return None, ()
    values = np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "uiUO" or not len(values):
        raise EffaceError(
            f"The labels of {name} are {values.dtype} of shape {list(values.shape)}.",
            "Expected one integer or one name for each image.",
            "For one-hot labels: y.argmax(1).",
        )
    if values.dtype.kind in "ui":
        values = values.astype(np.int64)
        return values, classes or tuple(str(one) for one in range(int(values.max()) + 1))
    return encode_labels([str(one) for one in values.tolist()], classes, name)


def encode_labels(
    labels: Sequence[str], classes: tuple[str, ...] | None = None, name: str = "data"
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Named labels as int64 and their classes: sorted (as numbers if all are); an empty name is unknown."""
    present = {label for label in labels if label}
    number = all(label.isdecimal() for label in present)
    called = classes or tuple(sorted(present, key=(lambda one: (int(one), one)) if number else None))
    index = {label: position for position, label in enumerate(called)} | {"": UNKNOWN_LABEL}
    strange = sorted(present - set(called))
    if strange:
        raise EffaceError(f"{len(strange)} labels of {name} are not among its classes: {quote_first(strange)}.")
    return np.array([index[label] for label in labels], dtype=np.int64), called


def require_labels(data: Data, positions: Any, who: str) -> None:
    """An error unless every example at ``positions`` has a label."""
    if data.y is None or (data.y[positions] < 0).any():
        raise EffaceError(
            f"{who} needs labels, and {'the data has none' if data.y is None else 'some examples have none'}.",
            remedy="Give labels, or use a label-free objective: simclr, moco, byol.",
        )


def require_captions(data: Data, positions: Iterable[int], who: str) -> None:
    """An error unless every example at ``positions`` has a caption."""
    if data.text is None:
        raise EffaceError(
            f"{who} needs captions, and the data has none.",
            f"{data.name} has no column 'caption'; a manifest's captions are read from there and nowhere else.",
            "Give the column of the captions that name, or use a label-free objective: simclr, moco, byol.",
        )
    absent = [row for row in positions if not data.text[row].strip()]
    if absent:
        raise EffaceError(
            f"{who} needs captions, and {len(absent)} have none.",
            f"Such as '{data.keys[absent[0]]}'.",
            "Write a caption for each, or leave them out of the manifest.",
        )
