"""The names of the files in a run folder, and functions that read and write them with helpful errors."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efface.errors import DiskError, EffaceError

REQUEST, LOG, SPLIT, EPOCH = "config.yaml", "log.jsonl", "split.json", "epoch.pt"
WEIGHTS, META = "checkpoint.safetensors", "meta.json"
"""Names of a checkpoint's two files."""
READ_ONLY = (errno.EACCES, errno.EROFS, errno.EPERM)
"""What the system answers where nothing may be written."""
LEFTOVER_SECONDS = 3600
"""Age from which a temporary file is taken to be left by a process that was killed."""


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk or missing write permission into a :class:`DiskError` that names the path ``out``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"The disk is full: {out} could not be written.",
                "What was there before is untouched; the half-written folder ends in .partial.",
                "Free some space and run the same command again.",
            ) from error
        if error.errno in (*READ_ONLY, errno.EEXIST, errno.ENOTDIR):
            raise DiskError(f"{out} cannot be written.", str(error), "Choose another --out.") from error
        raise


def make_folder(folder: Path, remedy: str = "Choose another --out.") -> None:
    """Create a folder and its parents; any reason why that is impossible becomes a :class:`DiskError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with disk_errors(folder):
                raise
        raise DiskError(f"The folder {folder} cannot be created.", str(error), remedy) from error


def scratch_folder(folder: Path) -> Path | None:
    """The folder, as the place of temporary files of what is written into it; None if nothing can be."""
    return folder if os.access(folder, os.W_OK) else None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends without an error.

    The name is this process's own, so that two processes that write the same file never see each other's half.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    with disk_errors(path):
        _remove_stale(path)
        try:
            yield fresh
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file atomically: an interrupted write leaves either the old content or the new one.

    ``private``: for a file that lists ids; only its owner may read it, from its first byte on.
    """
    with atomic_path(path) as fresh:
        if private:
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        fresh.write_text(text, encoding="utf-8")


def _remove_stale(path: Path) -> None:
    """Remove what killed processes left of ``path``."""
    for old in path.parent.glob(f"{glob.escape(path.name)}.*-*.tmp"):
        try:
            if time.time() - old.stat().st_mtime > LEFTOVER_SECONDS:
                old.unlink()
        except OSError:
            continue


@contextmanager
def hold_lock(path: Path, busy: Exception | None = None, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file or folder; it is released when the process ends, even if it is killed.

    The lock is ``.NAME.lock`` beside ``path``, and removed at the end. Where nothing may be written there is no lock.

    Args:
        path: What is locked; it need not exist, but its folder must.
        busy: Raised at once if another process holds the lock; by default this one waits.
        waiting: Called before waiting.

    """
    from filelock import FileLock, Timeout

    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name, thread_local=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if busy is not None:
                raise busy from None
            waiting()
            lock.acquire()
    except OSError as error:
        if error.errno not in READ_ONLY:
            with disk_errors(path):
                raise
        yield
        return
    try:
        yield
    finally:
        name.unlink(missing_ok=True)  # while it is held: who waits for this file sees that it is gone, and tries again
        lock.release()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str) -> Any:
    """Parse JSON that a file holds.

    Raises:
        ValueError: It is no JSON, or a string has half of a character, which can never be written again.

    """
    content = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def read_json(
    path: Path,
    what: str,
    *,
    schema: type | None = None,
    missing: str = "",
    remedy: str = "Restore it, or make it again.",
) -> dict[str, Any]:
    """Read a JSON object from a file that efface wrote.

    Args:
        path: The file.
        what: What the file holds, for error messages, such as ``"split"``.
        schema: A model of its fields; they are checked, and those that are not there get their defaults.
        missing: What to do if the file does not exist; by default ``remedy``.
        remedy: What to do if the file cannot be read.

    Raises:
        EffaceError: The file is missing or damaged, holds something other than an object, or a field is wrong.

    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EffaceError(f"There is no {what} at {path}.", remedy=missing or remedy) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EffaceError(
            f"{path} cannot be read as a {what}.", f"It is damaged or something else: {error}", remedy
        ) from error
    if not isinstance(content, dict):
        raise EffaceError(f"{path} is not a {what}.", f"It holds a {type(content).__name__}.", remedy)
    if schema is None:
        return content
    from efface.schema import parse_record  # pydantic is slow to import, and the help does without

    return parse_record(schema, content, path, what, remedy).model_dump() | content
