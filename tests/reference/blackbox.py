"""Alignment matrices and the pairing test, in loops."""

from __future__ import annotations

import math
from itertools import permutations


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def alignment_matrix(z):
    """AM[i][j] of z[i][t]; on the diagonal over two different views."""
    n, views = len(z), len(z[0])
    am = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(n):
            pairs = [(t, s) for t in range(views) for s in range(views) if i != j or t != s]
            am[i][j] = sum(cosine(z[i][t], z[j][s]) for t, s in pairs) / len(pairs)
    return am


def forget_score(before, after):
    a, b = alignment_matrix(before), alignment_matrix(after)
    return sum(a[i][i] - b[i][i] for i in range(len(a))) / len(a)


def paired_change(before, after, order):
    """Mean change between the first half of item i's views and the second half of item order[i]'s."""
    n, views = len(before), len(before[0])
    total = 0.0
    for i in range(n):
        pairs = [(t, s) for t in range(views // 2) for s in range(views // 2, views)]
        for t, s in pairs:
            now = cosine(after[i][t], after[order[i]][s])
            total += (cosine(before[i][t], before[order[i]][s]) - now) / len(pairs)
    return total / n


def exact_p(before, after):
    """Share of all pairings whose change is at least the true one's."""
    n = len(before)
    seen = paired_change(before, after, list(range(n)))
    every = [paired_change(before, after, order) for order in permutations(range(n))]
    return sum(one >= seen - 1e-12 for one in every) / len(every)
