"""Observations: one model's outputs for each example, as named NumPy arrays in one file.

Audits read nothing else, so they can be repeated anywhere in milliseconds, without torch and without weights.

Arrays are named ``"<part>/<name>"``. Parts: ``forget``, ``retain``, ``holdout``, ``spare``, ``test``, ``valid``;
``control``: the never-trained examples that the holdout itself is compared with (a sample of ``test``); ``companions``:
never-trained examples of the forgotten groups, where there are too few to be the holdout; and ``withheld``: pictures
that only the auditor has. Names:

==========================  =============  ==============================================================
``features``                [n, d]         backbone features of the un-augmented image
``logits``                  [n, classes]   classifiers only, un-augmented image
``labels``                  [n]            integer class, -1 unknown; absent where the data has none
``keys``                    [n]            the example's stable key
``<space>.pairs``           [n, v(v-1)/2]  cosine of every pair of the v augmented views
``<space>.margin``          [n]            mean pair cosine / tau - mean logsumexp of cosines to the bank
``<space>.norm``            [n]            mean L2 norm of the un-normalized embedding over views
``gradient_norm``           [n]            L2 norm of d loss / d input (white-box)
``image``, ``text``         [n, d]         image-text models: embeddings of the un-augmented image and of its caption
``pair.similarity``         [n]            mean over the views of the cosine of image and caption
``pair.margin``             [n]            that over tau, minus logsumexp of the cosines to the captions of the bank
``score.<signal>``          [n]            in place of all these: the finished score, NaN where an example has none
==========================  =============  ==============================================================

Spaces: ``backbone`` always; ``projector`` where the model has one (for image-text models, the space shared by images
and captions). ``prompts/text`` [classes, d] holds the embeddings of the class names. All models are observed on the
same random views, seeded by the example's key, so models never differ because their views do.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from efface.data import array_files
from efface.data.array_files import map_npz, row_chunks, write_npz
from efface.errors import EffaceError
from efface.files import parse_json
from efface.schema import Count, Name, Positive, StoredModel, parse_record

COMPANIONS = "companions"
"""Part of the unseen examples of the forgotten groups, such as other pictures of the same person."""
WITHHELD = "withheld"
"""The part of pictures that only the auditor has."""
READY = "score."
"""Prefix of arrays that hold the finished scores of a signal, NaN where an example has none."""
OBSERVED_PARTS = ("forget", "retain", "holdout", "spare", "test", "valid", "control", COMPANIONS, WITHHELD)
OBSERVATIONS_FORMAT = 2
"""Version of the file. Files of format 1 have no digest of their content: nothing tells whether they were edited."""


def arrays_digest(head: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a JSON head and of the names, types, shapes and bytes of arrays."""
    sha = hashlib.sha256(json.dumps(list(head), sort_keys=True).encode())
    for name in sorted(arrays):
        value = arrays[name]
        sha.update(f"{name}:{value.dtype.str}:{value.shape};".encode())
        rows = np.atleast_1d(value)
        for part in row_chunks(rows):
            sha.update(np.ascontiguousarray(rows[part]).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Observations:
    """Named arrays of one model on one split."""

    model: str
    """Digest of the observed model."""
    split: str
    """Digest of the split; observations of different splits are never compared."""
    arrays: dict[str, np.ndarray]
    """``"<part>/<name>"`` to array; see the table in the module docstring."""
    meta: dict[str, Any] = field(default_factory=dict)
    """How the model was observed: ``spaces`` (list), ``views``, ``temperature``, ``bank``, ``classes`` ..."""

    def of(self, part: str, name: str) -> np.ndarray:
        """Return the array ``name`` of ``part``.

        Raises:
            EffaceError: If it was not observed; the message lists what was.

        """
        found = self.arrays.get(f"{part}/{name}")
        if found is None:
            present = sorted(key.split("/", 1)[1] for key in self.arrays if key.startswith(f"{part}/"))
            raise EffaceError(
                f"The observations hold no '{name}' of '{part}'.",
                f"Of '{part}' they hold: {', '.join(present) or 'nothing'}.",
            )
        return found

    def has(self, part: str, name: str) -> bool:
        """Whether ``name`` was observed on ``part``."""
        return f"{part}/{name}" in self.arrays

    def count(self, part: str) -> int:
        """Return the number of examples of ``part`` that were observed."""
        return len(self.arrays[f"{part}/keys"]) if self.has(part, "keys") else 0

    @property
    def spaces(self) -> tuple[str, ...]:
        """The observed embedding spaces: ``("backbone",)`` or ``("backbone", "projector")``."""
        return tuple(self.meta.get("spaces", ("backbone",)))

    @property
    def mapped(self) -> bool:
        """Whether an array is mapped from a file, and not in memory."""
        return any(isinstance(value, np.memmap) for value in self.arrays.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything: names, types, shapes and bytes of the arrays, and how they were made."""
        return arrays_digest([self.model, self.split, self.meta], self.arrays)

    def save(self, path: Path) -> None:
        """Write the observations to ``path`` as ``.npz`` (uncompressed, some rows of one array at a time).

        Only the owner may read the file: it lists the keys of the forgotten examples.
        """
        header = json.dumps(
            {
                "format": OBSERVATIONS_FORMAT,
                "model": self.model,
                "split": self.split,
                "meta": self.meta,
                "digest": self.digest,
            }
        )
        Path(path).unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            write_npz(file, {"__header__": np.array(header), **self.arrays})

    @staticmethod
    def load(path: Path) -> Observations:
        """Read a file written by :meth:`save`; pickled content is refused.

        A file of more than 16 MiB is mapped: it may be larger than the memory, and its arrays cannot be written.

        Raises:
            EffaceError: If the file is missing, cannot be read as observations, or was edited.

        """
        try:
            with open(path, "rb") as opened:
                _require_stored(opened)
                with np.load(opened, allow_pickle=False) as file:
                    header = parse_json(str(file["__header__"]))
                    # Only the digest tells whether what is mapped was damaged, and files of format 1 have none.
                    mapped = _file_size(opened) > array_files.MAPPED_BYTES and header.get("format", 1) != 1
                    arrays = map_npz(opened) if mapped else {name: file[name] for name in file.files}
            del arrays["__header__"]
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise TypeError("a part of it is not an array")  # noqa: TRY301
        except FileNotFoundError:
            raise EffaceError(f"There are no observations at {path}.", remedy="Run `efface audit` first.") from None
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds of errors for a damaged file
            raise EffaceError(
                f"{path} cannot be read as observations.", f"It is damaged, or another kind of file: {error}", _AGAIN
            ) from error
        stored = parse_record(StoredHeader, header, f"{path} (__header__)", "header of observations", _AGAIN)
        found, version = Observations(stored.model, stored.split, arrays, header["meta"]), header.get("format", 1)
        if type(version) is not int or not 1 <= version <= OBSERVATIONS_FORMAT:
            raise EffaceError(f"{path} was written by a newer efface: format {version!r}.", remedy="Upgrade efface.")
        if version == OBSERVATIONS_FORMAT and found.digest != header.get("digest"):
            raise _damaged_error(path, "its content does not match its own digest: an array or the header was changed")
        problem = _find_problem(arrays)
        if problem:
            raise EffaceError(f"{path} does not hold observations: {problem}.", "It is damaged.", _AGAIN)
        return found if version == OBSERVATIONS_FORMAT else replace(found, meta=found.meta | {OUTDATED: True})


def _require_stored(opened: BinaryIO) -> None:
    """Raise unless the arrays take no more than the file: they are written uncompressed, and a bomb is not."""
    with zipfile.ZipFile(opened) as archive:
        names = archive.namelist()
        claimed = sum(info.file_size for info in archive.infolist())
    size = _file_size(opened)
    opened.seek(0)
    if claimed > size or len(set(names)) < len(names):
        raise ValueError(f"its arrays claim {claimed} bytes of {size}, or two have the same name")


def _file_size(opened: BinaryIO) -> int:
    return os.fstat(opened.fileno()).st_size


_AGAIN = "Delete it and run `efface audit` again."


class StoredMeta(StoredModel):
    """How a model was observed, in the header of a file of observations, as far as it is read back."""

    spaces: tuple[Literal["backbone", "projector"], ...] = ("backbone",)
    views: Count | None = None
    temperature: Positive | None = None
    classes: tuple[str, ...] | None = None
    random: bool | None = None


class StoredHeader(StoredModel):
    """The header of a file of observations."""

    model: Name
    split: Name
    meta: StoredMeta


def _find_problem(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with stored arrays, by the table at the top of this module; None: nothing."""
    widths: dict[str, tuple[int, ...]] = {}
    for full, array in arrays.items():
        part, slash, name = full.partition("/")
        if not slash or part.removeprefix("renewed-") not in (*OBSERVED_PARTS, "prompts"):
            return f"it has an array '{full}'"
        kinds, what = {"keys": ("U", "text"), "labels": ("iu", "integers")}.get(name, ("fiub", "numbers"))
        if array.dtype.kind not in kinds:
            return f"{full} holds {array.dtype}, not {what}"
        if array.ndim not in (1, 2):
            return f"{full} has the shape {array.shape}"
        broken = np.isinf if name.startswith(READY) else _is_not_finite  # a score may be missing, and is NaN then
        if array.dtype.kind == "f" and any(broken(array[rows]).any() for rows in row_chunks(array)):
            return f"{full} holds numbers that are not finite"
        keys = arrays.get(f"{part}/keys")
        if part != "prompts" and (keys is None or len(array) != len(keys)):
            return f"{full} has {len(array)} rows, and there are {'no' if keys is None else len(keys)} keys of {part}"
        if part != "prompts" and widths.setdefault(name, array.shape[1:]) != array.shape[1:]:
            return f"{full} is {array.shape[1:]} wide, and {name} of another part {widths[name]}"
        if name == "keys" and (array.ndim != 1 or len(np.unique(array)) < len(array)):
            return f"{full} names an example twice"
    return None if any(name.endswith("/keys") for name in arrays) else "it has no keys"


def _is_not_finite(values: np.ndarray) -> np.ndarray:
    return ~np.isfinite(values)


OUTDATED = "outdated"
"""Marks, in ``meta``, observations that an older release wrote: nothing tells whether the file was edited."""


def _damaged_error(path: Path, why: str) -> EffaceError:
    return EffaceError(
        f"{path} is not what was observed.",
        f"It was edited or damaged: {why}.",
        "Observe again, from the weights: `efface audit RUN --recheck`.",
    )
