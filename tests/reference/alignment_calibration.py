"""Alignment calibration on given embeddings: first ``kept`` rows are retained, the others forgotten."""

import math

from tests.reference.simclr import dot, unit


def simclr_parts(first, second, tau):
    """(attract, repel) of each example, both directions averaged."""
    a, b = [unit(u) for u in first], [unit(u) for u in second]
    z, count = a + b, len(a)

    def log_sum(i):
        return math.log(sum(math.exp(dot(z[i], z[k]) / tau) for k in range(2 * count) if k != i))

    return [(dot(a[i], b[i]) / tau, (log_sum(i) + log_sum(i + count)) / 2) for i in range(count)]


def moco_parts(queries, keys, queue, tau):
    q, k = [unit(u) for u in queries], [unit(u) for u in keys]
    pairs = zip(q, k, strict=True)
    return [(dot(u, v) / tau, math.log(sum(math.exp(dot(u, n) / tau) for n in [v, *queue]))) for u, v in pairs]


def byol_parts(predicted, target):
    """``predicted``, ``target``: (first views, second views); twice the cosine, and the constant 2."""
    (p, q), (t, s) = ([[unit(u) for u in rows] for rows in views] for views in (predicted, target))
    return [(dot(p[i], s[i]) + dot(q[i], t[i]), 2.0) for i in range(len(p))]


def simsiam_parts(predicted, target):
    """As for BYOL, with the mean cosine once, and nothing that repels."""
    return [(attract / 2, 0.0) for attract, _ in byol_parts(predicted, target)]


def loss(parts, anchors, thirds, kept, alpha, beta, gamma, share):
    gone = len(parts) - kept
    size = kept + alpha * gone
    value = sum(repel - attract for attract, repel in parts[:kept]) / size
    for attract, repel in parts[kept:]:
        value += (gamma * repel - alpha * attract) / size
    for u, v in zip(anchors[kept:], thirds, strict=True):
        value += beta * share * dot(unit(u), unit(v)) / gone
    return value
