"""Hand an unlearned model back in the layout of the file that it was made from, in every run of a chain.

The first run writes the file of the user again. Every later one takes the file that the run before it handed back as
the pattern: it has the same layout, and nothing in it remembers. Each is marked as unlearned, and its digest is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.dataset import Data
from efface.data.selectors import resolve_selector
from efface.data.split import EARLIER, Split
from efface.errors import EffaceError
from efface.files import file_digest
from efface.interop.checkpoint_file import read_foreign
from efface.interop.consent import Consent
from efface.interop.containers import weights_file
from efface.interop.export_weights import export_checkpoint
from efface.interop.safe_load import UntrustedPickleError
from efface.interop.unlearned_marker import LIST_SUFFIX, UnlearnedMarker, list_path, read_marker, write_marker
from efface.runs.lineage import find_source, walk_back
from efface.runs.run import Common, RunFolders
from efface.training.batch import Subset
from efface.training.checkpoint import META, Checkpoint
from efface.training.devices import resolve_device
from efface.training.loop import Run

FOREIGN = "foreign"
"""Folder of a run with the file in the layout of another library."""


@dataclass(frozen=True)
class Pattern:
    """The file whose layout a result is written in."""

    path: Path
    averaged: str = "copy"
    """What happens to averaged copies of the network in it."""
    trust: bool = False
    """Whether it may be unpickled."""


def find_handed_back(run: Path) -> Path | None:
    """The file or folder of weights that a run handed back; None if it handed nothing back."""
    folder = Path(run) / FOREIGN
    if not folder.is_dir():
        return None
    found = [item for item in sorted(folder.iterdir()) if not item.name.endswith(LIST_SUFFIX)]
    folders = [item for item in found if item.is_dir() and weights_file(item) is not None]
    files = [item for item in found if item.is_file() and item.suffix != ".json"]
    return next(iter([*folders, *files]), None)


def find_pattern(run: Path, consent: Consent | None = None) -> Pattern | None:
    """Find the file whose layout the model of a run has: of the run, of the nearest ancestor, or the user's own.

    Args:
        run: A run folder.
        consent: What may be unpickled, if it has to be the user's own file.

    Returns:
        The file; None if the model was never another library's, or no such file is left.

    """
    folders, oldest = RunFolders(), None
    for one in walk_back(folders.read(run), folders):
        found = find_handed_back(one.folder)
        if found is not None:
            return Pattern(found)
        oldest = one
    source = None if oldest is None else find_source(oldest)
    if source is None or (source / META).exists() or not source.exists() or weights_file(source) is None:
        return None
    trust = (consent or Consent()).covers(source, named=False)
    try:
        read_foreign(source, trust_pickle=trust)
    except UntrustedPickleError:
        return None  # `efface convert RUN --like FILE --trust-pickle` writes it
    return Pattern(source, str(oldest.request.get("averaged") or "copy") if oldest else "copy", trust)


def hand_back(
    pattern: Pattern, result: Checkpoint, data: Data, split: Split, common: Common, folder: Path
) -> Checkpoint:
    """Write an unlearned model to ``folder/foreign`` in the layout of a pattern, marked, and record its digest.

    Returns:
        The checkpoint, with a note for each part of the file that says what was done with it, and the digests.

    """
    out, run = folder / FOREIGN, Run(seed=common.seed)
    if out.exists():
        shutil.rmtree(out)  # left by an attempt that was interrupted
    out.mkdir()
    notes = write_in_layout(pattern, result, data, split.retain, common, out, run)
    file = read_foreign(pattern.path, trust_pickle=pattern.trust)
    before = read_marker(pattern.path, file.meta)
    keys = [key for part in ("forget", EARLIER) for key in split.keys(data, part)]
    keys += [str(key) for key in split.provenance.get("skipped", ())]
    written = out / pattern.path.name
    requests = 1 + (before.requests if before is not None else 0)
    notes["foreign.marker"] = write_marker(written, result.model.digest(), requests, keys)
    weights = [
        path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.endswith((".json", ".txt", ".md"))
    ]
    digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in weights}
    return replace(result, purged=result.purged | notes, handed_back=digests)


def write_in_layout(
    pattern: Pattern, result: Checkpoint, data: Data, retain: np.ndarray, common: Common, out: Path, run: Run
) -> dict[str, str]:
    """Write a model into ``out`` in the layout of a pattern; returns what was done with each part."""
    subset = Subset.of(data, retain, result.recipe.views, "retain", resolve_device(common.device))
    batches = subset.batches(256, run.rng("purge")) if len(subset) else ()
    file = read_foreign(pattern.path, trust_pickle=pattern.trust)
    file = file.with_head(result.recipe.backbone.options.get("head"))
    return export_checkpoint(file, result.model, batches, run.rng(FOREIGN), out, averaged=pattern.averaged)


def forgotten_before(path: Path, data: Data, marker: UnlearnedMarker | None, stated: Any) -> np.ndarray:
    """Positions of the examples that a checkpoint was made to forget before it came here.

    Args:
        path: The checkpoint.
        data: The data.
        marker: What it says about itself.
        stated: ``split.forgotten``: a file of keys or a selector; None if the user states nothing.

    Raises:
        EffaceError: It was unlearned before, and nothing says what it has forgotten.

    """
    known = np.zeros(0, np.int64)
    if stated is not None:
        known = resolve_selector(data, np.arange(len(data)), {}, str(stated), 0).positions
    if marker is None:
        return known
    if marker.listed is None and stated is None:
        raise EffaceError(
            f"{path} was unlearned before ({marker.requests} requests), and nothing says what it has forgotten.",
            f"Its list {list_path(path).name} is not beside it. What it has forgotten could be trained on again.",
            "Start from the run folder that handed it back, copy the list from there, or state what was forgotten: "
            "--set split.forgotten=FILE of keys.",
        )
    return np.union1d(known, np.flatnonzero(marker.forgotten(data.keys.tolist())))


def leave_out(split: Split, data: Data, positions: np.ndarray) -> Split:
    """Take examples out of every part of a split: they were trained on once, and are to be forgotten."""
    if not len(positions):
        return split
    parts: Mapping[str, Any] = {
        name: np.setdiff1d(getattr(split, name), positions) for name in ("retain", "valid", "holdout", "spare", "test")
    }
    keys = sorted(data.keys[positions].tolist())
    provenance = {**split.provenance, "skipped": keys, "before": keys}
    made = replace(split, **parts, provenance=provenance)
    return replace(made, provenance={**provenance, "sizes": made.sizes()})
