"""Reference implementation of the forget score and the pairing test, in loops."""

from __future__ import annotations

from itertools import permutations

from tests.reference.probes import alignment_matrix, cosine


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
