"""Checkpoints of other libraries: recognize them, read them safely, and write them back in their own layout."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.interop.checkpoint_file import ForeignCheckpoint, read_foreign
    from efface.interop.inspect import inspect_checkpoint
    from efface.interop.layouts.protocol import Layout
    from efface.interop.load import LoadedCheckpoint, load_checkpoint

_HOMES = {
    "ForeignCheckpoint": "checkpoint_file",
    "Layout": "layouts.protocol",
    "LoadedCheckpoint": "load",
    "inspect_checkpoint": "inspect",
    "load_checkpoint": "load",
    "read_foreign": "checkpoint_file",
}

__all__ = [
    "ForeignCheckpoint",
    "Layout",
    "LoadedCheckpoint",
    "inspect_checkpoint",
    "load_checkpoint",
    "read_foreign",
]

__getattr__ = lazy_exports(__name__, _HOMES)
