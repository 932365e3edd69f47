"""What still remembers forgotten examples: where it may be, how it is found, and how it is removed.

Each kind has a function that finds it and one that erases it. Erasing twice does no harm: what is gone stays gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.desk.derived import drop_from_head, find_derived, find_stages, rows_of_head
from efface.desk.forgotten import ForgottenIds, Remains
from efface.desk.indexes import INDEX_SUFFIXES, drop_from_index, index_ids
from efface.desk.run_ids import is_run, replace_ids, split_ids, trained_on
from efface.desk.vectors import VECTOR_SUFFIXES, drop_vectors, vector_ids
from efface.desk.views import ErasedArtefact, RequestBatch
from efface.errors import EffaceError
from efface.files import EPOCH, META, REQUEST, SPLIT

CHECKPOINT_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
LIST_SUFFIXES = (".txt", ".csv", ".json", ".jsonl")
AVERAGE_NAMES = ("ema", "swa", "momentum", "teacher", "average")
SUPERSEDED = "superseded model"
_LARGEST_LIST = 64 * 2**20


def find_in_run(run: Path, ids: ForgottenIds, blocked: str) -> Iterator[Remains]:
    """Find what a run folder of the chain holds about the forgotten.

    Args:
        run: The folder.
        ids: The forgotten.
        blocked: Why its split must keep the ids for now; empty if it need not.

    """
    for path in sorted(run.glob("*observations*.npz")):
        held = ids.among(observed_ids(path))
        if held:
            yield Remains("observations", str(path), "remove", "scores of each example", len(held))
    held = ids.among(split_ids(run)) if is_run(run) else ()
    if held:
        yield Remains("split", str(run / SPLIT), "list" if blocked else "rewrite", blocked, len(held))


def find_model(run: Path, ids: ForgottenIds, *, remove: bool, known: int = 0) -> Iterator[Remains]:
    """Find whether a superseded model was trained on the forgotten, and was not asked to forget them.

    Args:
        run: Its run folder.
        ids: The forgotten.
        remove: Remove it.
        known: On how many of them an earlier erasure found it to be trained: its split may not have their ids any more.

    """
    count = (len(ids.among(trained_on(run))) or known) if is_run(run) else 0
    if not count:
        return
    detail = "the model was trained on them"
    if not remove:
        detail += "; audits of later requests compare with it (remove it with --remove-models)"
        yield from find_stages(run, count)
    yield Remains(SUPERSEDED, str(run), "remove" if remove else "list", detail, count)


def find_unused(batch: RequestBatch, *, abandoned: bool) -> Iterator[Remains]:
    """Find the folders of a batch that are not used: unfinished, diverged, replaced, or given up."""
    folder = Path(batch.folder)
    beside = [folder.with_name(f"{folder.name}{end}") for end in (".partial", ".failed")]
    beside += sorted(folder.parent.glob(f"{folder.name}.failed-*"))
    beside += sorted(folder.parent.glob(f"{folder.name}*.replaced-*"))
    for path in [*([folder] if abandoned else []), *beside]:
        if path.is_dir():
            yield Remains("unused run", str(path), "remove", "intermediate checkpoints and lists of ids")


def find_in_place(place: Path, ids: ForgottenIds, *, remove: bool) -> Iterator[Remains]:
    """Find what remembers in a file or folder that the user named: vectors, indexes, models, heads, banks, lists."""
    if not place.exists():
        yield Remains("place", str(place), "list", "there is nothing")
        return
    if place.is_file():
        yield from _find_in_file(place, ids, remove=remove)
        return
    if (place / META).is_file() and (place / SPLIT).is_file():
        yield from _find_in_other_run(place, ids, remove=remove)
        return
    derived = find_derived(place, ids, remove=remove)
    if derived is not None:
        yield from derived
        gone = any(one.action == "remove" for one in derived)
        runs = () if gone else (one for one in sorted(place.iterdir()) if (one / META).is_file())
        for run in runs:  # models of a bank whose weights were kept
            yield from find_in_place(run, ids, remove=remove)
        return
    for item in sorted(place.iterdir()):
        if not item.is_symlink() and not item.name.endswith((".tmp", ".lock")):
            yield from find_in_place(item, ids, remove=remove)


def _find_in_other_run(run: Path, ids: ForgottenIds, *, remove: bool) -> Iterator[Remains]:
    """Find what a run outside the chain remembers; references of a plan are made again by its own command."""
    trained = ids.among(trained_on(run))
    reference = (run.parent / "plan.json").is_file() and (run.parent / "tasks.jsonl").is_file()
    if trained:
        kind = "reference" if reference else "checkpoint"
        gone = reference or remove
        detail = "trained on them" + ("" if gone else " (remove it with --remove-models)")
        yield Remains(kind, str(run), "remove" if gone else "list", detail, len(trained))
        return
    yield from find_in_run(run, ids, "the run is not of this chain")


def _find_in_file(path: Path, ids: ForgottenIds, *, remove: bool) -> Iterator[Remains]:
    name = path.name.lower()
    try:
        if path.suffix in INDEX_SUFFIXES:
            held = ids.among(index_ids(path))
            yield from _rewritten("index", path, len(held))
        elif path.suffix in CHECKPOINT_FILES or name == EPOCH:
            kind = "average" if any(word in name for word in AVERAGE_NAMES) else "checkpoint"
            detail = "nothing says what it was trained on" + ("" if remove else " (remove it with --remove-models)")
            yield Remains(kind, str(path), "remove" if remove else "list", detail)
        elif "observations" in name and path.suffix == ".npz":
            held = ids.among(observed_ids(path))
            if held:
                yield Remains("observations", str(path), "remove", "scores of each example", len(held))
        elif path.suffix in VECTOR_SUFFIXES and not name.endswith((".keys.npy", "identity.npz")):
            yield from _rewritten("vectors", path, len(ids.among(vector_ids(path))))
        elif path.suffix in LIST_SUFFIXES and ".keys" not in name and name != REQUEST:
            held = ids.among(_listed(path))
            if held:
                yield Remains("list of ids", str(path), "list", "a person has to decide about it", len(held))
    except EffaceError as error:
        yield Remains("file", str(path), "list", f"{error.what} {error.why}".strip())


def _rewritten(kind: str, path: Path, count: int) -> Iterator[Remains]:
    if count:
        yield Remains(kind, str(path), "rewrite", "rows of the forgotten", count)


def observed_ids(path: Path) -> list[str]:
    """The ids in a file of observations."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return [str(one) for name in file.files if name.endswith("/keys") for one in file[name].tolist()]
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read as observations.", str(error), "Remove it.") from error


def _listed(path: Path) -> list[str]:
    """Everything in a text file that could be an id: lines, cells, texts."""
    if path.stat().st_size > _LARGEST_LIST:
        raise EffaceError(f"{path} is larger than {_LARGEST_LIST} bytes, and was not searched.")
    text = path.read_text(encoding="utf-8", errors="replace")
    words = set(text.splitlines())
    for mark in (",", "\t", ";", '"', "'"):
        words |= {part.strip() for line in tuple(words) for part in line.split(mark)}
    return sorted(words)


def erase_remains(remains: Remains, ids: ForgottenIds) -> ErasedArtefact:
    """Do what is to be done about something that remembers; a failure is an outcome, and nothing else is lost by it."""
    if remains.action == "list":
        outcome: Any = "absent" if remains.kind == "place" else "listed"
        return ErasedArtefact(remains.kind, remains.place, outcome, remains.detail, remains.count)
    path = Path(remains.place)
    try:
        if remains.action == "remove":
            _remove(path)
            done: Any = "removed"
        else:
            if path.exists():
                REWRITERS[remains.kind](path, ids)
            done = "rewritten"
    except (EffaceError, OSError) as error:
        what = f"{error.what} {error.why}".strip() if isinstance(error, EffaceError) else str(error)
        return ErasedArtefact(remains.kind, remains.place, "failed", ids.redacted(what), remains.count)
    return ErasedArtefact(remains.kind, remains.place, done, remains.detail, remains.count)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if path.exists():
        raise EffaceError(f"{path} is still there after it was removed.")


def _rewrite_split(path: Path, ids: ForgottenIds) -> int:
    return replace_ids(path.parent, ids)


REWRITERS: dict[str, Callable[[Path, ForgottenIds], int]] = {
    "split": _rewrite_split,
    "vectors": drop_vectors,
    "index": drop_from_index,
    "head": drop_from_head,
}
"""Kind of what is written again without the forgotten to the function that does it."""


def still_holds(kind: str, place: Path, ids: ForgottenIds) -> int:
    """How many forgotten ids something that was written again holds: none, unless a backup brought it back."""
    if kind == "head":
        return len(rows_of_head(place, ids)) if place.is_dir() else 0
    if not place.is_file():
        return 0
    if kind == "split":
        return len(ids.among(split_ids(place.parent)))
    return len(ids.among(index_ids(place) if kind == "index" else vector_ids(place)))


def summarize(erased: Sequence[ErasedArtefact]) -> dict[str, int]:
    """How many artefacts have each outcome."""
    return {
        outcome: sum(one.outcome == outcome for one in erased)
        for outcome in ("removed", "rewritten", "listed", "absent", "failed")
    }
