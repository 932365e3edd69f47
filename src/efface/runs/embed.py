"""Embeddings for an index: by a run folder or a foreign checkpoint, streamed to a file with their keys.

What a run has forgotten is left out: its keys, those of the requests before it, and exact copies of these images under
other keys. Memory does not grow with the number of images, beyond their keys.
"""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface import config
from efface.auditing.compatibility import Compatibility, CompatibilityCriteria, compare_embeddings
from efface.data.dataset import Data, shuffle_by_key
from efface.data.selectors import resolve_selector
from efface.data.split import EARLIER, read_split
from efface.errors import EffaceError
from efface.files import REQUEST, SPLIT, disk_errors
from efface.interop import checkpoint_file
from efface.interop.recipe import load_foreign_model
from efface.runs import foreign as runs_foreign
from efface.runs import run as runs_run
from efface.runs.folder import read_request
from efface.runs.run import Progress
from efface.training.checkpoint import META, Checkpoint, read_meta
from efface.training.loop import resolve_device
from efface.training.model import Model

SETTINGS = {"data", "recipe", "objective", "trust_pickle", "space", "device", "batch_size"}
FORMATS = (".npz", ".npy")


class EmbeddingSpace(StrEnum):
    """Which embedding."""

    BACKBONE = "backbone"
    PROJECTOR = "projector"


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """How images are embedded."""

    space: EmbeddingSpace = EmbeddingSpace.BACKBONE
    """The backbone's features, or the projector's embedding of them."""
    batch_size: int = 64
    """Images embedded together; changes nothing but speed and memory."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``mps``."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise EffaceError(f"batch_size cannot be {self.batch_size}.", "It counts images: 1, 2, 3 ...")

    @staticmethod
    def from_settings(settings: Mapping[str, Any]) -> EmbeddingOptions:
        """From a verb's settings."""
        return config.build(
            EmbeddingOptions, {key: settings[key] for key in EmbeddingOptions.__dataclass_fields__ if key in settings}
        )


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model that embeds, and whom it has forgotten."""

    model: Model
    how: EmbeddingOptions
    forgotten: frozenset[str] = frozenset()
    """Keys that its run, or one that it was made from, was asked to forget."""

    @torch.no_grad()
    def embed(self, data: Data, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Un-normalized embeddings of un-augmented images, float32 [b, d], batch by batch."""
        self.model.eval()
        device = self.model.mean.device
        for start in range(0, len(positions), self.how.batch_size):
            rows = positions[start : start + self.how.batch_size]
            x = torch.from_numpy(np.ascontiguousarray(data.x[rows])).to(device).float().div_(255)
            z = self.model.features(x)
            yield (z if self.how.space is EmbeddingSpace.BACKBONE else self.model.project(z)).float().cpu().numpy()


@dataclass(frozen=True)
class EmbeddingFile:
    """What was written."""

    path: str
    keys: str
    """Where the keys are: the same file for .npz."""
    rows: int
    width: int
    forgotten: int
    """Rows left out because their keys were to be forgotten."""
    copies: int
    """Rows left out because they are exact copies of forgotten images under other keys."""
    model: str
    """Digest of the weights."""
    space: str


def open_encoder(path: Path, data: Data, settings: Mapping[str, Any]) -> Encoder:
    """A run folder's or a foreign checkpoint's encoder for these images.

    A file that a run has written (``RUN/foreign/...``) is the run's: same recipe, same forgotten keys. Of any other
    foreign checkpoint the backbone needs no head; the projector does.
    """
    path, how = Path(path), EmbeddingOptions.from_settings(settings)
    if not path.exists():
        raise EffaceError(f"There is no checkpoint at {path}.", remedy="Check the path.")
    if (path / META).exists() or not runs_foreign.is_foreign(path):
        checkpoint = Checkpoint.load(path)
        _fits(path, checkpoint, data)
        return _encoder(path, checkpoint.model, how, forgotten_by(path))
    run = path.parent.parent if path.parent.name == "foreign" and (path.parent.parent / META).is_file() else None
    given = {key: settings[key] for key in ("recipe", "objective") if settings.get(key)}
    if run is not None and "recipe" not in given:
        given["recipe"] = read_meta(run)["recipe"]
    file = checkpoint_file.read_foreign(path, trust_pickle=bool(settings.get("trust_pickle")))
    model = load_foreign_model(file, data, given, backbone_alone=how.space is EmbeddingSpace.BACKBONE)
    return _encoder(path, model, how, frozenset() if run is None else forgotten_by(run))


def forgotten_by(run: Path) -> frozenset[str]:
    """Keys that a run folder, or one that it was made from and can still be found, was asked to forget."""
    found: set[str] = set()
    here: Path | None = Path(run)
    while here is not None and (here / SPLIT).is_file():
        parts = read_split(here)["parts"]
        found |= {*parts["forget"], *parts.get(EARLIER, ())}
        request = read_request(here) if (here / REQUEST).is_file() else {}
        here = Path(request["from"]) if request.get("from") else None
    return frozenset(found)


def embed_checkpoint(
    path: Path,
    out: Path,
    settings: Mapping[str, Any],
    *,
    everything: bool = False,
    without: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> EmbeddingFile:
    """Write embeddings and keys of a data set. ``settings``: data, space, recipe, objective, trust_pickle,
    device, batch_size.

    ``everything``: the forgotten too. ``without``: a selector of further rows to leave out.
    """
    progress, out = progress or Progress(), Path(out)
    runs_run.refuse_unknown(settings, SETTINGS)
    targets = _targets(out, force)
    data = _data(path, settings)
    encoder = open_encoder(Path(path), data, settings)
    named = set() if everything else encoder.forgotten & set(data.keys.tolist())
    if without:
        named |= set(data.keys[resolve_selector(data, np.arange(len(data)), {}, without, 0).positions].tolist())
    gone = np.isin(data.keys, list(named)) if named else np.zeros(len(data), bool)
    copied = _copies(data, gone)
    positions = np.flatnonzero(~(gone | copied))
    if not len(positions):
        raise EffaceError(f"Nothing of {data.name} is left to embed.", f"All {len(data)} images were forgotten.")
    progress.say(f"Embedding {len(positions)} images")
    digest, keys = encoder.model.digest(), data.keys[positions]
    half = out.with_name(f".{out.name}.partial.npy")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            width = _stream(half, encoder.embed(data, positions), len(positions))
            if out.suffix == ".npz":
                _zip(out, half, {"keys": keys, "model": np.array(digest), "space": np.array(str(encoder.how.space))})
                listed = out
            else:
                for old in targets:
                    old.unlink(missing_ok=True)  # never keys of one file beside the rows of another
                listed = _list(out, keys)
                os.replace(half, out)
        finally:
            half.unlink(missing_ok=True)
    left = int(gone.sum()), int(copied.sum())
    return EmbeddingFile(str(out), str(listed), len(keys), width, *left, digest, str(encoder.how.space))


def check_compatibility(
    old: Path,
    new: Path,
    settings: Mapping[str, Any],
    *,
    progress: Progress | None = None,
) -> tuple[Compatibility, int]:
    """Compare two encoders on a data set, and count the images of it that the new one has forgotten.

    ``settings``: those of :func:`embed`, and ``rule``. Forgotten images take no part in the comparison.
    """
    progress = progress or Progress()
    runs_run.refuse_unknown(settings, SETTINGS | {"rule"})
    rule = config.build(CompatibilityCriteria, settings.get("rule") or {}, path="rule.")
    data = _data(new, settings)
    second = open_encoder(Path(new), data, settings)
    told = dict(settings)
    if runs_foreign.is_foreign(Path(old)) and not settings.get("recipe"):
        told |= _shape_of(Path(new), Path(old))
    first = open_encoder(Path(old), data, told)
    gone = np.isin(data.keys, list(second.forgotten)) if second.forgotten else np.zeros(len(data), bool)
    kept = np.flatnonzero(~gone)
    kept = kept[shuffle_by_key(data.keys[kept], None, 0, "compat")[: rule.rows]]
    progress.say(f"Embedding {len(kept)} images twice")
    if not len(kept):
        raise EffaceError(f"Nothing of {data.name} is left to compare.", "All of it was forgotten.")
    before, after = (np.concatenate([*one.embed(data, kept)]) for one in (first, second))
    return compare_embeddings(before, after, rule), int(gone.sum())


def _shape_of(new: Path, old: Path) -> dict[str, Any]:
    """The recipe of a run that was made from the foreign checkpoint ``old``: its shape is the same."""
    if not (new / REQUEST).is_file():
        return {}
    source = read_request(new).get("from")
    return {"recipe": read_meta(new)["recipe"]} if source and Path(source) == old.resolve() else {}


def _data(path: Path, settings: Mapping[str, Any]) -> Data:
    """The data that were named, else those of the run."""
    if settings.get("data"):
        return runs_run.load_data(settings)
    if (Path(path) / REQUEST).is_file():
        return runs_run.load_data(read_request(Path(path)))
    return runs_run.load_data(settings)  # says that nothing was said about the data


def _fits(path: Path, checkpoint: Checkpoint, data: Data) -> None:
    recipe = checkpoint.recipe
    if (recipe.channels, *recipe.size) != data.shape:
        raise EffaceError(
            f"{path} looks at images of {recipe.channels}x{recipe.size[0]}x{recipe.size[1]}, and those of "
            f"{data.name} are {'x'.join(map(str, data.shape))}.",
            remedy=f"Set data.size={recipe.size[0]} or data.channels={recipe.channels}, where the data has them.",
        )


def _encoder(path: Path, model: Model, how: EmbeddingOptions, forgotten: frozenset[str]) -> Encoder:
    if how.space is EmbeddingSpace.PROJECTOR and model.objective.needs_labels:
        raise EffaceError(
            f"{path} is a classifier: it has no projector.", remedy="Leave out --space, or set it to backbone."
        )
    return Encoder(model.to(resolve_device(how.device)), how, forgotten)


def _copies(data: Data, gone: np.ndarray) -> np.ndarray:
    """Which other images have the very pixels of those that are gone, bool [N]."""
    found = np.zeros(len(data), bool)
    if gone.any():
        known = {_pixels(data, int(row)) for row in np.flatnonzero(gone)}
        for row in np.flatnonzero(~gone):
            found[row] = _pixels(data, int(row)) in known
    return found


def _pixels(data: Data, row: int) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(data.x[row]).tobytes(), digest_size=16).digest()


def _targets(out: Path, force: bool) -> list[Path]:
    """The files that would be written; an error for another kind, or if one exists and is not to be replaced."""
    if out.suffix not in FORMATS:
        raise EffaceError(f"{out} is not a kind of file that embeddings are written to.", "They go to .npz or .npy.")
    targets = [out] if out.suffix == ".npz" else [out, out.with_suffix(".keys.txt"), out.with_suffix(".keys.csv")]
    there = [one for one in targets if one.exists()]
    if there and not force:
        raise EffaceError(
            f"{there[0]} exists already.", "Nothing is overwritten unasked.", "Choose another --out, or add --force."
        )
    return targets


def _stream(path: Path, batches: Iterator[np.ndarray], count: int) -> int:
    """Write batches into one float32 .npy file, [count, d]; d."""
    into: np.ndarray | None = None
    start = 0
    for rows in batches:
        if into is None:
            into = np.lib.format.open_memmap(path, "w+", np.float32, (count, rows.shape[1]))
        into[start : start + len(rows)] = rows
        start += len(rows)
    assert into is not None
    into.flush()  # pyright: ignore[reportAttributeAccessIssue]
    return int(into.shape[1])


def _zip(out: Path, embeddings: Path, arrays: Mapping[str, np.ndarray]) -> None:
    fresh = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
            file.write(embeddings, "embeddings.npy")
            for name, value in arrays.items():
                with file.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, value, allow_pickle=False)
        os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)


def _list(out: Path, keys: np.ndarray) -> Path:
    """Keys beside a .npy: one a line, or a CSV where a key has a line break."""
    broken = any(len(key.splitlines()) != 1 for key in keys.tolist())
    path = out.with_suffix(".keys.csv" if broken else ".keys.txt")
    fresh = path.with_name(f".{path.name}.partial")
    with fresh.open("w", encoding="utf-8", newline="") as file:
        if broken:
            csv.writer(file).writerows([["key"], *([key] for key in keys.tolist())])
        else:
            file.writelines(f"{key}\n" for key in keys.tolist())
    os.replace(fresh, path)
    return path
