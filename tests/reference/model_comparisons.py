"""Audits that compare models or ask for a share, in loops and float64, one example or pair at a time."""

from __future__ import annotations

import math


def mean(values) -> float:
    return math.fsum(values) / len(values)


def covariance(a, b) -> float:
    ma, mb = mean(a), mean(b)
    return math.fsum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True)) / (len(a) - 1)


def fieller(groups, t) -> tuple[float, float, float]:
    """Ratio of the sums of means with its interval: the roots of (a - r b)² = t² (V_aa - 2 r V_ab + r² V_bb)."""
    a, b = (math.fsum(mean([row[i] for row in g]) for g in groups) for i in (0, 1))

    def spread(i, j) -> float:
        return math.fsum(covariance([row[i] for row in g], [row[j] for row in g]) / len(g) for g in groups)

    first = b * b - t * t * spread(1, 1)
    half = a * b - t * t * spread(0, 1)
    last = a * a - t * t * spread(0, 0)
    root = math.sqrt(half * half - first * last)
    return a / b, (half - root) / first, (half + root) / first


def share(forget, holdout, retain, others) -> float:
    """1 - (m_F - m_H) / (m_R - m_N)."""
    return 1 - (mean(forget) - mean(holdout)) / (mean(retain) - mean(others))


def kernel(x, y, width) -> float:
    return math.exp(-math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / width)


def squared_mmd(x, y, width) -> float:
    """MMD² over the pairs of different examples i != j of two samples of the same examples."""
    n, total = len(x), []
    for i in range(n):
        for j in range(n):
            if i != j:
                near = kernel(x[i], x[j], width) + kernel(y[i], y[j], width)
                total.append(near - kernel(x[i], y[j], width) - kernel(x[j], y[i], width))
    return mean(total)


def common(g, a, o, b) -> float:
    """<g - a, o - b> of one example."""
    return math.fsum((g[k] - a[k]) * (o[k] - b[k]) for k in range(len(g)))


def discriminant(members, others, shrinkage) -> list[list[float]]:
    """The matrix S + λI of Fisher's discriminant, entry by entry."""
    d, n = len(members[0]), len(members) + len(others)
    centers = [[mean([row[k] for row in group]) for k in range(d)] for group in (members, others)]
    rows = [
        [row[k] - center[k] for k in range(d)]
        for group, center in zip((members, others), centers, strict=True)
        for row in group
    ]
    s = [[math.fsum(row[i] * row[j] for row in rows) / n for j in range(d)] for i in range(d)]
    ridge = shrinkage * math.fsum(s[i][i] for i in range(d)) / d
    return [[s[i][j] + (ridge if i == j else 0.0) for j in range(d)] for i in range(d)]


def neighbor_score(logits, column) -> float:
    """log p_k - log(1 - p_k)."""
    total = math.fsum(math.exp(v) for v in logits)
    p = math.exp(logits[column]) / total
    return math.log(p) - math.log(1 - p)


def share_without(logits, forgotten) -> list[float]:
    """q: probabilities of the classes that are not forgotten, which sum to 1."""
    kept = [math.exp(v) for k, v in enumerate(logits) if k not in forgotten]
    return [v / math.fsum(kept) for v in kept]
