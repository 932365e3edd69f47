"""Data sets, splits and selectors: which examples there are, and which of them to forget. NumPy only."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.data.dataset import Data
    from efface.data.selectors import resolve_selector
    from efface.data.sources import load
    from efface.data.split import Split, partition, select_forget_set

_HOMES = {
    "Data": "dataset",
    "Split": "split",
    "load": "sources",
    "partition": "split",
    "resolve_selector": "selectors",
    "select_forget_set": "split",
}

__all__ = [
    "Data",
    "Split",
    "load",
    "partition",
    "resolve_selector",
    "select_forget_set",
]

__getattr__ = lazy_exports(__name__, _HOMES)
