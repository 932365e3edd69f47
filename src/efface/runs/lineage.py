"""Find the checkpoints that a run was made from, also after the folders were moved together, and refuse circles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from efface.errors import EffaceError
from efface.files import REQUEST, parse_json
from efface.interop.containers import weights_file
from efface.runs.run import RunFolders, StoredRun
from efface.training.checkpoint import META


def find_source(run: StoredRun) -> Path | None:
    """Where the checkpoint is that a run was made from; None if the run names none.

    That is the path in its request. If nothing is there any more, it is the run beside this one whose weights have the
    digest of the parent, or a foreign checkpoint of the same name beside it; else the path in the request.
    """
    named = run.request.get("from")
    if not named:
        return None
    source = Path(str(named))
    if source.exists():
        return source
    beside = run.folder.resolve().parent
    for folder in (beside / source.name, *sorted(item for item in beside.iterdir() if item.is_dir())):
        if run.meta["parent"] and _stored_digest(folder) == run.meta["parent"]:
            return folder
    moved = beside / source.name
    return moved if not (moved / META).exists() and weights_file(moved) is not None else source


def find_original_precision(run: StoredRun, folders: RunFolders) -> bool | None:
    """Whether the original that a run goes back to was trained in bfloat16; None if nothing here says so.

    Models that stand for it are trained in its precision, whatever the machine that trains them prefers.
    """
    first = list(walk_back(run, folders))[-1]
    return first.request.get("bf16") if first.request.get("verb") == "pretrain" else None


def _stored_digest(folder: Path) -> str | None:
    try:
        found = parse_json((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found.get("digest") if isinstance(found, dict) else None


def walk_back(run: StoredRun, folders: RunFolders) -> Iterator[StoredRun]:
    """Yield a run and its ancestors, youngest first, as far back as their folders still exist.

    Raises:
        EffaceError: The lineage comes back to a folder that it has passed.

    """
    chain = [run]
    while True:
        yield chain[-1]
        source = find_source(chain[-1])
        if source is None or not (source / REQUEST).exists() or not (source / META).exists():
            return
        chain.append(folders.read(source))
        if chain[-1].folder.resolve() in [one.folder.resolve() for one in chain[:-1]]:
            raise EffaceError(
                f"The lineage of {run.folder} is a circle: {' was made from '.join(str(one.folder) for one in chain)}.",
                "A run cannot be its own ancestor: one of these folders was replaced, or its request was edited.",
                "Restore the original, or make the runs again.",
            )
