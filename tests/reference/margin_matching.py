"""Margin matching in loops and float64: margins of single examples, gaps, and the hold on retained examples."""

import math


def _cos(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def agreement(first, second, bank, tau, others=()):
    """Margin of each pair of views; the last ``bank`` pairs are the bank, and ``others`` single views."""
    more = list(others)
    found, n = [], len(first)
    for i in range(n):
        log_mean = 0.0
        for view in (first[i], second[i]):
            all_others = [v[j] for v in (first, second) for j in range(n - bank, n) if j != i] + more
            log_mean += math.log(sum(math.exp(_cos(view, other) / tau) for other in all_others) / len(all_others)) / 2
        found.append(_cos(first[i], second[i]) - tau * log_mean)
    return found


def of_pair(first, second, captions, bank, tau, others=()):
    """Margin of each caption over others, mean over an image's two views; the last ``bank`` captions and ``others``."""
    more = list(others)
    found, n = [], len(captions)
    for i in range(n):
        total = 0.0
        for view in (first[i], second[i]):
            rest = [captions[j] for j in range(n - bank, n) if j != i] + more
            total += _cos(view, captions[i]) - tau * math.log(
                sum(math.exp(_cos(view, t) / tau) for t in rest) / len(rest)
            )
        found.append(total / 2)
    return found


def of_label(logits, labels):
    """Log odds of the label."""
    found = []
    for row, y in zip(logits, labels, strict=True):
        weights = [math.exp(value) for value in row]
        p = weights[y] / sum(weights)
        found.append(math.log(p / (1 - p)))
    return found


def gap(f, v):
    """The mean of forgotten examples minus that of unseen ones."""
    return sum(f) / len(f) - sum(v) / len(v)


def running(values, memory):
    """Exponential mean after the last of the values: weights memory ** age, scaled to sum to 1."""
    weights = [memory**age for age in range(len(values) - 1, -1, -1)]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def pulled(values, memory, rate):
    """The square of the running mean with its multiplier after the last of the values, and the slope by that value."""
    multiplier = sum(rate * running(values[: last + 1], memory) for last in range(len(values)))
    mean = running(values, memory)
    return (mean + multiplier) ** 2 - multiplier**2, 2 * (mean + multiplier)


def aligned(first, second):
    """Cosine of each pair of views."""
    return [_cos(a, b) for a, b in zip(first, second, strict=True)]


def alignment(spaces, weights, share, rate=0.0):
    """The term of views that agree, from the cosines ``(f, v, v0)`` of every space."""
    total = 0.0
    for (f, v, v0), weight in zip(spaces, weights, strict=False):
        mean = sum(v0) / len(v0)
        spread = math.sqrt(sum((s - mean) ** 2 for s in v0) / (len(v0) - 1))
        total += share * weight * pulled([gap(f, v) / spread], 0.0, rate)[0]
    return total


def loss(task, spaces, weights, hold, penalty="square", rate=0.0):
    """The whole loss of a first step from ``(f, r, v, r0, v0)`` of every space, and the task's value."""
    total = task
    for (f, r, v, r0, v0), weight in zip(spaces, weights, strict=True):
        mean = sum(v0) / len(v0)
        spread = math.sqrt(sum((s - mean) ** 2 for s in v0) / (len(v0) - 1))
        apart = gap(f, v) / spread
        total += weight * (pulled([apart], 0.0, rate)[0] if penalty == "square" else max(0.0, apart))
        total += hold * sum(max(0.0, (a - b) / spread) ** 2 for a, b in zip(r0, r, strict=True)) / len(r)
    return total
