"""The names of the files in a run folder, and functions that read and write them with helpful errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efface.errors import EffaceError

REQUEST, LOG, SPLIT, EPOCH = "config.yaml", "log.jsonl", "split.json", "epoch.pt"


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk or missing write permission into an :class:`EffaceError` that names the path ``out``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EffaceError(
                f"The disk is full: {out} could not be written.",
                "What was there before is untouched; the half-written folder ends in .partial.",
                "Free some space and run the same command again.",
            ) from error
        if error.errno in (errno.EACCES, errno.EEXIST, errno.EROFS, errno.ENOTDIR, errno.EPERM):
            raise EffaceError(f"{out} cannot be written.", str(error), "Choose another --out.") from error
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file atomically: an interrupted write leaves either the old content or the new one.

    ``private``: for a file that lists ids; only its owner may read it, from its first byte on.
    """
    fresh = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        if private:
            fresh.unlink(missing_ok=True)
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, path)


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
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # half of a character can be read from JSON, and never be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
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
