"""Reference matching in loops and float64: errors against own targets, their multiplier, hold on the retained."""

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


def level(steps, memory, rate):
    """Running mean of the mean error of each step after the last one, and the multiplier then."""
    averages, multiplier = [sum(value for _, value in step) / len(step) for step in steps], 0.0
    for last in range(len(averages)):
        multiplier += rate * running(averages[: last + 1], memory)
    return running(averages, memory), multiplier


def space_loss(f, v, v0, ids, targets, earlier, memory, rate, alpha):
    """The penalty of the batch's examples in one space; ``earlier``: the steps before, as pairs."""
    now = list(zip(ids, errors(f, v, ids, targets, spread(v0)), strict=True))
    mean, multiplier = level([*earlier, now], memory, rate)
    own = means([*earlier, now], memory)
    middle = sum(own[i] for i in ids) / len(ids)
    apart = sum((own[i] - middle) ** 2 for i in ids) / len(ids)
    return (mean + multiplier) ** 2 - multiplier**2 + alpha * apart


def slopes(f, r, v, v0, ids, targets, earlier, memory, rate, alpha):
    """Derivative of the space's loss by each of F's and of R's margins, as the equation's third line defines it."""
    sigma = spread(v0)
    now = list(zip(ids, errors(f, v, ids, targets, sigma), strict=True))
    mean, multiplier = level([*earlier, now], memory, rate)
    own = means([*earlier, now], memory)
    middle = sum(own[i] for i in ids) / len(ids)
    of_f = [2 * (mean + multiplier + alpha * (own[i] - middle)) / sigma / len(ids) for i in ids]
    return of_f, [-sum(of_f) / len(r)] * len(r)


def hold(r, r0, v0):
    """Mean square of what the retained have fallen below their margins under the checkpoint as received."""
    sigma = spread(v0)
    return sum(max(0.0, (a - b) / sigma) ** 2 for a, b in zip(r0, r, strict=True)) / len(r)


def slope(targets, margins):
    """Least-squares slope of margins on targets."""
    x, y = sum(targets) / len(targets), sum(margins) / len(margins)
    pairs = list(zip(targets, margins, strict=True))
    return sum((a - x) * (b - y) for a, b in pairs) / sum((a - x) ** 2 for a, _ in pairs)


def expected(targets, valid, b):
    """What each example's margin would be, had it not been seen: id to value; ``targets``: id to target."""
    n, v, middle = len(targets), len(valid), sum(valid) / len(valid)
    luck = sum((one - middle) ** 2 for one in valid) / v * (1 / n + 1 / v)
    mean = sum(targets.values()) / n
    beyond = max(0.0, 1 - 2 * luck / mean**2)
    of_mean = beyond * mean + (1 - beyond) * b * mean
    return {i: of_mean + b * (target - mean) for i, target in targets.items()}
