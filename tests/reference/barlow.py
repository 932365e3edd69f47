"""Barlow Twins of a weighted batch, in loops, and the contribution of each example by finite differences."""

import math


def moments(rows, weights):
    """Weighted mean and (biased) standard deviation of each column."""
    mean = [sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in range(len(rows[0]))]
    square = [
        sum(w * (row[k] - mean[k]) ** 2 for w, row in zip(weights, rows, strict=True)) for k in range(len(rows[0]))
    ]
    return mean, [math.sqrt(value + 1e-5) for value in square]


def whole(first, second, off_diagonal, weights=None):
    """The published loss; ``weights``: one per example, with sum one."""
    count, dim = len(first), len(first[0])
    weights = weights or [1 / count] * count
    (mean_a, std_a), (mean_b, std_b) = moments(first, weights), moments(second, weights)
    result = 0.0
    for k in range(dim):
        for m in range(dim):
            c = sum(
                weights[i] * (first[i][k] - mean_a[k]) / std_a[k] * (second[i][m] - mean_b[m]) / std_b[m]
                for i in range(count)
            )
            result += (1 - c) ** 2 if k == m else off_diagonal * c**2
    return result


def parts(loss, count, step=1e-5):
    """For each example: the loss, plus its derivative as this example gets more weight and the others less."""

    def tilted(i, amount):
        return [(1 - amount) / count + (amount if j == i else 0.0) for j in range(count)]

    plain = loss([1 / count] * count)
    return [plain + (loss(tilted(i, step)) - loss(tilted(i, -step))) / (2 * step) for i in range(count)]
