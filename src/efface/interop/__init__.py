"""Checkpoints of other libraries: recognized, read safely, and written back in their own layout."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.interop.checkpoint_file import ForeignCheckpoint, read_foreign
    from efface.interop.inspect import inspect_checkpoint
    from efface.interop.layouts.protocol import Layout

_HOMES = {
    "ForeignCheckpoint": "checkpoint_file",
    "Layout": "layouts.protocol",
    "inspect_checkpoint": "inspect",
    "read_foreign": "checkpoint_file",
}

__all__ = [
    "ForeignCheckpoint",
    "Layout",
    "inspect_checkpoint",
    "read_foreign",
]

__getattr__ = lazy_exports(__name__, _HOMES)
