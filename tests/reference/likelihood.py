"""Reference implementations of the attacks with references: one example at a time, from the papers' equations."""

from __future__ import annotations

import math


def mean(values) -> float:
    return math.fsum(values) / len(values)


def variance(values) -> float:
    middle = mean(values)
    return math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)


def log_normal(x, center, sigma) -> float:
    return -math.log(sigma) - math.log(2 * math.pi) / 2 - (x - center) ** 2 / (2 * sigma**2)


def log_student(x, center, scale, freedom) -> float:
    z = (x - center) / scale
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    return constant - math.log(scale) - (freedom + 1) / 2 * math.log(1 + z * z / freedom)


def online(x, inside, out) -> list[float]:
    """Carlini et al. 2022, Algorithm 1: log of N(x; in) over N(x; out), for each example."""
    ratios = []
    for i, score in enumerate(x):
        ours, theirs = [m[i] for m in inside], [m[i] for m in out]
        one = log_normal(score, mean(ours), math.sqrt(variance(ours)))
        ratios.append(one - log_normal(score, mean(theirs), math.sqrt(variance(theirs))))
    return ratios


def offline_tail(x, out) -> list[float]:
    """Carlini et al. 2022, equation 4: 1 - P[Z > x], Z ~ N(out)."""
    tails = []
    for i, score in enumerate(x):
        theirs = [m[i] for m in out]
        z = (score - mean(theirs)) / math.sqrt(variance(theirs))
        tails.append(1 - math.erfc(z / math.sqrt(2)) / 2)
    return tails


def predictive(x, seen, freedom, prior) -> float:
    """Log density of the next of ``seen`` under σ² ~ scaled inverse χ²(freedom, prior) and a flat mean, by sums over a
    fine grid of σ²: no closed form is used.
    """
    k, middle = len(seen), mean(seen)
    squares = math.fsum((v - middle) ** 2 for v in seen)
    total, next_ = 0.0, 0.0
    steps = 4000
    for step in range(steps):
        log_v = -12 + 24 * (step + 0.5) / steps
        v = math.exp(log_v)
        weight = -(freedom / 2 + 1) * log_v - freedom * prior / (2 * v) + log_v  # prior, and dv = v dlog v
        weight += -(k - 1) / 2 * log_v - squares / (2 * v)  # likelihood, the mean integrated out
        total += math.exp(weight)
        wide = v * (1 + 1 / k)
        next_ += math.exp(weight - (x - middle) ** 2 / (2 * wide)) / math.sqrt(2 * math.pi * wide)
    return math.log(next_ / total)
