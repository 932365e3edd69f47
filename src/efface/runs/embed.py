"""Write embeddings for a search index, from a run folder or a foreign checkpoint, with the keys of the images.

Images that a run has forgotten are left out, those of earlier requests too, and exact copies of them under other keys.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from efface.auditing.compatibility import Compatibility, compare_embeddings
from efface.data.dataset import Data, shuffle_by_key
from efface.data.selectors import resolve_selector
from efface.data.split import EARLIER, read_split
from efface.errors import EffaceError
from efface.files import REQUEST, SPLIT, disk_errors, hold_lock, make_folder
from efface.interop.load import load_checkpoint
from efface.runs.data_at_hand import describe_changes
from efface.runs.embedding_data import load_embedding_data
from efface.runs.foreign import is_foreign
from efface.runs.lineage import find_source, walk_back
from efface.runs.ownership import RUN_REMEDY, input_paths, require_apart
from efface.runs.remaining import count_rows
from efface.runs.requests import CompatibilityRequest, EmbeddingOptions, EmbeddingSpace, EmbedRequest
from efface.runs.run import Progress, RunFolders
from efface.training.checkpoint import META, Checkpoint, read_meta
from efface.training.devices import resolve_device
from efface.training.model import Model
from efface.training.sharded_model import combine_parts

FORMATS = (".npz", ".npy")
ARRAYS = ("embeddings", "keys", "model", "space")
"""The arrays in a .npz."""


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
            z = z if self.options.space is EmbeddingSpace.BACKBONE else self.model.project(z)
            yield combine_parts(z, self.model, self.options.combine).float().cpu().numpy()


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
    """Keys that a run and those of its ancestors whose folders still exist were asked to forget.

    They include examples that were asked for, or are of a forgotten group, but were never trained on.
    """
    found: set[str] = set()
    folders = RunFolders()
    for one in walk_back(folders.read(run), folders):
        stored = read_split(one.folder) if (one.folder / SPLIT).is_file() else {"parts": {"forget": ()}}
        parts = stored["parts"]
        found |= {*parts["forget"], *parts.get(EARLIER, ()), *(stored.get("provenance") or {}).get("skipped", ())}
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
    _targets(out, force)
    require_apart(out, [path if path.is_file() else None, *input_paths(request.data, without)])
    data, notes = load_embedding_data(path, request)
    for note in notes:
        progress.say(note)
    encoder = open_encoder(path, data, request)
    named = set() if everything else encoder.forgotten & set(data.keys.tolist())
    if without:
        named |= set(data.keys[resolve_selector(data, np.arange(len(data)), {}, without, 0).positions].tolist())
    excluded = np.isin(data.keys, list(named)) if named else np.zeros(len(data), bool)
    copied = _copies(data, excluded)
    positions = np.flatnonzero(~(excluded | copied))
    if not len(positions):
        raise EffaceError(f"Nothing of {data.name} is left to embed.", f"All {len(data)} images were forgotten.")
    for sentence in describe_changes(path, data, positions):
        progress.say(sentence)
    progress.say(f"Embedding {len(positions)} images")
    digest, keys, space = encoder.model.digest(), data.keys[positions], str(encoder.options.space)
    busy = EffaceError(f"{out} is being written by another process.", remedy="Wait, or choose another --out.")
    make_folder(out.parent)
    with disk_errors(out), hold_lock(out, busy):
        cut = _placing(out).is_dir()
        _finish_placing(out)
        _targets(out, force or cut)  # what a cut call has put there is replaced
        rows = count_rows(encoder.embed(data, positions), len(positions), progress.status)
        extra = {"keys": keys, "model": np.array(digest), "space": np.array(space)}
        width, key_file = _write_vectors(out, rows, keys, extra)
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
    data, notes = load_embedding_data(new, request)
    for note in notes:
        progress.say(note)
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
    count = len(kept), progress.status
    before, after = (np.concatenate([*count_rows(one.embed(data, kept), *count)]) for one in (first, second))
    return compare_embeddings(before, after, request.rule), int(excluded.sum())


def _shared_recipe(new: Path, old: Path) -> dict[str, Any]:
    """The recipe of a run that was made from the foreign checkpoint ``old``: both have the same architecture."""
    if not (new / REQUEST).is_file():
        return {}
    run = RunFolders().read(new) if (new / META).is_file() else None
    source = run and find_source(run)
    return run.meta["recipe"] if run and source and source.resolve() == old.resolve() else {}


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
    targets = [out] if out.suffix == ".npz" else [out, *_key_files(out)]
    existing = [one for one in targets if one.exists()]
    if existing and not force and not _placing(out).is_dir():
        raise EffaceError(
            f"{existing[0]} exists already.",
            "Existing files are replaced only on request.",
            "Choose another --out, or add --force.",
        )
    reason = why_not_vectors(out) if out.exists() and not _placing(out).is_dir() else ""
    if reason:
        raise EffaceError(f"--force does not replace {out}: it does not hold embeddings.", reason, RUN_REMEDY)
    return targets


def why_not_vectors(path: Path) -> str:
    """Why a file is none that :func:`embed_checkpoint` wrote; an empty string if it is one."""
    if path.is_symlink() or not path.is_file():
        return "It is a link or a folder."
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as file:
                names = {*file.namelist()}
            return "" if names == {f"{name}.npy" for name in ARRAYS} else f"It holds {', '.join(sorted(names)[:4])}."
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return str(error)
    if len(shape) != 2 or kind != np.float32:
        return f"It is an array of {kind}, with {len(shape)} axes."
    return "" if any(one.is_file() for one in _key_files(path)) else "There is no file of keys beside it."


def _key_files(out: Path) -> tuple[Path, Path]:
    return out.with_suffix(".keys.txt"), out.with_suffix(".keys.csv")


def _placing(out: Path) -> Path:
    """The folder in which files are complete and wait to be moved to their places."""
    return out.with_name(f".{out.name}.placing")


def _write_vectors(
    out: Path, rows: Iterator[np.ndarray], keys: np.ndarray, extra: Mapping[str, np.ndarray]
) -> tuple[int, Path]:
    """Write embeddings and keys beside their places, then move both there; returns the width and the file of keys.

    A cut leaves the old files, or the folder :func:`_placing`, with which the next call finishes the move.
    """
    partial = out.with_name(f".{out.name}.partial")
    _clear(partial, out)
    partial.mkdir()
    try:
        fresh = partial / out.name
        if out.suffix == ".npz":
            width, key_file = _zip(fresh, rows, len(keys), extra), out
        else:
            with fresh.open("wb") as file:
                width = _stream(file, rows, len(keys))
            key_file = out.with_name(_write_keys(fresh, keys).name)
        partial.rename(_placing(out))
    except BaseException:
        _clear(partial, out)
        raise
    _finish_placing(out)
    return width, key_file


def _finish_placing(out: Path) -> None:
    """Move complete files to their places, also those of a call that was cut while it did so."""
    placing = _placing(out)
    if not placing.is_dir():
        return
    if out.suffix != ".npz" and any((placing / one.name).exists() for one in _key_files(out)):  # nothing moved yet
        for old in (out, *_key_files(out)):
            old.unlink(missing_ok=True)  # never keys of one file beside the rows of another
    for item in sorted(placing.iterdir(), key=lambda one: one.name == out.name):  # the embeddings last
        item.rename(out.with_name(item.name))
    placing.rmdir()


def _clear(folder: Path, out: Path) -> None:
    """Remove the folder of a call that was cut; one that holds anything else raises."""
    if not folder.is_dir():
        return
    ours = [one.name for one in (out, *_key_files(out))]
    others = [item.name for item in folder.iterdir() if item.name not in ours]
    if others:
        raise EffaceError(f"{folder} is in the way.", f"It holds {others[0]}.", "Move it, or choose another --out.")
    for item in folder.iterdir():
        item.unlink()
    folder.rmdir()


def _stream(file: IO[bytes], batches: Iterator[np.ndarray], count: int) -> int:
    """Write batches as one float32 .npy, [count, d], one after the other; returns d."""
    width = 0
    for rows in batches:
        if not width:
            width = rows.shape[1]
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, width)})
        file.write(np.ascontiguousarray(rows, np.float32).tobytes())
    return width


def _zip(path: Path, rows: Iterator[np.ndarray], count: int, arrays: Mapping[str, np.ndarray]) -> int:
    """Write batches and further arrays as one .npz; returns the width of the embeddings."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        with file.open("embeddings.npy", "w", force_zip64=True) as entry:
            width = _stream(entry, rows, count)
        for name, value in arrays.items():
            with file.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, value, allow_pickle=False)
    return width


def _write_keys(out: Path, keys: np.ndarray) -> Path:
    """Write the keys beside a .npy: one per line, or as CSV if a key contains a line break."""
    broken = any(key.splitlines() != [key] for key in keys.tolist())
    text, table = _key_files(out)
    path = table if broken else text
    with path.open("w", encoding="utf-8", newline="") as file:
        if broken:
            csv.writer(file).writerows([["key"], *([key] for key in keys.tolist())])
        else:
            file.writelines(f"{key}\n" for key in keys.tolist())
    return path
