"""Unlearning methods and how they are run: inputs, early stopping, search, plug-ins."""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.unlearning.early_stopping import StoppingRule
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
    "METHODS": "methods",
    "Method": "protocol",
    "MethodInputs": "protocol",
    "Needs": "protocol",
    "StoppingRule": "early_stopping",
    "disagreement": "protocol",
    "forget_gradient": "protocol",
    "loss_among_retained": "protocol",
    "task_loss": "protocol",
    "wrong_target_loss": "protocol",
}

__all__ = [
    "METHODS",
    "Method",
    "MethodInputs",
    "Needs",
    "StoppingRule",
    "disagreement",
    "forget_gradient",
    "loss_among_retained",
    "task_loss",
    "wrong_target_loss",
]

__getattr__ = lazy_exports(__name__, _HOMES)
