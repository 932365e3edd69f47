"""What was derived from examples beside the runs: fitted heads, kept stages, reference banks, rehearsals.

Rows leave a head exactly. The stages of a superseded sharded run go: later requests start from the newest run's own,
and audits read none. Banks and rehearsals serve later audits as a whole, so that somebody has to decide about them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from efface.desk.forgotten import ForgottenIds, Remains
from efface.errors import EffaceError

if TYPE_CHECKING:
    from efface.runs.head_store import HeadDescription

_BY_HAND = "delete them with `efface heads delete`, or fit it again"


def find_derived(folder: Path, ids: ForgottenIds, *, remove: bool) -> list[Remains] | None:
    """What a folder remembers as a whole; None if it is no head, no bank and no rehearsals.

    Args:
        folder: A folder that the user named, or one in it.
        ids: The forgotten.
        remove: Remove banks and rehearsals.

    """
    from efface.runs.bank_plan import BANK_PLAN
    from efface.runs.head_store import HEAD_FILE
    from efface.runs.rehearsal_plan import REHEARSALS

    try:
        if (folder / HEAD_FILE).is_file():
            return list(_find_in_head(folder, ids))
        if (folder / BANK_PLAN).is_file():
            detail = "scores of them, by models of which half were trained on them"
            return list(_find_in_plan(folder, ids, "reference bank", detail, remove=remove))
        if (folder / REHEARSALS).is_file():
            detail = "scores of them, by models that were not asked to forget them"
            return list(_find_in_plan(folder, ids, "rehearsals", detail, remove=remove))
    except (EffaceError, OSError) as error:
        what = f"{error.what} {error.why}".strip() if isinstance(error, EffaceError) else str(error)
        return [Remains("folder", str(folder), "list", ids.redacted(what))]
    return None


def find_stages(run: Path, count: int) -> Iterator[Remains]:
    """Find the kept stages of a superseded model that was trained on ``count`` of the forgotten."""
    from efface.training.kept_stages import STAGE_FOLDER

    if (run / STAGE_FOLDER).is_dir():
        detail = "weights after each stage of its training; later requests do not start from them"
        yield Remains("kept stages", str(run / STAGE_FOLDER), "remove", detail, count)


def _find_in_plan(folder: Path, ids: ForgottenIds, kind: str, detail: str, *, remove: bool) -> Iterator[Remains]:
    """Find whether a bank or rehearsals hold scores of the forgotten."""
    from efface.desk.run_ids import split_ids

    held = ids.among(split_ids(folder))
    if held:
        detail += "" if remove else "; later audits use it (remove it with --remove-models)"
        yield Remains(kind, str(folder), "remove" if remove else "list", detail, len(held))


def _find_in_head(folder: Path, ids: ForgottenIds) -> Iterator[Remains]:
    from efface.runs.head_store import HeadStore

    described = HeadStore(folder).describe()
    if ids.known is None:
        yield Remains(
            "head", str(folder), "list",
            "the names of its rows are keyed, and the list of the request was erased: whether it has them is not known",
        )  # fmt: skip
        return
    held = rows_of_head(folder, ids)
    if not held:
        return
    missing = _missing_embeddings(described, held)
    if missing:
        yield Remains("head", str(folder), "list", f"{missing}: {_BY_HAND}", len(held))
    else:
        yield Remains("head", str(folder), "rewrite", "rows of the forgotten", len(held))


def rows_of_head(folder: Path, ids: ForgottenIds) -> list[str]:
    """The forgotten ids of which a head has rows; none are found once the list of the request was erased."""
    from efface.runs.head_store import HeadStore, name_digests, places_of

    store, known = HeadStore(folder), sorted(ids.known or ())
    names = places_of(store.read(store.describe(), "names"))
    digests = name_digests(known, store.secret()).tolist()
    return [key for key, digest in zip(known, digests, strict=True) if bytes(digest) in names]


def _missing_embeddings(described: HeadDescription, keys: list[str]) -> str:
    """Why rows cannot be deleted from a ridge head; empty if their embeddings are at hand, or none are needed."""
    from efface.runs.vectors import read_vectors

    if described.kind != "ridge":
        return ""
    try:
        read_vectors(Path(described.embeddings)).find(keys, described.embeddings)
    except EffaceError as error:
        return f"what would be subtracted is not at hand: {error.why or error.what}".rstrip(".")
    return ""


def drop_from_head(folder: Path, ids: ForgottenIds) -> int:
    """Delete the rows of forgotten ids from a head; the key with which its record could be linked to them goes too."""
    from efface.runs.heads import delete_rows

    held = rows_of_head(folder, ids)
    if held:
        done = delete_rows(folder, held)
        (folder / done.record).with_suffix(".key").unlink(missing_ok=True)
    if rows_of_head(folder, ids):
        raise EffaceError(f"{folder} still has rows of forgotten ids after they were deleted.")
    return len(held)
