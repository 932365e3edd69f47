"""Run folders: written under a temporary name, renamed when complete, and replaced only on request."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from efface import config
from efface.errors import DivergenceError, EffaceError
from efface.files import EPOCH, LOG, REQUEST, disk_errors, hold_lock, make_folder, parse_json, write_text
from efface.runs.ownership import (
    RUN_REMEDY,
    Proof,
    put_back,
    remove_folder,
    remove_replaced,
    require_apart,
    set_aside,
    why_not_a_run,
    why_not_unfinished,
)
from efface.runs.stored import StoredRequest
from efface.schema import parse_record
from efface.training import launch

LARGEST_STEP = 2**53
"""No log counts further; beyond it, a number that was read is damaged."""


def partial_path(out: Path) -> Path:
    """Where ``out`` is written until it is complete."""
    return out.with_name(out.name + ".partial")


def failed_log_path(out: Path) -> Path:
    """Where the log of a diverged training is kept."""
    return out.with_name(out.name + ".failed")


@contextmanager
def create_run_folder(
    out: Path,
    request: str,
    *,
    force: bool = False,
    inputs: Sequence[Path | None] = (),
    why_not_ours: Proof = why_not_a_run,
) -> Iterator[Path]:
    """Yield a folder to write into, which becomes ``out`` when the block ends without an error.

    If an earlier attempt at the *same* request was interrupted, its partial folder is yielded again, so that training
    resumes from its last epoch. A request that fails before its first step leaves no folder. The folder of a training
    that diverged is moved to ``OUT.failed``: the same request would diverge again, and a changed one needs its place.

    What is replaced is renamed to ``OUT.replaced-XXXXXXXX`` only when the new folder is complete, and removed when that
    is in place. Only one process at a time writes ``out``: of processes that compute together, the first one. The
    others get a folder of their own, which is removed at the end.

    Args:
        out: The folder to write.
        request: The resolved configuration as YAML; stored in the folder.
        force: Replace ``out``, and a partial folder of another request, if they prove to be ours.
        inputs: What the command reads; ``out`` must be apart from it.
        why_not_ours: Says why an existing folder may not be replaced.

    Raises:
        EffaceError: ``out`` exists or is being written, the partial folder of another request is in the way, or what
            would be replaced is not ours.

    """
    writing = _write_run_folder(Path(out), request, force, inputs, why_not_ours)
    if launch.count_processes() == 1:
        with writing as folder:
            yield folder
        return
    from efface.training.processes import current_world  # needs torch, which an audit of embeddings does without

    with current_world().lead_into(writing) as folder:
        if not current_world().leads:
            write_text(folder / REQUEST, request)
        yield folder


@contextmanager
def _write_run_folder(
    out: Path, request: str, force: bool, inputs: Sequence[Path | None], why_not_ours: Proof
) -> Iterator[Path]:
    """Yield the folder to the one process that writes it."""
    _require_free(out, force, inputs, why_not_ours)
    make_folder(out.parent)
    half = partial_path(out)
    busy = EffaceError(
        f"{out} is in use by another process.",
        "The same command, or another one for the same folder, is running.",
        "Wait for it, or choose another --out.",
    )
    with disk_errors(out), hold_lock(out, busy):
        put_back(out)
        put_back(half)
        _require_free(out, force, inputs, why_not_ours)
        if half.exists() and not _same(half, request):
            if not force:
                raise _another(half, out, request)
            reason = why_not_unfinished(half)
            if reason:
                raise EffaceError(f"--force does not replace {half}.", reason, RUN_REMEDY)
            set_aside(half)
        half.mkdir(exist_ok=True)
        write_text(half / REQUEST, request)
        try:
            yield half
        except BaseException as error:
            _leave(half, out, error)
            put_back(half)
            raise
        _put_in_place(half, out)


def _require_free(out: Path, force: bool, inputs: Sequence[Path | None], why_not_ours: Proof) -> None:
    """Raise an error if ``out`` may not be written."""
    require_apart(out, inputs)
    if out.is_symlink():
        raise EffaceError(f"{out} is a link.", "Links are not replaced.", "Name the folder itself, or another --out.")
    if not out.exists():
        return
    if not force:
        raise EffaceError(
            f"{out} exists already.",
            "Existing folders are replaced only on request.",
            "Choose another --out, or add --force.",
        )
    reason = why_not_ours(out) if out.is_dir() else "It is a file."
    if reason:
        raise EffaceError(f"--force does not replace {out}: it is not a folder of this kind.", reason, RUN_REMEDY)


def _put_in_place(half: Path, out: Path) -> None:
    """Let the complete folder take its place; what was there is removed afterwards, or put back if that fails."""
    for item in (half / EPOCH, *half.glob("*.tmp")):
        item.unlink(missing_ok=True)
    if out.exists():
        set_aside(out)
    try:
        half.rename(out)
    except BaseException:
        put_back(out)
        raise
    remove_replaced(out)
    remove_replaced(half)


def _leave(half: Path, out: Path, error: BaseException) -> None:
    """Clean up after an error: keep a partial folder only if training can resume from it."""
    if not (half / LOG).exists() and not (half / EPOCH).exists():
        shutil.rmtree(half)
    elif isinstance(error, DivergenceError):
        kept = failed_log_path(out)
        if kept.exists() and (kept.is_symlink() or not kept.is_dir() or why_not_unfinished(kept)):
            kept = kept.with_name(f"{kept.name}-{secrets.token_hex(4)}")  # somebody else's: it stays as it is
        elif kept.exists():
            remove_folder(kept)
        half.rename(kept)


def _same(half: Path, request: str) -> bool:
    """Whether a partial folder belongs to this request, or holds nothing yet but a request that was cut."""
    path = half / REQUEST
    stored = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if stored == request:
        return True
    others = [item for item in half.iterdir() if item.name != REQUEST and item.suffix != ".tmp"]
    return not others and request.startswith(stored)


def _another(half: Path, out: Path, request: str) -> EffaceError:
    """The error for a partial folder of another request: how the requests differ, and what to do."""
    try:
        difference = _difference((half / REQUEST).read_text(encoding="utf-8"), request)
    except (OSError, ValueError, yaml.YAMLError):
        difference = "It does not say which."  # damaged, or not ours
    return EffaceError(
        f"{half} is the unfinished folder of another request for {out}.",
        f"{difference} It may still be running, or was interrupted.",
        "Choose another --out, or add --force to replace it; to finish it, repeat its own command.",
    )


def _difference(stored: str, request: str) -> str:
    """The first settings in which two requests differ, with both values."""
    there, here = (dict(_settings(yaml.safe_load(text))) for text in (stored, request))
    names = [name for name in here | there if there.get(name) != here.get(name)]
    shown = [f"{name}: {there.get(name, 'not set')} there, {here.get(name, 'not set')} here" for name in names[:5]]
    return f"{'; '.join(shown)}{f'; and {len(names) - 5} more' if len(names) > 5 else ''}."


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaf values of a nested mapping with their dotted names."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _settings(inner, f"{name}.{key}" if name else str(key))


def read_request(folder: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run folder: the settings that the run was made with."""
    path = Path(folder) / REQUEST
    found = config.read(path)
    parse_record(StoredRequest, found, path, "configuration of a run", "Restore it, or make the run again.")
    return found


class JsonLines:
    """Write ``log.jsonl``, one line per optimizer step; a resumed run first drops the steps that it repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record, and flush it."""
        if self.file is None:
            kept = [old for old in read_log(self.path) if old.get("step", 0) < record["step"]]
            self.path.write_text("".join(json.dumps(old) + "\n" for old in kept), encoding="utf-8")
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self.file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file, if anything was logged."""
        if self.file is not None:
            self.file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a ``log.jsonl`` up to the first invalid line, such as one cut by a kill; empty if missing."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = parse_json(line)
            valid = _is_step(record)
        except (ValueError, RecursionError):
            break
        if not valid:
            break
        records.append(record)
    return records


def _is_step(record: Any) -> bool:
    """Whether a line of a log has the types that are written: a whole step, the names of losses and their numbers."""

    def is_number(value: Any) -> bool:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < LARGEST_STEP)

    if not isinstance(record, dict):
        return False
    step, terms, rate = record.get("step", 0), record.get("terms", {}), record.get("lr")
    return (
        isinstance(step, int)
        and 0 <= step < LARGEST_STEP
        and isinstance(terms, dict)
        and all(is_number(value) for value in terms.values())
        and (rate is None or is_number(rate))
    )
