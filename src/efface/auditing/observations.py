"""Observations: one model's outputs for each example, as named NumPy arrays in one file.

Audits read nothing else, so they can be repeated anywhere in milliseconds, without torch and without weights.

Arrays are named ``"<part>/<name>"``. Parts: ``forget``, ``retain``, ``holdout``, ``spare``, ``test``, ``valid``. Names:

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
==========================  =============  ==============================================================

Spaces: ``backbone`` always; ``projector`` where the model has one (for image-text models, the space shared by images
and captions). ``prompts/text`` [classes, d] holds the embeddings of the class names. All models are observed on the
same random views, seeded by the example's key, so models never differ because their views do.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from efface.errors import EffaceError

OBSERVED_PARTS = ("forget", "retain", "holdout", "spare", "test", "valid")


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

    def save(self, path: Path) -> None:
        """Write the observations to ``path`` as ``.npz`` (uncompressed, one array at a time)."""
        header = json.dumps({"model": self.model, "split": self.split, "meta": self.meta})
        with open(path, "wb") as file:
            np.savez(file, __header__=np.array(header), **self.arrays)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def load(path: Path) -> Observations:
        """Read a file written by :meth:`save`; pickled content is refused.

        Raises:
            EffaceError: If the file is missing or cannot be read as observations.

        """
        try:
            with open(path, "rb") as opened:
                _require_stored(opened)
                with np.load(opened, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("__header__")))
            model, split, meta = (header[name] for name in ("model", "split", "meta"))
            if not (isinstance(model, str) and isinstance(split, str) and isinstance(meta, dict)):
                raise TypeError("its header names no model, split and settings")  # noqa: TRY301
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise TypeError("a part of it is not an array")  # noqa: TRY301
        except FileNotFoundError:
            raise EffaceError(f"There are no observations at {path}.", remedy="Run `efface audit` first.") from None
        except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds of errors for a damaged file
            raise EffaceError(
                f"{path} cannot be read as observations.",
                f"It is damaged, or another kind of file: {str(error) or type(error).__name__}",
                "Delete it and run `efface audit` again.",
            ) from error
        return Observations(model, split, arrays, meta)


def _require_stored(opened: BinaryIO) -> None:
    """Raise unless the arrays take no more than the file: they are written uncompressed, and a bomb is not."""
    with zipfile.ZipFile(opened) as archive:
        names = archive.namelist()
        claimed = sum(info.file_size for info in archive.infolist())
    size = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    if claimed > size or len(set(names)) < len(names):
        raise ValueError(f"its arrays claim {claimed} bytes of {size}, or two have the same name")
