"""Open a torch file without running anything that is in it."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efface.errors import EffaceError

HARMLESS: Sequence[type] = (argparse.Namespace,)
"""Classes of plain values that are let in: allowing them is not trusting the file."""
NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: the file itself was never downloaded. Run `git lfs pull`.",
    b"<!doctype html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"<html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"\x89hdf": "an HDF5 file (Keras). Convert it to safetensors with the library that wrote it.",
}
"""How files begin that are often taken for checkpoints, in lower case."""

TORCH_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)", "(2)")
"""How the lines of torch's message begin that speak of torch and not of the file."""


def load_torch(path: Path, *, trust_pickle: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU: tensors and plain values only, unless ``trust_pickle``.

    A file that asks for any other class is refused, with the classes named; nothing in it is run.
    """
    path = Path(path)
    _begins_well(path)
    try:
        if trust_pickle:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals([*HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for foreign content
        raise _refused(path, error, trust_pickle) from error


def find_pickled_classes(path: Path, error: Exception) -> list[str]:
    """Classes that a file wants beyond the allowed ones, read from its pickle without running it."""
    named = set(re.findall(r"GLOBAL ([\w.]+\.\w+)", str(error)))
    if zipfile.is_zipfile(path):
        try:
            with torch.serialization.safe_globals([*HARMLESS]):
                named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:
            return sorted(named)  # not a readable archive after all: the first error says more than this one
    return sorted(named)


def _begins_well(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(32).lower()
    for head, kind in NOT_WEIGHTS.items():
        if start.startswith(head):
            what, _, remedy = kind.partition(". ")
            raise EffaceError(f"{path} is not a checkpoint.", f"It is {what}.", remedy)
    if not start:
        raise EffaceError(f"{path} is empty.", remedy="Fetch it again.")


def _refused(path: Path, error: Exception, trusted: bool) -> EffaceError:
    classes = [] if trusted else find_pickled_classes(path, error)
    if classes:
        return EffaceError(
            f"{path} was refused, and nothing in it was run.",
            f"It is a pickle that asks for: {', '.join(classes)}.",
            "Save the state dict alone (torch.save(model.state_dict(), ...)), or use safetensors; if you made the file "
            "yourself, add --trust-pickle.",
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if " " in line and not line.startswith(TORCH_ADVICE)]
    return EffaceError(
        f"{path} cannot be read as a checkpoint.",
        f"It is damaged, truncated or something else: {(told or [type(error).__name__])[0]}",
        "Fetch it again.",
    )
