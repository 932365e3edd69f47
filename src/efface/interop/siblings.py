"""Other files that may remember the same images: copies of the network beside a checkpoint, and in its callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from efface.interop.averages import find_pairs
from efface.interop.checkpoint_file import recognize_names
from efface.interop.containers import Container, SafetensorsFile, TorchFile
from efface.interop.layouts import Role, State
from efface.interop.safe_load import load_torch, sniff_safetensors

WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors", ".h5", ".msgpack", ".onnx")
"""Suffixes of files that hold weights."""
MAX_COMPARED = 64
"""At most so many files are opened; the others are listed as not looked at."""


def find_sibling_checkpoints(container: Container) -> list[str]:
    """List the files that hold the same network, or that may: those that cannot be read here.

    A file is the same network if the backbone has a partner in it for each of its tensors, by the end of the name and
    the shape. Checkpoints that the file's own callbacks name are listed without looking.
    """
    path = container.path
    files = sorted(path.parent.iterdir()) if path.is_file() else []
    siblings = [
        item for item in files if item != path and item.suffix.lower() in WEIGHT_FILE_SUFFIXES and item.is_file()
    ]
    network = _backbone(container) if siblings else {}
    found: list[str] = []
    for number, item in enumerate(siblings):
        if number >= MAX_COMPARED:
            found.append(f"{len(siblings) - number} more files in {path.parent}, not looked at")
            break
        same = _holds(item, network)
        found += [] if same is False else [str(item) if same else f"{item} (not readable here)"]
    named = _checkpoint_paths(container.content.get("callbacks")) if isinstance(container, TorchFile) else []
    return list(dict.fromkeys([*found, *named]))


def _holds(path: Path, network: State) -> bool | None:
    """Whether a file holds a network of these names and shapes; ``None`` if it cannot be read."""
    try:
        other = SafetensorsFile(path) if sniff_safetensors(path) else TorchFile(path, load_torch(path, lazy=True))
    except (EffaceError, OSError):
        return None
    weights = {name.replace("/", "."): value for name, value in other.state.items()}
    return bool(network) and bool(find_pairs(weights, network, set(network), partial=True))


def _backbone(container: Container) -> State:
    names, layout = recognize_names(container.state, container.meta)
    return {
        names[name]: value
        for name, value in container.state.items()
        if layout.place(names[name]).role is Role.BACKBONE and value.is_floating_point()
    }


def _checkpoint_paths(value: Any) -> list[str]:
    """Find every path of a checkpoint in nested plain values."""
    if isinstance(value, str):
        return [value] if Path(value).suffix.lower() in WEIGHT_FILE_SUFFIXES else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [path for item in value for path in _checkpoint_paths(item)] if isinstance(value, (list, tuple)) else []
