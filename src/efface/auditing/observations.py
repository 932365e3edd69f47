"""Observations: what one model shows of each example, as named arrays on disk. No torch here.

An audit reads nothing else, so evidence can be judged again anywhere, in milliseconds, without weights.

Arrays are named ``"<part>/<name>"``. Parts: ``forget``, ``retain``, ``holdout``, ``spare``, ``test``, ``valid``. Names:

==========================  =============  ==============================================================
``features``                [n, d]         backbone output of the un-augmented image
``logits``                  [n, classes]   classifiers only, un-augmented image
``labels``                  [n]            integer class, -1 unknown; absent where the data has none
``keys``                    [n]            the example's stable key
``<space>.pairs``           [n, v(v-1)/2]  cosine of every pair of the v augmented views
``<space>.margin``          [n]            mean pair cosine / tau - mean logsumexp of cosines to the bank
``<space>.norm``            [n]            mean L2 norm of the un-normalized embedding over views
``gradient_norm``           [n]            L2 norm of d loss / d input (white-box)
``image``, ``text``         [n, d]         image-text models: embeddings of the un-augmented image, of its caption
``pair.similarity``         [n]            mean over the views of the cosine of image and caption
``pair.margin``             [n]            that over tau, minus logsumexp of the image's cosines to a bank's captions
==========================  =============  ==============================================================

Spaces: ``backbone`` always, ``projector`` where the model has one (of image-text models the space that images share
with captions). ``prompts/text`` [classes, d]: embeddings of the classes' names. Every part of every model is observed
on the same views (seeded per key), so differences between models are never differences between views.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efface.errors import EffaceError

OBSERVED_PARTS = ("forget", "retain", "holdout", "spare", "test", "valid")


@dataclass(frozen=True, eq=False)
class Observations:
    """Named arrays of one model. ``model`` and ``split`` are digests; ``meta`` says how they were observed."""

    model: str
    """Digest of the model observed."""
    split: str
    """Digest of the split it was observed on: observations of different splits are never compared."""
    arrays: dict[str, np.ndarray]
    """``"<part>/<name>"`` to array; see the module's table."""
    meta: dict[str, Any] = field(default_factory=dict)
    """``spaces`` (list), ``objective``, ``views``, ``temperature``, ``bank``, ``classes`` ..."""

    def of(self, part: str, name: str) -> np.ndarray:
        """The array ``name`` of ``part``; an :class:`EffaceError` naming what is there if it is absent."""
        found = self.arrays.get(f"{part}/{name}")
        if found is None:
            there = sorted(key.split("/", 1)[1] for key in self.arrays if key.startswith(f"{part}/"))
            raise EffaceError(
                f"The observations hold no '{name}' of '{part}'.",
                f"Of '{part}' they hold: {', '.join(there) or 'nothing'}.",
            )
        return found

    def has(self, part: str, name: str) -> bool:
        """Whether ``name`` was observed on ``part``."""
        return f"{part}/{name}" in self.arrays

    def count(self, part: str) -> int:
        """How many examples of ``part`` were observed."""
        return len(self.arrays[f"{part}/keys"]) if self.has(part, "keys") else 0

    @property
    def spaces(self) -> tuple[str, ...]:
        """The embedding spaces observed, outermost last: ``("backbone",)`` or ``("backbone", "projector")``."""
        return tuple(self.meta.get("spaces", ("backbone",)))

    def save(self, path: Path) -> None:
        """Write ``path`` as ``.npz`` (uncompressed, streamed array by array)."""
        header = json.dumps({"model": self.model, "split": self.split, "meta": self.meta})
        with open(path, "wb") as file:
            np.savez(file, __header__=np.array(header), **self.arrays)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def load(path: Path) -> Observations:
        """Read what :meth:`save` wrote; pickled content is refused."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                header = json.loads(str(file["__header__"]))
                arrays = {name: file[name] for name in file.files if name != "__header__"}
        except FileNotFoundError:
            raise EffaceError(f"There are no observations at {path}.", remedy="Run `efface audit` first.") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise EffaceError(
                f"{path} cannot be read as observations.",
                f"The file is damaged or something else: {error}",
                "Delete it and run `efface audit` again.",
            ) from error
        return Observations(header["model"], header["split"], arrays, header["meta"])
