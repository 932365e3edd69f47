"""Standard output and standard error that may be closed, full, or of an encoding that lacks a character."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

from efface.errors import EffaceError
from efface.training.launch import is_follower


def prepare_streams() -> None:
    """Let characters that an encoding lacks be printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def write_lines(lines: list[str]) -> None:
    """Print lines on standard output. If nobody reads them any more, they are dropped.

    Raises:
        EffaceError: They cannot be written for another reason, such as a full disk.

    """
    if sys.stdout is None or is_follower():  # closed by the caller; the first of several processes prints
        return
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if error.errno == errno.EPIPE:
            return
        raise EffaceError(
            "The result could not be printed.",
            str(error),
            "What it writes to files is complete. Direct the output elsewhere, and repeat it to see the result.",
        ) from error


def write_message(text: str, end: str = "\n", *, by_all: bool = False) -> None:
    """Print a message on standard error; if that is impossible, it is dropped, and the work goes on.

    Of several processes that a launcher started only the first one prints, or with ``by_all`` each of them.
    """
    if sys.stderr is None or (is_follower() and not by_all):
        return
    try:
        sys.stderr.write(text + end)
        sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    """Send the rest of a stream nowhere, so that the interpreter does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
