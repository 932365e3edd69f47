"""Influence: the Newton step with an explicit Hessian; and ridge regression, where the step equals retraining."""

import numpy as np

from tests.reference import gradients


def step(weight, bias, forget, retain, damping):
    """s of a linear softmax classifier; ``forget``, ``retain``: (x, y)."""
    slope = sum(gradients.of_one(weight, bias, row, label) for row, label in zip(*forget, strict=True))
    count = len(retain[1])
    h = gradients.hessian(weight, bias, retain[0]) / count + damping * np.eye(len(slope))
    return np.linalg.solve(h, slope / count)


def ridge(x, y, penalty):
    """argmin ½ Σ (θ·x - y)² + ½ penalty ‖θ‖²."""
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
