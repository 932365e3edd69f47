"""Slow twins of ``efface.stats``: the definitions in Python loops and float64, written from the papers."""

from __future__ import annotations

import itertools
import math


def beats(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def auc(members, nonmembers) -> float:
    """Every pair is compared: O(mn)."""
    return sum(beats(a, b) for a in members for b in nonmembers) / (len(members) * len(nonmembers))


def delong_variance(members, nonmembers) -> tuple[float, float]:
    """DeLong et al. 1988: (S10/m + S01/n, degrees of freedom after Brunner and Munzel 2000)."""
    m, n = len(members), len(nonmembers)
    v10 = [sum(beats(a, b) for b in nonmembers) / n for a in members]
    v01 = [sum(beats(a, b) for a in members) / m for b in nonmembers]
    mean = sum(v10) / m
    s10 = sum((v - mean) ** 2 for v in v10) / (m - 1)
    s01 = sum((v - mean) ** 2 for v in v01) / (n - 1)
    total = s10 / m + s01 / n
    return total, total**2 / ((s10 / m) ** 2 / (m - 1) + (s01 / n) ** 2 / (n - 1))


def roc(members, nonmembers) -> list[tuple[float, float, float]]:
    """(fpr, tpr, threshold) at infinity and at every distinct score, from high to low."""
    points = []
    for cut in [math.inf, *sorted({*members, *nonmembers}, reverse=True)]:
        fpr = sum(b >= cut for b in nonmembers) / len(nonmembers)
        tpr = sum(a >= cut for a in members) / len(members)
        points.append((fpr, tpr, cut))
    return points


def binomial_tail(hits: int, n: int, share: float) -> float:
    """P(at least ``hits`` of ``n``)."""
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(hits, n + 1))


def clopper_pearson(hits: int, n: int, level: float) -> tuple[float, float]:
    """Bisection on the exact binomial tails."""

    def solve(function, target):
        low, high = 0.0, 1.0
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if function(middle) < target else (low, middle)
        return (low + high) / 2

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else solve(lambda p: binomial_tail(hits, n, p), tail)
    high = 1.0 if hits == n else solve(lambda p: binomial_tail(hits + 1, n, p), 1 - tail)
    return low, high


def exact_permutation(members, nonmembers) -> float:
    """Two-sided p over *all* relabellings."""
    scores = [*members, *nonmembers]
    seen = abs(auc(members, nonmembers) - 0.5)
    far = total = 0
    for chosen in itertools.combinations(range(len(scores)), len(members)):
        inside = [scores[i] for i in chosen]
        outside = [s for i, s in enumerate(scores) if i not in chosen]
        far += abs(auc(inside, outside) - 0.5) >= seen - 1e-12
        total += 1
    return far / total


def holm(p) -> list[float]:
    """Adjusted p of hypothesis i: the largest, over those at least as small, of (number not smaller) x p, at
    most 1.
    """
    ordered = sorted(range(len(p)), key=lambda i: p[i])
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, i in enumerate(ordered):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def js_divergence(p, q) -> float:
    """KL(p||m)/2 + KL(q||m)/2 with m the mean, 0 log 0 = 0."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        total += (a * math.log(a / middle) if a else 0.0) / 2 + (b * math.log(b / middle) if b else 0.0) / 2
    return total
