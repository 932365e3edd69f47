"""Erase what still remembers the examples of a run that no desk knows of: the same as for a request, without a ledger.

What is intended and what became of it are in ``erasure.json`` in the run folder. The split of the run itself comes
last, since it says what to look for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from efface.data.split_parts import EARLIER, read_split
from efface.desk.erasure import add_started, count_outcomes, find_pictures, join_asked, name_asked
from efface.desk.forgotten import TOKEN, ForgottenIds, Remains
from efface.desk.private import sync
from efface.desk.remains import SUPERSEDED, erase_remains, find_in_place, find_model
from efface.desk.run_ids import data_names, find_in_run
from efface.desk.views import ErasedArtefact
from efface.errors import EffaceError
from efface.files import META, hold_lock, read_json, write_text
from efface.reporting.redaction import KEY_FILE, new_secret, read_key, write_key
from efface.schema import FirstFormat, StoredModel

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner

ERASURE = "erasure.json"
_BUNDLE, _AMENDED = ".intoto.jsonl", ".erased.intoto.jsonl"


class StoredErasure(StoredModel):
    """The content of an ``erasure.json``."""

    format: FirstFormat
    state: Literal["intended", "done"]
    places: tuple[str, ...]
    remove_models: bool = False
    found: tuple[dict[str, Any], ...]
    artefacts: tuple[dict[str, Any], ...] = ()


def erase_run(
    run: Path | str,
    *,
    places: Sequence[Path] = (),
    remove_models: bool = False,
    dry_run: bool = False,
    signer: CryptoSigner | None = None,
) -> list[ErasedArtefact]:
    """Remove or list what still remembers the examples that a run was asked to forget, and those of earlier requests.

    Args:
        run: The run folder of the model that is released.
        places: As for a request: files and folders beside the runs of its chain.
        remove_models: Remove the models that it was made from, and checkpoints of which nobody knows, too.
        dry_run: Only say what would be done.
        signer: Signs the bundles in the run folder again, with these outcomes.

    Raises:
        EffaceError: The folder is no run, or was asked to forget nothing.

    """
    folder = Path(run).absolute()
    with hold_lock(folder):
        stored, ids = _read(folder), _ids(folder, dry_run=dry_run)
        asked: dict[str, Any] = name_asked(places, remove_models=remove_models)
        cut = stored is not None and stored["state"] == "intended"
        started = [Remains(**one) for one in stored["found"]] if stored is not None and cut else []
        begun = {name: stored[name] for name in asked} if stored is not None and cut else None
        asked = asked if begun is None else join_asked(begun, asked)
        if asked == begun and not dry_run:
            found = started
        else:
            listed = () if stored is None else stored["found" if cut else "artefacts"]
            known = {one["place"]: one["count"] for one in listed if one["kind"] == SUPERSEDED}
            searched = [Path(one) for one in asked["places"]]
            found = add_started(started, list(_find(folder, ids, searched, known, remove=asked["remove_models"])))
        if dry_run:
            words: Any = {"remove": "removed", "rewrite": "rewritten", "list": "listed"}
            return [ErasedArtefact(one.kind, one.place, words[one.action], one.detail, one.count) for one in found]
        kept: dict[str, Any] = {"format": 1, "state": "intended", **asked}
        kept["found"] = [one.as_dict() for one in found]
        _write(folder, kept)
        erased = [erase_remains(one, ids) for one in found]
        _write(folder, kept | {"state": "done", "artefacts": [one.as_dict() for one in erased]})
    if signer is not None:
        _sign(folder, signer, erased)
    return erased


def is_erasable_run(target: str | Path) -> bool:
    """Whether what a user named is a run folder, and not the name of a request."""
    return (Path(target) / META).is_file()


def _ids(folder: Path, *, dry_run: bool) -> ForgottenIds:
    """The ids that a run was asked to forget, and the key of its record, which takes their place under."""
    parts = read_split(folder)["parts"]
    asked = [*parts["forget"], *parts.get(EARLIER, ())]
    if not asked:
        raise EffaceError(
            f"{folder} was asked to forget nothing: it is an original.",
            remedy="Name a run that `efface unlearn` made.",
        )
    known, tokens = ([one for one in asked if one.startswith(TOKEN) == erased] for erased in (False, True))
    if not (folder / KEY_FILE).exists():
        if not known:
            raise EffaceError(
                f"Nobody can tell any more which examples {folder} was asked to forget.",
                "Their ids were erased, and the key is gone with which they could be recognized.",
                f"Restore {KEY_FILE} from a backup, if there is one.",
            )
        if not dry_run:
            write_key(folder, new_secret())
            sync(folder / KEY_FILE)
    secret = read_key(folder / KEY_FILE) if (folder / KEY_FILE).exists() else new_secret()
    return ForgottenIds(secret, known or None, (), others=data_names(folder), tokens=tokens)


def _find(
    folder: Path, ids: ForgottenIds, places: Sequence[Path], known: Mapping[str, int], *, remove: bool
) -> Iterator[Remains]:
    """Find what remembers: caches, the runs that it was made from, the places, and last its own split."""
    from efface.runs.lineage import walk_back
    from efface.runs.rehearsal_plan import rehearsals_beside
    from efface.runs.run import RunFolders

    pictures, blocked = find_pictures(folder, ids)
    yield from pictures
    folders = RunFolders()
    ancestors = [one.folder.absolute() for one in walk_back(folders.read(folder), folders)][1:]
    for run in reversed(ancestors):
        yield from find_in_run(run, ids, blocked)
        yield from find_model(run, ids, remove=remove, known=known.get(str(run), 0))
    beside = [one for one in map(rehearsals_beside, (*ancestors, folder)) if one.exists()]
    for place in dict.fromkeys([*(Path(one).absolute() for one in places), *beside]):
        yield from find_in_place(place, ids, remove=remove)
    yield from find_in_run(folder, ids, blocked)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / ERASURE
    if not path.exists():
        return None
    return read_json(path, "record of an erasure", schema=StoredErasure, remedy="Remove it, and erase again.")


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_text(folder / ERASURE, json.dumps(content, indent=1) + "\n", private=True)
    sync(folder / ERASURE)


def _sign(folder: Path, signer: CryptoSigner, erased: Sequence[ErasedArtefact]) -> None:
    from efface.reporting.amendment import amend_bundle

    for bundle in sorted(folder.glob(f"*{_BUNDLE}")):
        if not bundle.name.endswith(_AMENDED):
            amended = bundle.with_name(bundle.name.removesuffix(_BUNDLE) + _AMENDED)
            amend_bundle(bundle, amended, signer, count_outcomes(erased))
