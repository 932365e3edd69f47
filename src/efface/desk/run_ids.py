"""Ids in run folders: which files of a run hold forgotten ids, and the same files without them.

In ``split.json`` each forgotten id is replaced by a token, the same one in every run of the chain, so that sizes stay
and a later request still finds what was forgotten before. The rows of these examples leave ``identity.npz``, and
``meta.json`` gets the new digests. The evidence of the run (``record.json``, ``report.html``) holds keyed digests and
stays as it was signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from efface.data.array_files import ARRAY_ERRORS, read_npz, unreadable_arrays_error
from efface.data.identity import DataIdentity
from efface.data.split_parts import EARLIER, SPLIT_PARTS, read_split
from efface.desk.forgotten import TOKEN, ForgottenIds, Remains, say_unsearched
from efface.desk.row_keys import texts_of
from efface.errors import EffaceError
from efface.files import META, REQUEST, SPLIT, WEIGHTS, write_text

SELECTOR_GONE = "@erased"
"""What takes the place of the selector of an erased request."""


def split_ids(run: Path) -> list[str]:
    """Every id in the split of a run, and those that its provenance lists."""
    stored = read_split(run)
    listed = [str(one) for one in (stored["provenance"].get("skipped") or ())]
    return [*(key for part in stored["parts"].values() for key in part), *listed]


def data_names(run: Path) -> list[str]:
    """Every name of the data that a run knows; none if it is not there."""
    return split_ids(run) if is_run(run) else []


def trained_on(run: Path) -> list[str]:
    """The ids that the model of a run was trained on and not asked to forget."""
    return list(read_split(run)["parts"]["retain"])


def observed_ids(path: Path) -> list[str]:
    """The ids in a file of observations; none are in one of another kind.

    Raises:
        EffaceError: It is damaged, or holds Python objects.

    """
    try:
        names = [one for one in read_npz(path, ())[1] if one.endswith("/keys")]
        arrays, _ = read_npz(path, names)
    except ARRAY_ERRORS as error:
        raise unreadable_arrays_error(path, error, "Remove it.") from error
    return [one for name in names for one in texts_of(arrays[name], "keys", path)]


def replace_ids(run: Path, ids: ForgottenIds) -> int:
    """Replace the forgotten ids in the files of a run; returns how many there were.

    The description is written last. A cut before that leaves a split that is not the one described; the next call
    finds the tokens there and finishes.
    """
    found = ids.among(split_ids(run))
    path = run / SPLIT
    stored = json.loads(path.read_text(encoding="utf-8"))
    changed = ids.replaced(stored, found)
    own = bool(ids.among(stored["parts"]["forget"])) or any(one.startswith(TOKEN) for one in stored["parts"]["forget"])
    if own:
        changed["provenance"]["selector"] = SELECTOR_GONE
        changed["provenance"].pop("seed", None)
    meta: dict[str, Any] = json.loads((run / META).read_text(encoding="utf-8"))
    meta["split"] = split_digest(changed["parts"])
    if meta.get("identity"):
        meta["identity"] = _strip_identity(run, found)
    if own and isinstance(meta.get("fixed"), dict):
        meta["fixed"] = {name: value for name, value in meta["fixed"].items() if name != "pictures"}
    _describe_again(meta)
    if own:
        _hide_selector(run)
    if found:
        write_text(path, json.dumps(changed), private=True)
    write_text(run / META, json.dumps(meta, indent=1) + "\n")
    return len(found)


def split_digest(parts: dict[str, list[str]]) -> str:
    """The digest of a stored split, as :meth:`efface.data.split_parts.Split.digest` has it."""
    sha = hashlib.sha256()
    for part in SPLIT_PARTS:
        keys = sorted(parts.get(part, ()))
        if part != EARLIER or keys:
            sha.update("\0".join([part, str(len(keys)), *keys, ""]).encode())
    return sha.hexdigest()


def _describe_again(meta: dict[str, Any]) -> None:
    from efface.training.checkpoint import CONTENT, content_digest

    if CONTENT in meta:
        meta[CONTENT] = content_digest(meta)


def _strip_identity(run: Path, found: set[str]) -> str:
    """Take the rows of the forgotten out of the record of the pictures; returns its digest."""
    identity = DataIdentity.load(run)
    hashed = [hashlib.blake2b(one.encode(), digest_size=8).digest() for one in found]
    gone = np.frombuffer(b"".join(hashed), dtype="<u8").astype(np.uint64)
    kept = ~np.isin(identity.keys, gone)
    if kept.all():
        return identity.digest()
    arrays = {name: getattr(identity, name)[kept] for name in ("keys", "contents", "labels")}
    return DataIdentity(**arrays, classes=identity.classes, facts=identity.facts).save(run)


def _hide_selector(run: Path) -> None:
    """Take selector and draw out of the configuration of a run."""
    path = run / REQUEST
    asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(asked, dict) or asked.get("forget") in (None, SELECTOR_GONE):
        return
    asked["forget"] = SELECTOR_GONE
    asked.pop("forget_seed", None)
    write_text(path, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True), private=True)


def is_run(folder: Path) -> bool:
    """Whether a folder is a finished run."""
    return all((folder / name).is_file() for name in (META, REQUEST, SPLIT, WEIGHTS))


def find_in_run(run: Path, ids: ForgottenIds, blocked: str) -> Iterator[Remains]:
    """Find what a run folder of the chain holds about the forgotten.

    Args:
        run: The folder.
        ids: The forgotten.
        blocked: Why its split must keep the ids for now; empty if it need not.

    """
    for path in sorted(run.glob("*observations*.npz")):
        try:
            held = ids.among(observed_ids(path))
        except (EffaceError, OSError) as error:
            yield say_unsearched(path, error, ids)
            continue
        if held:
            yield Remains("observations", str(path), "remove", "scores of each example", len(held))
    try:
        held = ids.among(split_ids(run)) if is_run(run) else ()
    except (EffaceError, OSError) as error:
        yield say_unsearched(run / SPLIT, error, ids)
        return
    if held:
        yield Remains("split", str(run / SPLIT), "list" if blocked else "rewrite", blocked, len(held))
