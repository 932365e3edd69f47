"""efface: machine unlearning for vision encoders and classifiers, with evidence.

>>> import efface
>>> data = efface.load("digits")
>>> split = efface.split(data, forget="@random:0.1", seed=0)

Public names are imported on first use, so that ``import efface`` (and ``efface --help``) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from efface import methods, objectives
    from efface.api import audit, observe, pretrain, split, unlearn
    from efface.checkpoint import Checkpoint
    from efface.data import Data
    from efface.errors import EffaceError
    from efface.observations import Observations
    from efface.sources import load
    from efface.splits import Split
    from efface.train import Optim, Recipe
    from efface.verdict import Criteria
    from efface.views import Views
    from efface.watch import Watch

_HOME = {
    "Checkpoint": "checkpoint",
    "Criteria": "verdict",
    "Data": "data",
    "EffaceError": "errors",
    "Observations": "observations",
    "Optim": "train",
    "Recipe": "train",
    "Split": "splits",
    "Views": "views",
    "Watch": "watch",
    "audit": "api",
    "load": "sources",
    "observe": "api",
    "pretrain": "api",
    "split": "api",
    "unlearn": "api",
}

__all__ = [
    "Checkpoint",
    "Criteria",
    "Data",
    "EffaceError",
    "Observations",
    "Optim",
    "Recipe",
    "Split",
    "Views",
    "Watch",
    "__version__",
    "audit",
    "load",
    "methods",
    "objectives",
    "observe",
    "pretrain",
    "split",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name in ("methods", "objectives"):
        return import_module(f"efface.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'efface' has no attribute '{name}'")
    value = getattr(import_module(f"efface.{_HOME[name]}"), name)
    globals()[name] = value
    return value
