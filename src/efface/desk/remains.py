"""What still remembers forgotten examples: where it may be, how it is found, and how it is removed.

Each kind has a function that finds it and one that erases it. Erasing twice does no harm: what is gone stays gone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from efface.desk.derived import drop_from_head, find_stages, rows_of_head
from efface.desk.forgotten import ForgottenIds, Remains
from efface.desk.keyed_rows import drop_keyed, keyed_ids
from efface.desk.places import find_in_file, find_in_folder
from efface.desk.run_ids import is_run, replace_ids, split_ids, trained_on
from efface.desk.vectors import drop_vectors, vector_ids
from efface.desk.views import ErasedArtefact, RequestBatch
from efface.errors import EffaceError

SUPERSEDED = "superseded model"


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
    """Find what remembers in a file or folder that the user named, and name what was not searched.

    Args:
        place: The file or folder; a link is followed.
        ids: The forgotten.
        remove: Remove models, banks and rehearsals.

    """
    if place.is_symlink():
        place = place.resolve()  # what is written again must not take the place of the link
    if not place.exists():
        yield Remains("place", str(place), "list", "there is nothing")
    elif place.is_dir():
        yield from find_in_folder(place, place, ids, remove=remove)
    else:
        yield from find_in_file(place, ids, remove=remove, named=True)


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
    "index": drop_keyed,
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
    return len(ids.among(keyed_ids(place) if kind == "index" else vector_ids(place)))


def summarize(erased: Sequence[ErasedArtefact]) -> dict[str, int]:
    """How many artefacts have each outcome."""
    return {
        outcome: sum(one.outcome == outcome for one in erased)
        for outcome in ("removed", "rewritten", "listed", "absent", "failed")
    }
