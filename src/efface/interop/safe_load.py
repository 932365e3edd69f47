"""Load a torch file without running any code that is in it."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efface.errors import EffaceError
from efface.interop.sizes import require_archive_size, require_plausible

SAFE_CLASSES: Sequence[type] = (argparse.Namespace,)
"""Classes of plain values that are always allowed: loading them runs no code of the file."""
OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer: the file itself was never downloaded. Run `git lfs pull`.",
    b"<!doctype html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"<html": "a web page: the download went to a page about the file. Fetch the file itself.",
    b"\x89hdf": "an HDF5 file (Keras). Convert it to safetensors with the library that wrote it.",
    b"\x1f\x8b": "a gzip archive. Unpack it, and name the file inside.",
    b"\xfd7zxz": "an xz archive. Unpack it, and name the file inside.",
    b"bzh": "a bzip2 archive. Unpack it, and name the file inside.",
    b"gguf": "a GGUF file, which holds quantized weights. Bring the checkpoint from before quantization.",
    b"\x93numpy": "a NumPy array. Bring the checkpoint that it was made from.",
}
"""First bytes, in lower case, of files that are often mistaken for checkpoints, and what they are."""
OTHER_ARCHIVES = {
    "constants.pkl": "a TorchScript archive (torch.jit.save): code, and the weights. Where you trust it, "
    'write its state dict and use that: python -c "import torch; '
    "torch.save(torch.jit.load('{path}', map_location='cpu').state_dict(), '{stem}_state.pth')\"",
    "archive_format": "an exported program (torch.export.save): a graph, and its weights. Where you trust it, "
    'write its state dict and use that: python -c "import torch; '
    "torch.save(dict(torch.export.load('{path}').state_dict), '{stem}_state.pth')\"",
    "model.weights.h5": "a Keras archive. Convert it to safetensors with the library that wrote it.",
    ".npy": "an archive of NumPy arrays. Write them with safetensors.numpy.save_file, under the names of the network.",
    "document.xml": "an office document. Name the file of weights.",
}
"""Ends of the names of members that zip archives of other kinds have, what they are, and what to do."""

TORCH_ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "(1)", "(2)")
"""First words of the lines in torch's messages that are about torch and not about the file."""


class UntrustedPickleError(EffaceError):
    """A file was refused because it asks for classes, and unpickling them was not allowed."""

    path: Path


def load_torch(path: Path, *, trust_pickle: bool = False, lazy: bool = False) -> Any:
    """Load what ``torch.save`` wrote, onto the CPU.

    Args:
        path: The file.
        trust_pickle: Whether to allow any class. Unpickling an arbitrary class can run code, so this is for files that
            you made yourself. By default a file may hold only tensors and plain values.
        lazy: Whether to map the tensors of a zip archive into memory and not to read them.

    Raises:
        EffaceError: The file asks for other classes (they are named, and nothing in the file is run), is damaged, or
            is not a checkpoint.

    """
    path = Path(path)
    _refuse_other_files(path)
    _refuse_other_archives(path)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch's hints on odd pickles
            content = _load(path, trust_pickle, lazy and is_archive(path))
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for foreign content
        raise _load_error(path, error, trust_pickle) from error
    require_plausible(path, content)
    return content


def sniff_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format, whatever its name is."""
    with path.open("rb") as file:
        start = file.read(10)
    return len(start) == 10 and start[8:] == b'{"' and int.from_bytes(start[:8], "little") < path.stat().st_size


def _load(path: Path, trust_pickle: bool, lazy: bool) -> Any:
    if trust_pickle:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=lazy)
    with torch.serialization.safe_globals([*SAFE_CLASSES]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)


def find_pickled_classes(path: Path, error: Exception) -> list[str]:
    """Name the classes that a file asks for beyond the allowed ones, read from its pickle without running it."""
    named = set(re.findall(r"GLOBAL (\w[\w.]*)", str(error)))
    if is_archive(path):
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


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive; Python raises for some damaged ends instead of answering."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _refuse_other_archives(path: Path) -> None:
    """Raise an error for a zip archive that torch.save did not write, or that unpacks to more than it holds."""
    if not is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch's own error says more
    for end, kind in OTHER_ARCHIVES.items():
        if any(name.endswith(end) for name in names):
            what, _, remedy = kind.partition(". ")
            remedy = remedy.replace("{path}", str(path)).replace("{stem}", path.stem)
            raise EffaceError(f"{path} is not a state dict.", f"It is {what}.", remedy)
    if not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        raise EffaceError(f"{path} is not a checkpoint.", f"It is a zip archive that holds: {shown}.", "Unpack it.")
    require_archive_size(path)


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
