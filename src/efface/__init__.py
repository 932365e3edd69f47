"""efface: machine unlearning for vision encoders and classifiers, with evidence.

>>> import efface
>>> data = efface.load("digits")
>>> split = efface.split(data, forget="@random:0.1", seed=0)

Public names are imported on first use, so that ``import efface`` and ``efface --help`` do not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports
from efface._version import __version__

if TYPE_CHECKING:
    from efface.api import audit, observe, pretrain, split, unlearn
    from efface.auditing.criteria import Criteria
    from efface.auditing.observations import Observations
    from efface.auditing.observers.settings import ObservationSettings
    from efface.data.dataset import Data
    from efface.data.sources import load
    from efface.data.split import Split
    from efface.errors import EffaceError
    from efface.runs import hub
    from efface.training import objectives
    from efface.training.augment import Views
    from efface.training.checkpoint import Checkpoint
    from efface.training.optim import Optim
    from efface.training.recipe import Recipe
    from efface.unlearning import methods

_HOMES = {
    "Checkpoint": "training.checkpoint",
    "Criteria": "auditing.criteria",
    "Data": "data.dataset",
    "EffaceError": "errors",
    "ObservationSettings": "auditing.observers.observe",
    "Observations": "auditing.observations",
    "Optim": "training.optim",
    "Recipe": "training.recipe",
    "Split": "data.split",
    "Views": "training.augment",
    "audit": "api",
    "hub": "runs.hub",
    "load": "data.sources",
    "observe": "api",
    "pretrain": "api",
    "split": "api",
    "unlearn": "api",
    "methods": "unlearning.methods",
    "objectives": "training.objectives",
}

__all__ = [
    "Checkpoint",
    "Criteria",
    "Data",
    "EffaceError",
    "ObservationSettings",
    "Observations",
    "Optim",
    "Recipe",
    "Split",
    "Views",
    "__version__",
    "audit",
    "hub",
    "load",
    "methods",
    "objectives",
    "observe",
    "pretrain",
    "split",
    "unlearn",
]


__getattr__ = lazy_exports(__name__, _HOMES)
