"""Reference implementations of representation measures and the alignment matrix: loops in float64, from the papers."""

from __future__ import annotations

import math

import numpy as np


def cosine(a, b) -> float:
    size = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / size


def knn_vote(bank, labels, query, k, tau, left_out=None) -> int:
    """Wu et al. 2018: the k most similar rows vote with exp(cos/tau)."""
    close = [(cosine(row, query), i) for i, row in enumerate(bank) if i != left_out]
    votes: dict[int, float] = {}
    for similarity, i in sorted(close, reverse=True)[:k]:
        votes[labels[i]] = votes.get(labels[i], 0.0) + math.exp(similarity / tau)
    return max(sorted(votes), key=lambda label: votes[label])


def uniformity(x) -> float:
    """Wang and Isola 2020, with t = 2, over pairs i < j."""
    terms = [math.exp(-2 * (2 - 2 * cosine(x[i], x[j]))) for i in range(len(x)) for j in range(i + 1, len(x))]
    return math.log(sum(terms) / len(terms))


def effective_rank(x) -> float:
    """Roy and Vetterli 2007: exp of the entropy of normalized singular values (of centered unit rows)."""
    z = np.array([row / np.linalg.norm(row) for row in np.asarray(x, dtype=np.float64)])
    values = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    p = values / values.sum()
    return math.exp(-sum(q * math.log(q) for q in p if q > 0))


def linear_cka(x, y) -> float:
    """Kornblith et al. 2019: HSIC(K, L)/sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    k, g = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
    return float((k * g).sum() / math.sqrt((k * k).sum() * (g * g).sum()))


def alignment_matrix(embeddings) -> np.ndarray:
    """AM[i, j]: mean cosine of a view of i and a view of j; of two different views where i = j."""
    n, v = len(embeddings), len(embeddings[0])
    matrix = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            pairs = [(s, t) for s in range(v) for t in range(v) if i != j or s != t]
            matrix[i, j] = sum(cosine(embeddings[i][s], embeddings[j][t]) for s, t in pairs) / len(pairs)
    return matrix
