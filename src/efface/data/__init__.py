"""Data sets, splits and selectors: which examples there are, and which of them to forget. NumPy only."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.data.dataset import Data
    from efface.data.memorization import memorization_scores, read_memorization, write_memorization
    from efface.data.selectors import resolve_selector
    from efface.data.sources import load
    from efface.data.split import Split, partition, select_forget_set

_HOMES = {
    "Data": "dataset",
    "Split": "split",
    "load": "sources",
    "memorization_scores": "memorization",
    "partition": "split",
    "read_memorization": "memorization",
    "resolve_selector": "selectors",
    "select_forget_set": "split",
    "write_memorization": "memorization",
}

__all__ = [
    "Data",
    "Split",
    "load",
    "memorization_scores",
    "partition",
    "read_memorization",
    "resolve_selector",
    "select_forget_set",
    "write_memorization",
]

__getattr__ = lazy_exports(__name__, _HOMES)
