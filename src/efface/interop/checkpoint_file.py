"""Read a checkpoint of another library: its container, its layout, and the way to write it back."""

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
BATCH_COUNTER = "num_batches_tracked"
"""BatchNorm's counter of batches; files of old versions of torch do not have it."""


@dataclass(frozen=True, eq=False)
class ForeignCheckpoint:
    """A checkpoint of another library: which tensors it holds, what each of them is, and how to write it back."""

    container: Container
    layout: Layout
    table: dict[str, TensorPlace]
    """Name in the file to role and name here, one to one, in the order of the file."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.container.path

    @property
    def meta(self) -> dict[str, Any]:
        """The plain entries of the file, and the JSON files beside it."""
        return self.container.meta

    def part(self, role: Role) -> dict[str, Tensor]:
        """Return the tensors of one role by their names here, in the order of the file; empty if there are none."""
        state = self.container.state
        return {place.name: state[name] for name, place in self.table.items() if place.role is role}

    def write(self, folder: Path, changed: Mapping[TensorPlace, Tensor], *, cleaned: bool) -> dict[str, str]:
        """Write a copy of the checkpoint under the same name.

        Args:
            folder: An existing folder.
            changed: The tensors to replace; each must have the shape and dtype of the one in the file.
            cleaned: Whether to leave out the state of the training run, such as optimizer moments.

        Returns:
            What was done with the entries that are not weights: name to action.

        """
        names = {place: name for name, place in self.table.items()}
        return self.container.write(folder, {names[place]: value for place, value in changed.items()}, cleaned=cleaned)


def read_foreign(path: Path, *, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Open a checkpoint of any known library and recognize its layout.

    Args:
        path: A file of weights, or a model folder as Hugging Face and timm write them.
        trust_pickle: Whether to unpickle classes that are not known to be harmless. That can run code in the file.

    Raises:
        EffaceError: The file cannot be read safely, or its layout is not known.

    Example:
        >>> checkpoint = read_foreign(Path("moco_v2_800ep.pth.tar"))
        >>> checkpoint.layout.name
        'moco'

    """
    container = open_container(path, trust_pickle=trust_pickle)
    layout = detect_layout(container.state, container.meta)
    return ForeignCheckpoint(container, layout, layout.table(container.state))


def stores_keys_in_rows(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> bool:
    """Whether a two-dimensional queue is stored as [K, dim]; most libraries store [dim, K]."""
    return foreign.layout.name == "efface" or (queue.shape[0] != dim and queue.shape[1] == dim)


def read_queue_keys(queue: Tensor, dim: int, foreign: ForeignCheckpoint) -> Tensor:
    """Return a queue as rows of keys, [K, dim]; of solo-learn's [2, dim, K], one queue per view, the first."""
    first = queue[0] if queue.dim() == 3 else queue
    return first if stores_keys_in_rows(first, dim, foreign) else first.T


def find_sibling_checkpoints(container: Container) -> list[str]:
    """List other files that may remember the same images: checkpoints beside it, and those its callbacks name."""
    path = container.path
    files = sorted(path.parent.iterdir()) if path.is_file() else []
    siblings = [
        str(item) for item in files if item != path and item.suffix.lower() in WEIGHT_FILE_SUFFIXES and item.is_file()
    ]
    named = _checkpoint_paths(container.content.get("callbacks")) if isinstance(container, TorchFile) else []
    return list(dict.fromkeys([*siblings, *named]))


def _checkpoint_paths(value: Any) -> list[str]:
    """Find every path of a checkpoint in nested plain values."""
    if isinstance(value, str):
        return [value] if Path(value).suffix.lower() in WEIGHT_FILE_SUFFIXES else []
    if isinstance(value, Mapping):
        value = list(value.values())
    return [path for item in value for path in _checkpoint_paths(item)] if isinstance(value, (list, tuple)) else []
