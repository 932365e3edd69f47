"""DAMP, in loops: what is particular to forgotten classes, how well a line tells them, and the projected weights."""

import numpy as np


def means(x, labels):
    """The mean row of each label, in their order."""
    return [
        np.mean([row for row, label in zip(x, labels, strict=True) if label == one], axis=0)
        for one in sorted(set(labels))
    ]


def directions(forgotten, retained):
    """Orthonormal rows that span what the forgotten means have beyond the span of the retained ones."""
    known, own = [], []
    for mean, into in [(one, known) for one in retained] + [(one, own) for one in forgotten]:
        rest = np.array(mean, dtype=np.float64)
        for _ in range(2):  # twice, against rounding
            for other in known + (own if into is own else []):
                rest = rest - np.dot(rest, other) * other
        if np.linalg.norm(rest) > 1e-4 * np.linalg.norm(mean):
            into.append(rest / np.linalg.norm(rest))
    return own


def probe(f, r, ridge=1e-3):
    """2 · balanced accuracy - 1 on odd rows of least squares on even rows, both sides weighing a half."""
    fitted = [(row, 1.0, 0.5 / len(f[::2])) for row in f[::2]] + [(row, -1.0, 0.5 / len(r[::2])) for row in r[::2]]
    center = sum(weight * row for row, _, weight in fitted)
    spread = sum(weight * np.outer(row - center, row - center) for row, _, weight in fitted)
    spread = spread + (ridge * np.trace(spread) / len(spread) + 1e-12) * np.eye(len(spread))
    line = np.linalg.solve(spread, sum(weight * side * (row - center) for row, side, weight in fitted))
    hits = [
        [float(np.dot(row - center, line) > 0) for row in f[1::2]],
        [float(np.dot(row - center, line) <= 0) for row in r[1::2]],
    ]
    return max(0.0, np.mean(hits[0]) + np.mean(hits[1]) - 1)


def projected(weight, basis, alpha):
    """Each row of the weights less alpha times its part along each direction."""
    result = np.array(weight, dtype=np.float64)
    for row in result:
        for direction in [np.array(one) for one in basis]:
            row -= alpha * np.dot(row, direction) * direction  # directions are orthogonal: one after the other is all
    return result
