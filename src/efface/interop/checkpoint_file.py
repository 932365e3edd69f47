"""Foreign checkpoints, opened: a container, its layout, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.interop.containers import Container, TorchFile, open_container
from efface.interop.layouts import Layout, Role, TensorPlace, detect_layout

WEIGHT_FILE_SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors", ".h5", ".msgpack", ".onnx")
"""Suffixes of files that hold weights."""


@dataclass(frozen=True, eq=False)
class ForeignCheckpoint:
    """A checkpoint of another library: what it holds, where, and how to write it back."""

    container: Container
    layout: Layout
    table: dict[str, TensorPlace]
    """Foreign name to place, one to one, in the order of the file."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.container.path

    @property
    def meta(self) -> dict[str, Any]:
        """Its plain entries, and the JSON files beside it."""
        return self.container.meta

    def part(self, role: Role) -> dict[str, Tensor]:
        """Own name to tensor of one part, in the order of the file; empty where there is none."""
        state = self.container.state
        return {place.name: state[name] for name, place in self.table.items() if place.role is role}

    def write(self, folder: Path, fresh: Mapping[TensorPlace, Tensor], *, cleaned: bool) -> dict[str, str]:
        """Write a copy under the same name into an existing folder, with the ``fresh`` tensors in their places.

        Each must have the shape and type of the one it replaces. ``cleaned``: leave the state of the training run
        behind. What was done with the entries that are no weights comes back, name to action.
        """
        names = {place: name for name, place in self.table.items()}
        return self.container.write(folder, {names[place]: value for place, value in fresh.items()}, cleaned=cleaned)


def read_foreign(path: Path, *, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Open a checkpoint of any known library, without running anything in it (unless it is trusted)."""
    container = open_container(path, trust_pickle=trust_pickle)
    layout = detect_layout(container.state, container.meta)
    return ForeignCheckpoint(container, layout, layout.table(container.state))


def find_sibling_checkpoints(container: Container) -> list[str]:
    """Other files that may hold the same memory: checkpoints beside it, and those that its callbacks name."""
    path = container.path
    here = sorted(path.parent.iterdir()) if path.is_file() else []
    beside = [
        str(item) for item in here if item != path and item.suffix.lower() in WEIGHT_FILE_SUFFIXES and item.is_file()
    ]
    named = _named(container.content.get("callbacks")) if isinstance(container, TorchFile) else []
    return list(dict.fromkeys([*beside, *named]))


def _named(value: Any) -> list[str]:
    """Every path of a checkpoint in a nest of plain values."""
    if isinstance(value, str):
        return [value] if Path(value).suffix.lower() in WEIGHT_FILE_SUFFIXES else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [path for item in value for path in _named(item)] if isinstance(value, (list, tuple)) else []
