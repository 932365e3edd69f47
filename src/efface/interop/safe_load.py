"""Load a torch file without running any code that is in it."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efface.errors import EffaceError

SAFE_CLASSES: Sequence[type] = (argparse.Namespace,)
"""Classes of plain values that are always allowed: loading them runs no code of the file."""
OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer: the file itself was never downloaded. Run `git lfs pull`.",
    b"<!doctype html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"<html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"\x89hdf": "an HDF5 file (Keras). Convert it to safetensors with the library that wrote it.",
}
"""First bytes, in lower case, of files that are often mistaken for checkpoints, and what they are."""

TORCH_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)", "(2)")
"""First words of the lines in torch's messages that are about torch and not about the file."""


class UntrustedPickleError(EffaceError):
    """A file was refused because it asks for classes, and unpickling them was not allowed."""

    path: Path


def load_torch(path: Path, *, trust_pickle: bool = False) -> Any:
    """Load what ``torch.save`` wrote, onto the CPU.

    Args:
        path: The file.
        trust_pickle: Whether to allow any class. Unpickling an arbitrary class can run code, so this is for files that
            you made yourself. By default a file may hold only tensors and plain values.

    Raises:
        EffaceError: The file asks for other classes (they are named, and nothing in the file is run), is damaged, or
            is not a checkpoint.

    """
    path = Path(path)
    _refuse_other_files(path)
    try:
        if trust_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals([*SAFE_CLASSES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for foreign content
        raise _load_error(path, error, trust_pickle) from error


def find_pickled_classes(path: Path, error: Exception) -> list[str]:
    """Name the classes that a file asks for beyond the allowed ones, read from its pickle without running it."""
    named = set(re.findall(r"GLOBAL ([\w.]+\.\w+)", str(error)))
    if zipfile.is_zipfile(path):
        try:
            with torch.serialization.safe_globals([*SAFE_CLASSES]):
                named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:
            return sorted(named)  # not a readable archive after all: the first error says more than this one
    return sorted(named)


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(32).lower()
    for head, kind in OTHER_FILES.items():
        if start.startswith(head):
            what, _, remedy = kind.partition(". ")
            raise EffaceError(f"{path} is not a checkpoint.", f"It is {what}.", remedy)
    if not start:
        raise EffaceError(f"{path} is empty.", remedy="Fetch it again.")


def _load_error(path: Path, error: Exception, trusted: bool) -> EffaceError:
    classes = [] if trusted else find_pickled_classes(path, error)
    if classes:
        refusal = UntrustedPickleError(
            f"{path} was refused, and nothing in it was run.",
            f"It is a pickle that asks for: {', '.join(classes)}.",
            "Save the state dict alone (torch.save(model.state_dict(), ...)), or use safetensors; if you made the file "
            "yourself, add --trust-pickle.",
        )
        refusal.path = path
        return refusal
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if " " in line and not line.startswith(TORCH_ADVICE)]
    return EffaceError(
        f"{path} cannot be read as a checkpoint.",
        f"It is damaged, truncated or something else: {(reasons or [type(error).__name__])[0]}",
        "Fetch it again.",
    )
