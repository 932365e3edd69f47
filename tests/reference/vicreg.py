"""VICReg of a weighted batch, in loops, with unbiased covariances."""

import math


def covariances(rows, weights):
    count, dim = len(rows), len(rows[0])
    mean = [sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in range(dim)]
    factor = count / (count - 1)
    return [
        [
            factor * sum(w * (row[k] - mean[k]) * (row[m] - mean[m]) for w, row in zip(weights, rows, strict=True))
            for m in range(dim)
        ]
        for k in range(dim)
    ]


def whole(first, second, weights=None, agree=25.0, spread=25.0, covariance=1.0):
    """The authors' loss; ``weights``: one per example, with sum one."""
    count, dim = len(first), len(first[0])
    weights = weights or [1 / count] * count
    result = agree * sum(weights[i] * (first[i][k] - second[i][k]) ** 2 / dim for i in range(count) for k in range(dim))
    for rows in (first, second):
        c = covariances(rows, weights)
        result += spread / 2 * sum(max(0.0, 1 - math.sqrt(c[k][k] + 1e-4)) for k in range(dim)) / dim
        result += covariance * sum(c[k][m] ** 2 for k in range(dim) for m in range(dim) if k != m) / dim
    return result
