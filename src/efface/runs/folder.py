"""Run folders: written under a temporary name, renamed when complete, never overwritten without being asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from efface import config
from efface.errors import DivergenceError, EffaceError
from efface.files import EPOCH, LOG, REQUEST, disk_errors


def partial_path(out: Path) -> Path:
    """Where ``out`` is written until it is complete."""
    return out.with_name(out.name + ".partial")


def failed_log_path(out: Path) -> Path:
    """Where the log of a training that diverged is kept."""
    return out.with_name(out.name + ".failed")


@contextmanager
def create_run_folder(out: Path, request: str, *, force: bool = False) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` when the block ends well.

    ``request``: the resolved configuration as text; it is kept in the folder. If an earlier attempt at the *same*
    request was cut, its half-written folder is given back, so that training can go on from its last epoch. A request
    that is refused before its first step leaves no folder; of one that diverged, what there was goes to ``OUT.failed``,
    because the same request would diverge again and a changed one needs the place.
    """
    out = Path(out)
    if out.exists() and not force:
        raise EffaceError(
            f"{out} exists already.", "Nothing is overwritten unasked.", "Choose another --out, or add --force."
        )
    if out.exists() and not (out / REQUEST).is_file():
        raise EffaceError(f"{out} is not a run folder, so --force does not replace it.", remedy="Choose another --out.")
    half = partial_path(out)
    with disk_errors(out):
        if half.exists() and not _same(half / REQUEST, request):
            if not force:
                raise _another(half, out, request)
            shutil.rmtree(half)
        half.mkdir(parents=True, exist_ok=True)
        (half / REQUEST).write_text(request, encoding="utf-8")
        try:
            yield half
        except BaseException as error:
            _leave(half, out, error)
            raise
        (half / EPOCH).unlink(missing_ok=True)
        if out.exists():
            shutil.rmtree(out)
        os.replace(half, out)


def _leave(half: Path, out: Path, error: BaseException) -> None:
    """After an error: keep what can be gone on from, and nothing else."""
    if not (half / LOG).exists() and not (half / EPOCH).exists():
        shutil.rmtree(half)
    elif isinstance(error, DivergenceError):
        shutil.rmtree(failed_log_path(out), ignore_errors=True)
        os.replace(half, failed_log_path(out))


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def _another(half: Path, out: Path, request: str) -> EffaceError:
    """The error for a half-written folder that belongs to another request: what differs, and the ways out."""
    try:
        told = _difference((half / REQUEST).read_text(encoding="utf-8"), request)
    except (FileNotFoundError, yaml.YAMLError):
        told = "It does not say which."  # killed while that was written
    return EffaceError(
        f"{half} is the unfinished folder of another request for {out}.",
        f"{told} It may still be running, or was cut.",
        "Choose another --out, or add --force to start anew in its place; to finish it, repeat its own command.",
    )


def _difference(stored: str, request: str) -> str:
    """The first settings in which two requests differ, with both values."""
    theirs, ours = (dict(_settings(yaml.safe_load(text))) for text in (stored, request))
    names = [name for name in ours | theirs if theirs.get(name) != ours.get(name)]
    said = [f"{name}: {theirs.get(name, 'not set')} there, {ours.get(name, 'not set')} here" for name in names[:5]]
    return f"{'; '.join(said)}{f'; and {len(names) - 5} more' if len(names) > 5 else ''}."


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The single values of a nested mapping, by dotted name."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _settings(inner, f"{name}.{key}" if name else str(key))


def read_request(folder: Path) -> dict[str, Any]:
    """What a run was asked for, its ``config.yaml``; an error where it is not whole."""
    path = Path(folder) / REQUEST
    found = config.read(path)
    lacking = [name for name in ("verb", "data", "seed") if name not in found]
    if lacking:
        raise EffaceError(
            f"{path} is no run's request.",
            f"It lacks {', '.join(lacking)}: it is damaged or something else.",
            "Restore it, or make the run again.",
        )
    return found


class JsonLines:
    """``log.jsonl``: one line per optimizer step. Lines of steps that a resumed run repeats are dropped first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: TextIO | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Append one record; it is on its way to the disk before the next step begins."""
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
    """The records of a ``log.jsonl`` up to the first line that is none: the last one, if a kill cut it."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
    return records
