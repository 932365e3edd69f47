"""The folder of a head: its arrays in files named by their content, and one description that says which they are.

    head.json           kind, classes, settings, the files of each array with their SHA-256, what was deleted
    NAME-….npy          the arrays; a long one is in several files, so that a deletion rewrites only some of them
    head.key            secret of the key digests, mode 0600; only deleting needs it

A change writes its new files first, then replaces ``head.json`` at once, then removes what that no longer names. A kill
leaves the old state or the new one, and the next command removes the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from efface._version import __version__
from efface.data.array_files import ARRAY_ERRORS, read_npy
from efface.errors import EffaceError
from efface.files import atomic_path, file_digest, read_json, write_text
from efface.reporting.redaction import SECRET_BYTES
from efface.schema import FirstFormat, HexDigest, Name, Positive, StoredModel, Tally, Whole
from efface.unlearning.heads import ROW_BYTES

HEAD_FILE, SECRET = "head.json", "head.key"
ROWS_PER_FILE = 4096
_RESTORE = "Restore the folder from a backup, or fit the head again."


class ArrayFile(StoredModel):
    """One file of an array."""

    file: Name
    sha256: HexDigest
    rows: Tally


class Deletion(StoredModel):
    """One request that was carried out."""

    created: Name
    count: Tally
    before: HexDigest
    """Digest of the statistics before it."""
    after: HexDigest
    seconds: float
    record: Name
    """File of its record in the folder."""


class HeadDescription(StoredModel):
    """The content of ``head.json``."""

    format: FirstFormat = 1
    efface: Name = __version__
    kind: Literal["ridge", "knn"]
    classes: tuple[str, ...]
    penalty: Positive | None = None
    neighbors: Whole | None = None
    width: Tally
    """Numbers in each embedding."""
    rows: Tally
    """How many rows it was fitted on, without those that were deleted."""
    fitted: Tally
    """How many it was fitted on at first."""
    encoder: str = ""
    """Digest of the encoder's weights, if it is known."""
    embeddings: str = ""
    """Where the embeddings were when it was fitted."""
    labels: str = ""
    """Where their labels were; empty: in the same file."""
    embeddings_sha256: HexDigest
    arrays: dict[str, tuple[ArrayFile, ...]]
    deletions: tuple[Deletion, ...] = ()

    def digest(self) -> str:
        """Digest of the statistics: kind, settings, classes and the content of every array."""
        facts = self.model_dump(mode="json", include={"kind", "classes", "penalty", "neighbors", "width", "rows"})
        facts["arrays"] = {name: [one.sha256 for one in files] for name, files in sorted(self.arrays.items())}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class HeadStore:
    """Reads and writes the folder of a head."""

    folder: Path

    def describe(self) -> HeadDescription:
        """Read ``head.json``.

        Raises:
            EffaceError: There is none, or it is damaged or of a newer version.

        """
        path = self.folder / HEAD_FILE
        missing = "Fit one: `efface heads fit EMBEDDINGS --out DIR`."
        found = HeadDescription.model_validate(
            read_json(path, "head", schema=HeadDescription, missing=missing, remedy=_RESTORE)
        )
        for name, files in found.arrays.items():
            for one in files:
                if Path(one.file).name != one.file:
                    raise EffaceError(f"{path} is damaged: {name} is in '{one.file}'.", "", _RESTORE)
        return found

    def read(self, description: HeadDescription, name: str) -> np.ndarray:
        """Read a whole array; a file that is missing or not the one that is described raises."""
        return np.concatenate([self.read_file(one) for one in description.arrays[name]])

    def read_file(self, one: ArrayFile) -> np.ndarray:
        """Read one file of an array, and check it."""
        path = self.folder / one.file
        try:
            found = file_digest(path)
            array = read_npy(path)
        except ARRAY_ERRORS as error:
            raise EffaceError(f"{path} cannot be read.", str(error), _RESTORE) from error
        if found != one.sha256 or len(array) != one.rows:
            raise EffaceError(
                f"{path} is not the file that {HEAD_FILE} describes.",
                f"SHA-256 expected: {one.sha256[:16]}; found: {found[:16]}.",
                _RESTORE,
            )
        return array

    def write(self, name: str, array: np.ndarray) -> ArrayFile:
        """Write one file of an array, named by its content."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        content = buffer.getbuffer()
        sha = hashlib.sha256(content).hexdigest()
        file = f"{name}-{sha[:24]}.npy"
        if not (self.folder / file).exists():
            with atomic_path(self.folder / file) as fresh, open(fresh, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
        return ArrayFile(file=file, sha256=sha, rows=len(array))

    def write_rows(self, name: str, array: np.ndarray) -> tuple[ArrayFile, ...]:
        """Write a long array in several files."""
        starts = range(0, max(len(array), 1), ROWS_PER_FILE)
        return tuple(self.write(name, array[start : start + ROWS_PER_FILE]) for start in starts)

    def without(self, name: str, files: Sequence[ArrayFile], gone: np.ndarray) -> tuple[ArrayFile, ...]:
        """Write a long array again without some rows; files that had none of them stay."""
        kept: list[ArrayFile] = []
        start = 0
        for one in files:
            inside = gone[(gone >= start) & (gone < start + one.rows)] - start
            start += one.rows
            kept.append(one if not len(inside) else self.write(name, np.delete(self.read_file(one), inside, 0)))
        return tuple(kept)

    def commit(self, description: HeadDescription) -> None:
        """Replace the description, and remove the files that it does not name."""
        write_text(self.folder / HEAD_FILE, json.dumps(description.model_dump(mode="json"), indent=1) + "\n")
        self.remove_rest(description)

    def remove_rest(self, description: HeadDescription) -> None:
        """Remove arrays and records that a killed command left, or that a change replaced."""
        named = {one.file for files in description.arrays.values() for one in files}
        records = {one.record for one in description.deletions}
        for path in self.folder.iterdir():
            array = path.suffix == ".npy" and path.name not in named
            record = path.name.startswith("deletion-") and path.with_suffix(".json").name not in records
            if array or (record and path.suffix in (".json", ".key")):
                path.unlink()

    def secret(self) -> bytes:
        """The secret of the key digests; without it nothing can be found by its key."""
        path = self.folder / SECRET
        try:
            found = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError) as error:
            raise EffaceError(
                f"{path} cannot be read.", f"It names the rows of this head: {error}", "Restore it from a backup."
            ) from error
        if len(found) != SECRET_BYTES:
            raise EffaceError(f"{path} holds {len(found)} bytes.", f"It should be {SECRET_BYTES}.", _RESTORE)
        return found


def name_digests(keys: Sequence[str], secret: bytes) -> np.ndarray:
    """Keyed digest of each key, ``[n]`` of ``ROW_BYTES`` bytes."""
    found = [
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=secret, digest_size=ROW_BYTES).digest()
        for key in keys
    ]
    return np.array(found, dtype=f"V{ROW_BYTES}")


def places_of(names: np.ndarray) -> Mapping[Any, int]:
    """Key digest to row."""
    return {bytes(one): row for row, one in enumerate(names.tolist())}
