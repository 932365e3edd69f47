"""Models, training objectives, the training loop, and efface's own checkpoints."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.training.augment import Views
    from efface.training.batch import Batch, ContrastiveTerms, LossOutput, LossTerms, Subset
    from efface.training.checkpoint import Checkpoint
    from efface.training.loop import Run, TrainingCost
    from efface.training.model import Model, Objective
    from efface.training.objectives import OBJECTIVES
    from efface.training.optim import Optim
    from efface.training.recipe import Recipe

_HOMES = {
    "Batch": "batch",
    "Checkpoint": "checkpoint",
    "ContrastiveTerms": "batch",
    "LossOutput": "batch",
    "LossTerms": "batch",
    "Model": "model",
    "OBJECTIVES": "objectives",
    "Objective": "model",
    "Optim": "optim",
    "Recipe": "recipe",
    "Run": "loop",
    "Subset": "batch",
    "TrainingCost": "loop",
    "Views": "augment",
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Checkpoint",
    "ContrastiveTerms",
    "LossOutput",
    "LossTerms",
    "Model",
    "Objective",
    "Optim",
    "Recipe",
    "Run",
    "Subset",
    "TrainingCost",
    "Views",
]

__getattr__ = lazy_exports(__name__, _HOMES)
