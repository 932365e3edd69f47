"""Files of a reference bank, as ``.npz`` with a digest: one of each model's scores, and a compact one of them all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from efface.auditing.observations import arrays_digest
from efface.auditing.reference_bank import ReferenceBank
from efface.errors import EffaceError
from efface.files import atomic_path, parse_json
from efface.schema import FirstFormat, HexDigest, Name, StoredModel, parse_record

BANK_FILE = "bank.npz"
BANK_FORMAT = 1
WHAT, BANK_REMEDY = "reference bank", "Delete it, and make the bank again: `efface references RUN --bank 8`."
SCORE = "score."


class StoredBankHeader(StoredModel):
    """The header of a file of a reference bank."""

    format: FirstFormat
    original: HexDigest
    digest: HexDigest
    models: Annotated[int, Field(ge=1, le=10_000)]
    meta: dict[str, Any]
    signals: tuple[Name, ...]


@dataclass(frozen=True, eq=False)
class HalfScores:
    """What one model of a bank was trained on, and its scores of every example."""

    original: str
    keys: np.ndarray
    trained: np.ndarray
    valid: np.ndarray
    inside: np.ndarray
    """bool [n]"""
    scores: dict[str, np.ndarray]
    """Signal to float32 [n]."""
    meta: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write the file of this model."""
        scores = {name: values[None] for name, values in self.scores.items()}
        _save(
            path, StoredScores(self.original, self.keys, self.trained, self.valid, self.inside[None], scores, self.meta)
        )

    @staticmethod
    def load(path: Path) -> HalfScores:
        """Read the file of one model.

        Raises:
            EffaceError: It is damaged, was edited, or is another kind of file.

        """
        held = _load(path)
        if len(held.inside) != 1:
            raise EffaceError(f"{path} holds {len(held.inside)} models, not one of a {WHAT}.", remedy=BANK_REMEDY)
        single = {name: values[0] for name, values in held.scores.items()}
        return HalfScores(held.original, held.keys, held.trained, held.valid, held.inside[0], single, held.meta)


@dataclass(frozen=True, eq=False)
class StoredScores:
    """The content of a file: of K models, without a check that they are pairs."""

    original: str
    keys: np.ndarray
    trained: np.ndarray
    valid: np.ndarray
    inside: np.ndarray
    """bool [K, n]"""
    scores: dict[str, np.ndarray]
    """Signal to float32 [K, n]."""
    meta: Mapping[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file, by name."""
        found = {"keys": self.keys, "trained": self.trained, "valid": self.valid, "inside": self.inside}
        return found | {SCORE + name: np.asarray(values, dtype=np.float32) for name, values in self.scores.items()}


def join_halves(halves: Sequence[HalfScores]) -> ReferenceBank:
    """Join the models of a bank, in the order of their pairs.

    Raises:
        EffaceError: They are not of the same original, examples and settings, or are not complementary.

    """
    first = halves[0]
    for one in halves[1:]:
        same = one.original == first.original and np.array_equal(one.keys, first.keys)
        if not same or dict(one.meta) != dict(first.meta) or set(one.scores) != set(first.scores):
            raise EffaceError(
                f"The models of a {WHAT} do not belong together.",
                "They were made for different originals, examples or settings.",
                BANK_REMEDY,
            )
    scores = {name: np.stack([one.scores[name] for one in halves]) for name in first.scores}
    inside = np.stack([one.inside for one in halves])
    return ReferenceBank(first.original, first.keys, first.trained, inside, scores, first.valid, first.meta)


def save_bank(bank: ReferenceBank, path: Path) -> None:
    """Write a bank as one file."""
    held = StoredScores(bank.original, bank.keys, bank.trained, bank.valid, bank.inside, bank.scores, bank.meta)
    _save(path, held)


def load_bank(path: Path) -> ReferenceBank:
    """Read a bank from its file or from the folder that holds it.

    Raises:
        EffaceError: There is none, it is damaged, or it was edited.

    """
    path = Path(path)
    file = path / BANK_FILE if path.is_dir() else path
    if not file.is_file():
        raise EffaceError(
            f"There is no {WHAT} at {path}.",
            "A bank that is not complete yet has no bank.npz." if path.is_dir() else "",
            "Make it, or finish it, with `efface references RUN --bank 8 --out DIR`.",
        )
    held = _load(file)
    return ReferenceBank(held.original, held.keys, held.trained, held.inside, held.scores, held.valid, held.meta)


def _save(path: Path, held: StoredScores) -> None:
    arrays = held.arrays()
    header = {
        "format": BANK_FORMAT,
        "original": held.original,
        "digest": arrays_digest([held.original, dict(held.meta)], arrays),
        "models": len(held.inside),
        "meta": dict(held.meta),
        "signals": list(held.scores),
    }
    with atomic_path(path) as fresh, open(fresh, "wb") as file:
        np.savez(file, __header__=np.array(json.dumps(header)), **arrays)  # pyright: ignore[reportArgumentType]


def _load(path: Path) -> StoredScores:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
                raise ValueError("its arrays claim more bytes than the file has")  # noqa: TRY301
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = parse_json(str(arrays.pop("__header__")))
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds of errors for a damaged file
        why = f"It is damaged, or another kind of file: {error}"
        raise EffaceError(f"{path} cannot be read as a {WHAT}.", why, BANK_REMEDY) from error
    stored = parse_record(StoredBankHeader, header, f"{path} (__header__)", f"header of a {WHAT}", BANK_REMEDY)
    if arrays_digest([stored.original, dict(stored.meta)], arrays) != stored.digest:
        raise EffaceError(
            f"{path} is not the {WHAT} that was made.",
            "It was edited: its content does not match its digest.",
            BANK_REMEDY,
        )
    problem = _find_problem(arrays, stored)
    if problem:
        raise EffaceError(f"{path} does not hold a {WHAT}: {problem}.", "It is damaged.", BANK_REMEDY)
    scores = {name.removeprefix(SCORE): value for name, value in arrays.items() if name.startswith(SCORE)}
    named = {name: arrays[name] for name in ("keys", "trained", "valid", "inside")}
    return StoredScores(stored.original, scores=scores, meta=stored.meta, **named)


def _find_problem(arrays: Mapping[str, np.ndarray], stored: StoredBankHeader) -> str | None:
    named = {"keys", "trained", "valid", "inside"} | {SCORE + name for name in stored.signals}
    if set(arrays) != named or not stored.signals:
        return "an array is missing, or is too many"
    keys, trained, inside = arrays["keys"], arrays["trained"], arrays["inside"]
    if keys.dtype.kind != "U" or keys.ndim != 1 or len(np.unique(keys)) < len(keys):
        return "its keys are not different texts"
    shape = (stored.models, len(keys))
    flags = (trained, arrays["valid"])
    if (
        any(one.dtype != bool or one.shape != shape[1:] for one in flags)
        or inside.dtype != bool
        or inside.shape != shape
    ):
        return "who trained which model does not fit the keys"
    for name in stored.signals:
        values = arrays[SCORE + name]
        if values.dtype != np.float32 or values.shape != shape or np.isinf(values).any():
            return f"the scores of {name} are not numbers of shape {shape}"
    return None
