"""Squared gradients and the Hessian of a linear softmax classifier, per example; the order is W by rows, then b."""

import numpy as np

from tests.reference.descent import softmax


def of_one(weight, bias, row, label):
    """Gradient of the cross-entropy of one example, as one vector."""
    error = softmax((weight @ row + bias)[None])[0]
    error[label] -= 1
    return np.array([e * pixel for e in error for pixel in row] + list(error))


def squares(weight, bias, groups):
    """Mean over the groups of the squared gradient of each group's mean loss. ``groups``: (x, y) pairs."""
    total = 0.0
    for x, y in groups:
        mean = sum(of_one(weight, bias, row, label) for row, label in zip(x, y, strict=True)) / len(y)
        total = total + mean**2
    return total / len(groups)


def hessian(weight, bias, x):
    """Hessian of the summed cross-entropy: Σ over the examples of (diag(p) - p pᵀ) ⊗ (x, 1)(x, 1)ᵀ."""
    classes, pixels = weight.shape
    where = [(c, j) for c in range(classes) for j in range(pixels)] + [(c, pixels) for c in range(classes)]
    result = np.zeros((len(where), len(where)))
    for row in x:
        p, long = softmax((weight @ row + bias)[None])[0], [*row, 1.0]
        for i, (c, j) in enumerate(where):
            for k, (d, m) in enumerate(where):
                result[i, k] += ((c == d) * p[c] - p[c] * p[d]) * long[j] * long[m]
    return result
