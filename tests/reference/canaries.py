"""Reference implementation of the p-value of Steinke, Nasr and Jagielski (2023): sums of binomial probabilities."""

from __future__ import annotations

import math


def pmf(k, r, q):
    return math.comb(r, k) * q**k * (1 - q) ** (r - k)


def p_value(m, r, v, epsilon, delta):
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(pmf(k, r, q) for k in range(v, r + 1))
    worst = 0.0
    for i in range(1, v + 1):
        worst = max(worst, sum(pmf(k, r, q) for k in range(v - i, v)) / i)
    return min(1.0, tail + 2 * m * delta * worst)


def lower_bound(m, r, v, beta, delta, step=1e-3):
    """The last ε on a grid from 0 whose p-value is at most beta."""
    found, epsilon = 0.0, 0.0
    while p_value(m, r, v, epsilon, delta) <= beta:
        found, epsilon = epsilon, epsilon + step
    return found
