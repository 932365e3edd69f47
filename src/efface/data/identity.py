"""What the examples of a checkpoint were: a digest of each picture, the labels, and the class names in order.

The file has digests of keys and of pictures, never keys or pixels. It is compared with the data at every later use, so
that a picture that was replaced under its name, or a class that moved to another position, is noticed. NumPy only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from efface.data.class_order import number_classes
from efface.data.dataset import UNKNOWN_LABEL, Data
from efface.data.image_files import RULES
from efface.data.lazy_pixels import LazyPixels
from efface.errors import EffaceError
from efface.files import disk_errors, parse_json

IDENTITY = "identity.npz"
"""Name of the file in a run folder."""
IDENTITY_FORMAT = 1


@dataclass(frozen=True, eq=False)
class DataDifference:
    """How the data at hand differ from the recorded ones; arrays are in the order of the data at hand."""

    pictures: np.ndarray
    """Whether an example was recorded with another picture or caption, bool [N]."""
    labels: np.ndarray
    """Whether it was recorded with another class, bool [N]."""
    new_classes: tuple[str, ...] = ()
    """Classes that the record does not have; they come after its own."""
    empty_classes: tuple[str, ...] = ()
    """Classes of the record of which no example is left."""

    @property
    def changed(self) -> np.ndarray:
        """Whether the picture, caption or class is another one, bool [N]."""
        return self.pictures | self.labels


@dataclass(frozen=True, eq=False)
class DataIdentity:
    """The examples that a checkpoint was made with; all arrays are in the order of ``keys``.

    Example:
        >>> DataIdentity.of(data).compare(data).changed.any()
        False

    """

    keys: np.ndarray
    """Digest of each key, uint64 [N], ascending."""
    contents: np.ndarray
    """Digest of each key with its pixels and caption, uint64 [N]."""
    labels: np.ndarray
    """Positions in ``classes``, int64 [N]; -1 if unknown."""
    classes: tuple[str, ...]
    """The class names in the order in which the checkpoint numbers them."""
    facts: Mapping[str, Any]
    """Source, path, shape of the images, and what decoded them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of every image."""
        return tuple(self.facts.get("shape", ()))

    @staticmethod
    def of(data: Data, source: Any = None) -> DataIdentity:
        """Record the examples of ``data``; each picture is read once.

        Args:
            data: The data set.
            source: The settings that it was loaded with, for the facts.

        """
        hashed = _hash_keys(data.keys.tolist())
        order = np.argsort(hashed, kind="stable")
        facts = {"format": IDENTITY_FORMAT, "name": data.name, "shape": list(data.shape), "source": source}
        facts |= {"captions": data.text is not None, "labels": data.y is not None}
        facts |= {"decoding": RULES, "pillow": PIL.__version__}
        labels = np.full(len(data), UNKNOWN_LABEL, np.int64) if data.y is None else data.y
        contents = _hash_contents(data, order, captions=data.text is not None)
        return DataIdentity(hashed[order], contents, labels[order], data.classes, json.loads(json.dumps(facts)))

    def digest(self) -> str:
        """Compute the SHA-256 (hexadecimal) of all of it."""
        sha = hashlib.sha256(json.dumps([self.classes, dict(self.facts)], sort_keys=True).encode())
        for array in (self.keys, self.contents, self.labels):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()

    def compare(self, data: Data) -> DataDifference:
        """Compare the data at hand, numbered by :meth:`number`, with the record; new examples count as unchanged."""
        hashed = _hash_keys(data.keys.tolist())
        place = np.searchsorted(self.keys, hashed).clip(max=len(self.keys) - 1)
        known = np.flatnonzero(self.keys[place] == hashed)
        pictures, labels = np.zeros(len(data), bool), np.zeros(len(data), bool)
        captions = bool(self.facts.get("captions")) and data.text is not None
        if captions == bool(self.facts.get("captions")):
            pictures[known] = _hash_contents(data, known, captions=captions) != self.contents[place[known]]
        else:
            pictures[known] = True
        if data.y is not None and self.facts.get("labels"):
            labels[known] = data.y[known] != self.labels[place[known]]
        present = set() if data.y is None else {data.classes[label] for label in np.unique(data.y) if label >= 0}
        return DataDifference(
            pictures,
            labels,
            new_classes=tuple(name for name in data.classes if name not in self.classes),
            empty_classes=tuple(name for name in self.classes if name not in present) if data.y is not None else (),
        )

    def number(self, data: Data) -> Data:
        """Number the classes of ``data`` as the checkpoint does; classes that it does not know come last."""
        return number_classes(data, self.classes) if self.classes else data

    def renewed(self, data: Data, positions: np.ndarray) -> DataIdentity:
        """Return the record with the pictures at ``positions`` as they are now: a model was trained on these."""
        hashed = _hash_keys(data.keys[positions].tolist())
        place = np.searchsorted(self.keys, hashed).clip(max=len(self.keys) - 1)
        known = self.keys[place] == hashed
        contents, labels = self.contents.copy(), self.labels.copy()
        captions = bool(self.facts.get("captions"))
        contents[place[known]] = _hash_contents(data, positions[known], captions=captions)
        if data.y is not None:
            labels[place[known]] = data.y[positions[known]]
        return replace(self, contents=contents, labels=labels)

    def save(self, folder: Path) -> str:
        """Write the record into a folder, readable by its owner only, and return its digest."""
        buffer = io.BytesIO()
        head = json.dumps({"classes": list(self.classes), "facts": dict(self.facts)})
        np.savez_compressed(
            buffer,
            keys=self.keys,
            contents=self.contents,
            labels=self.labels,
            head=np.frombuffer(head.encode(), np.uint8),
        )
        path = Path(folder) / IDENTITY
        fresh = path.with_name(path.name + ".tmp")
        with disk_errors(path):
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(buffer.getbuffer())
            os.replace(fresh, path)
        return self.digest()

    @staticmethod
    def load(folder: Path, digest: str = "") -> DataIdentity:
        """Read what :meth:`save` wrote.

        Args:
            folder: The run folder.
            digest: The digest in the run's description; empty: not checked.

        Raises:
            EffaceError: The file is missing, damaged, of a newer format, or not the one that is described.

        """
        path = Path(folder) / IDENTITY
        remedy = "Restore the folder from where it came, or make it again."
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("keys", "contents", "labels")}
                head = parse_json(file["head"].tobytes().decode())
            found = DataIdentity(**arrays, classes=tuple(head["classes"]), facts=head["facts"])
        except FileNotFoundError:
            raise EffaceError(
                f"{path} is missing.", "It says which pictures the checkpoint was made with.", remedy
            ) from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise EffaceError(f"{path} cannot be read.", f"It is damaged or something else: {error}", remedy) from error
        shapes = {(array.dtype.kind, array.shape) for array in (found.keys, found.contents)}
        if shapes != {("u", (len(found.labels),))} or not len(found.labels):
            raise EffaceError(f"{path} cannot be read.", "Its arrays differ in length.", remedy)
        if found.facts.get("format") != IDENTITY_FORMAT:
            raise EffaceError(
                f"{path} was written by another efface (format {found.facts.get('format')}).", remedy="Upgrade."
            )
        if digest and found.digest() != digest:
            raise EffaceError(
                f"{path} is not the one that the run was made with.",
                f"Digest expected: {digest[:16]}; found: {found.digest()[:16]}.",
                remedy,
            )
        return found


def _hash_keys(keys: Iterable[str]) -> np.ndarray:
    """Hash each key, uint64 [N]."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _hash_contents(data: Data, positions: np.ndarray, *, captions: bool) -> np.ndarray:
    """Hash the key, the pixels and the caption of each example at ``positions``, uint64 [n], one picture at a time."""
    digests = bytearray()
    for row in positions.tolist():
        if isinstance(data.x, LazyPixels):
            known = data.x.content_digest(row, str(data.keys[row]), data.text[row] if captions and data.text else None)
            if known is not None:
                digests += known
                continue
        sha = hashlib.blake2b(f"{data.keys[row]}\0".encode(), digest_size=8)
        sha.update(np.ascontiguousarray(data.x[row]).data)
        if captions and data.text is not None:
            sha.update(data.text[row].encode("utf-8", "surrogatepass"))
        digests += sha.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)
