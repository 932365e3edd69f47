"""Unlearning methods and how they are run: inputs, early stopping, search, plug-ins.

All that a file with a new method needs can be imported from here, so that it depends on public names alone:

    from efface.unlearning import Method, MethodInputs, Model, Needs, Optim, Run, task_loss, train_steps

``CONTRIBUTING.md`` shows a complete method, in this repository or in a package of its own.
"""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.errors import DivergenceError, EffaceError
    from efface.training.batch import Batch, LossOutput, LossTerms, Subset
    from efface.training.gradients import flatten_parts, unflatten_vector
    from efface.training.loop import LossTermsFunction, Run, fit, frozen_copy, train_step, train_steps
    from efface.training.model import Model, frozen_statistics
    from efface.training.optim import Optim, OptimizerType, Schedule, ScheduledOptimizer
    from efface.training.recipe import Recipe
    from efface.unlearning.early_stopping import StoppingRule
    from efface.unlearning.margins import compute_margins
    from efface.unlearning.methods import METHODS
    from efface.unlearning.protocol import (
        Method,
        MethodInputs,
        Needs,
        disagreement,
        forget_gradient,
        loss_among_retained,
        task_loss,
        wrong_target_loss,
    )

_HOMES = {
    "Batch": "efface.training.batch",
    "DivergenceError": "efface.errors",
    "EffaceError": "efface.errors",
    "LossOutput": "efface.training.batch",
    "LossTerms": "efface.training.batch",
    "LossTermsFunction": "efface.training.loop",
    "METHODS": "methods",
    "Method": "protocol",
    "MethodInputs": "protocol",
    "Model": "efface.training.model",
    "Needs": "protocol",
    "Optim": "efface.training.optim",
    "OptimizerType": "efface.training.optim",
    "Recipe": "efface.training.recipe",
    "Run": "efface.training.loop",
    "Schedule": "efface.training.optim",
    "ScheduledOptimizer": "efface.training.optim",
    "StoppingRule": "early_stopping",
    "Subset": "efface.training.batch",
    "compute_margins": "margins",
    "disagreement": "protocol",
    "fit": "efface.training.loop",
    "flatten_parts": "efface.training.gradients",
    "forget_gradient": "protocol",
    "frozen_copy": "efface.training.loop",
    "frozen_statistics": "efface.training.model",
    "loss_among_retained": "protocol",
    "task_loss": "protocol",
    "train_step": "efface.training.loop",
    "train_steps": "efface.training.loop",
    "unflatten_vector": "efface.training.gradients",
    "wrong_target_loss": "protocol",
}

__all__ = [
    "METHODS",
    "Batch",
    "DivergenceError",
    "EffaceError",
    "LossOutput",
    "LossTerms",
    "LossTermsFunction",
    "Method",
    "MethodInputs",
    "Model",
    "Needs",
    "Optim",
    "OptimizerType",
    "Recipe",
    "Run",
    "Schedule",
    "ScheduledOptimizer",
    "StoppingRule",
    "Subset",
    "compute_margins",
    "disagreement",
    "fit",
    "flatten_parts",
    "forget_gradient",
    "frozen_copy",
    "frozen_statistics",
    "loss_among_retained",
    "task_loss",
    "train_step",
    "train_steps",
    "unflatten_vector",
    "wrong_target_loss",
]

__getattr__ = lazy_exports(__name__, _HOMES)
