"""Write embeddings for a search index, from a run folder or a foreign checkpoint, with the keys of the images.

Images that a run has forgotten are left out: those of its request and of earlier ones, and exact copies of them under
other keys. Embeddings are streamed to disk, so memory grows only with the number of keys.
"""

from __future__ import annotations

import csv
import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.auditing.compatibility import Compatibility, compare_embeddings
from efface.data.dataset import Data, shuffle_by_key
from efface.data.selectors import resolve_selector
from efface.data.split import EARLIER, read_split
from efface.errors import EffaceError
from efface.files import REQUEST, SPLIT, disk_errors
from efface.interop.load import load_checkpoint
from efface.runs.folder import read_request
from efface.runs.foreign import is_foreign
from efface.runs.lineage import find_source, walk_back
from efface.runs.requests import CompatibilityRequest, EmbeddingOptions, EmbeddingSpace, EmbedRequest
from efface.runs.run import Progress, RunFolders, load_data
from efface.training.checkpoint import META, Checkpoint, read_meta
from efface.training.devices import resolve_device
from efface.training.model import Model

FORMATS = (".npz", ".npy")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A model that embeds images, and the keys that it was asked to forget."""

    model: Model
    options: EmbeddingOptions
    forgotten: frozenset[str] = frozenset()
    """Keys that its run, or an ancestor of it, was asked to forget."""

    @torch.no_grad()
    def embed(self, data: Data, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Yield unnormalized embeddings of images without augmentation, float32 [b, d], batch by batch."""
        self.model.eval()
        device = self.model.mean.device
        for start in range(0, len(positions), self.options.batch_size):
            rows = positions[start : start + self.options.batch_size]
            x = torch.from_numpy(np.ascontiguousarray(data.x[rows])).to(device).float().div_(255)
            z = self.model.features(x)
            yield (z if self.options.space is EmbeddingSpace.BACKBONE else self.model.project(z)).float().cpu().numpy()


@dataclass(frozen=True)
class EmbeddingFile:
    """The file of embeddings that was written."""

    path: str
    keys: str
    """The file of keys: the same file for .npz."""
    rows: int
    width: int
    forgotten: int
    """Number of images left out because their keys were to be forgotten, or were named by the user."""
    copies: int
    """Number of images left out because they are exact copies of these under other keys."""
    model: str
    """Digest of the weights."""
    space: str


def open_encoder(path: Path, data: Data, request: EmbedRequest | Mapping[str, Any]) -> Encoder:
    """Open the encoder of a run folder or of a foreign checkpoint, for these images.

    A file in a run's ``foreign/`` folder belongs to that run: it has the run's recipe and forgotten keys. A foreign
    checkpoint needs a head only for embeddings of the projector.

    Args:
        path: The run folder or checkpoint.
        data: The images to embed.
        request: An :class:`EmbedRequest`, or a mapping with its fields.

    Raises:
        EffaceError: There is no checkpoint, it does not fit the images, or it has no projector.

    """
    path, request = Path(path), EmbedRequest.of(request)
    if not path.exists():
        raise EffaceError(f"There is no checkpoint at {path}.", remedy="Check the path.")
    if (path / META).exists() or not is_foreign(path):
        checkpoint = Checkpoint.load(path)
        _require_fit(path, checkpoint, data)
        return _encoder(path, checkpoint.model, request, forgotten_by(path))
    run = path.parent.parent if path.parent.name == "foreign" and (path.parent.parent / META).is_file() else None
    recipe = read_meta(run)["recipe"] if run is not None and not request.recipe else request.recipe
    loaded = load_checkpoint(
        path, data, objective=request.objective or None, recipe=recipe,
        backbone_only=request.space is EmbeddingSpace.BACKBONE, trust_pickle=request.consent.covers(path, named=True),
    )  # fmt: skip
    return _encoder(path, loaded.model, request, frozenset() if run is None else forgotten_by(run))


def forgotten_by(run: Path) -> frozenset[str]:
    """Keys that a run and those of its ancestors whose folders still exist were asked to forget."""
    found: set[str] = set()
    folders = RunFolders()
    for one in walk_back(folders.read(run), folders):
        parts = read_split(one.folder)["parts"] if (one.folder / SPLIT).is_file() else {"forget": ()}
        found |= {*parts["forget"], *parts.get(EARLIER, ())}
    return frozenset(found)


def embed_checkpoint(
    path: Path,
    out: Path,
    request: EmbedRequest | Mapping[str, Any],
    *,
    everything: bool = False,
    without: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> EmbeddingFile:
    """Write the embeddings of a data set with their keys.

    Args:
        path: A run folder, or another library's checkpoint.
        out: A ``.npz``, or a ``.npy`` that gets a file of keys beside it.
        request: An :class:`EmbedRequest`, or a mapping with its fields: data, space, recipe, objective, trust_pickle,
            device, batch_size.
        everything: Include images that the run has forgotten.
        without: Selector of further images to leave out.
        force: Replace ``out`` if it exists.
        progress: Receives progress messages.

    Example:
        >>> embed_checkpoint(Path("runs/forgotten"), Path("index.npz"), {}).rows  # doctest: +SKIP

    """
    progress, path, out, request = progress or Progress(), Path(path), Path(out), EmbedRequest.of(request)
    targets = _targets(out, force)
    data = _data(path, request)
    encoder = open_encoder(path, data, request)
    named = set() if everything else encoder.forgotten & set(data.keys.tolist())
    if without:
        named |= set(data.keys[resolve_selector(data, np.arange(len(data)), {}, without, 0).positions].tolist())
    excluded = np.isin(data.keys, list(named)) if named else np.zeros(len(data), bool)
    copied = _copies(data, excluded)
    positions = np.flatnonzero(~(excluded | copied))
    if not len(positions):
        raise EffaceError(f"Nothing of {data.name} is left to embed.", f"All {len(data)} images were forgotten.")
    progress.say(f"Embedding {len(positions)} images")
    digest, keys, space = encoder.model.digest(), data.keys[positions], str(encoder.options.space)
    partial = out.with_name(f".{out.name}.partial.npy")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            width = _stream(partial, encoder.embed(data, positions), len(positions))
            if out.suffix == ".npz":
                _zip(out, partial, {"keys": keys, "model": np.array(digest), "space": np.array(space)})
                key_file = out
            else:
                for old in targets:
                    old.unlink(missing_ok=True)  # never keys of one file beside the rows of another
                key_file = _write_keys(out, keys)
                os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    left_out = int(excluded.sum()), int(copied.sum())
    return EmbeddingFile(str(out), str(key_file), len(keys), width, *left_out, digest, space)


def check_compatibility(
    old: Path,
    new: Path,
    request: CompatibilityRequest | Mapping[str, Any],
    *,
    progress: Progress | None = None,
) -> tuple[Compatibility, int]:
    """Check whether stored embeddings of the encoder ``old`` can be used with the encoder ``new``.

    Args:
        old: Run folder or checkpoint of the encoder before unlearning.
        new: Run folder or checkpoint of the encoder after unlearning.
        request: A :class:`CompatibilityRequest`, or a mapping with its fields: those of :func:`embed_checkpoint`, and
            ``rule``.
        progress: Receives progress messages.

    Returns:
        The comparison, and the number of images that ``new`` has forgotten; these take no part in it.

    """
    progress, request = progress or Progress(), CompatibilityRequest.of(request)
    data = _data(new, request)
    second = open_encoder(Path(new), data, request)
    old_request = request
    if is_foreign(Path(old)) and not request.recipe:
        old_request = replace(request, recipe=_shared_recipe(Path(new), Path(old)))
    first = open_encoder(Path(old), data, old_request)
    excluded = np.isin(data.keys, list(second.forgotten)) if second.forgotten else np.zeros(len(data), bool)
    kept = np.flatnonzero(~excluded)
    kept = kept[shuffle_by_key(data.keys[kept], None, 0, "compat")[: request.rule.rows]]
    progress.say(f"Embedding {len(kept)} images twice")
    if not len(kept):
        raise EffaceError(f"Nothing of {data.name} is left to compare.", "All of it was forgotten.")
    before, after = (np.concatenate([*one.embed(data, kept)]) for one in (first, second))
    return compare_embeddings(before, after, request.rule), int(excluded.sum())


def _shared_recipe(new: Path, old: Path) -> dict[str, Any]:
    """The recipe of a run that was made from the foreign checkpoint ``old``: both have the same architecture."""
    if not (new / REQUEST).is_file():
        return {}
    run = RunFolders().read(new) if (new / META).is_file() else None
    source = run and find_source(run)
    return run.meta["recipe"] if run and source and source.resolve() == old.resolve() else {}


def _data(path: Path, request: EmbedRequest) -> Data:
    """The data of the request, else those of the run."""
    if not request.data and (Path(path) / REQUEST).is_file():
        return load_data(read_request(Path(path)))
    return load_data({"data": request.data})


def _require_fit(path: Path, checkpoint: Checkpoint, data: Data) -> None:
    recipe = checkpoint.recipe
    if (recipe.channels, *recipe.size) != data.shape:
        raise EffaceError(
            f"{path} takes images of {recipe.channels}x{recipe.size[0]}x{recipe.size[1]}, and those of "
            f"{data.name} are {'x'.join(map(str, data.shape))}.",
            remedy=f"Set data.size={recipe.size[0]} or data.channels={recipe.channels}, where the data has them.",
        )


def _encoder(path: Path, model: Model, options: EmbeddingOptions, forgotten: frozenset[str]) -> Encoder:
    if options.space is EmbeddingSpace.PROJECTOR and model.objective.needs_labels:
        raise EffaceError(
            f"{path} is a classifier: it has no projector.", remedy="Leave out --space, or set it to backbone."
        )
    return Encoder(model.to(resolve_device(options.device)), options, forgotten)


def _copies(data: Data, excluded: np.ndarray) -> np.ndarray:
    """Which other images have exactly the pixels of an excluded one, bool [N]."""
    found = np.zeros(len(data), bool)
    if excluded.any():
        known = {_pixels(data, int(row)) for row in np.flatnonzero(excluded)}
        for row in np.flatnonzero(~excluded):
            found[row] = _pixels(data, int(row)) in known
    return found


def _pixels(data: Data, row: int) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(data.x[row]).tobytes(), digest_size=16).digest()


def _targets(out: Path, force: bool) -> list[Path]:
    """The files that may be written; an error for another format, or if one exists and is not to be replaced."""
    if out.suffix not in FORMATS:
        raise EffaceError(f"Embeddings cannot be written to {out}.", "They are written to .npz or .npy files.")
    targets = [out] if out.suffix == ".npz" else [out, out.with_suffix(".keys.txt"), out.with_suffix(".keys.csv")]
    existing = [one for one in targets if one.exists()]
    if existing and not force:
        raise EffaceError(
            f"{existing[0]} exists already.",
            "Existing files are replaced only on request.",
            "Choose another --out, or add --force.",
        )
    return targets


def _stream(path: Path, batches: Iterator[np.ndarray], count: int) -> int:
    """Write batches to one float32 .npy file, [count, d]; returns d."""
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


def _write_keys(out: Path, keys: np.ndarray) -> Path:
    """Write the keys beside a .npy: one per line, or as CSV if a key contains a line break."""
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
