"""Reference matching in loops and float64: errors against own targets, hold on the retained."""

import math

from tests.reference.margin_matching import running


def spread(values):
    """Standard deviation with n - 1."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1))


def errors(f, v, ids, targets, sigma):
    """Error of each forgotten example; ``targets``: id to target."""
    level = sum(v) / len(v)
    return [(s - level - targets[i]) / sigma for s, i in zip(f, ids, strict=True)]


def means(steps, memory):
    """Running mean of each example's error after the last step; a step: pairs of id and error, an id perhaps twice."""
    seen = {}
    for step in steps:
        here = {}
        for i, value in step:
            here.setdefault(i, []).append(value)
        for i, found in here.items():
            seen.setdefault(i, []).append(sum(found) / len(found))
    return {i: running(found, memory) for i, found in seen.items()}


def space_loss(f, v, v0, ids, targets, earlier, memory):
    """Mean square of the running means of the batch's examples; ``earlier``: the steps before, as pairs."""
    now = list(zip(ids, errors(f, v, ids, targets, spread(v0)), strict=True))
    after = means([*earlier, now], memory)
    return sum(after[i] ** 2 for i in ids) / len(ids)


def slopes(f, r, v, v0, ids, targets, earlier, memory):
    """Derivative of the space's loss by each of F's and of R's margins, as the equation's second line defines it."""
    sigma = spread(v0)
    now = list(zip(ids, errors(f, v, ids, targets, sigma), strict=True))
    after = means([*earlier, now], memory)
    of_f = [2 * after[i] / sigma / len(ids) for i in ids]
    return of_f, [-sum(of_f) / len(r)] * len(r)


def hold(r, r0, v0):
    """Mean square of what the retained have fallen below their margins under the checkpoint as received."""
    sigma = spread(v0)
    return sum(max(0.0, (a - b) / sigma) ** 2 for a, b in zip(r0, r, strict=True)) / len(r)
