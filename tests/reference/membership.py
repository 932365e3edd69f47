"""Reference implementations of the membership signals and attacks: the papers' definitions, example by example."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

getcontext().prec = 60


def probabilities(logits) -> list[Decimal]:
    """Softmax in 60 digits, so that no probability is 1 or 0 by rounding."""
    weights = [Decimal(float(z)).exp() for z in logits]
    return [w / sum(weights) for w in weights]


def confidence(logits, label) -> float:
    return float(probabilities(logits)[label])


def cross_entropy(logits, label) -> float:
    """log p_y: the negated loss, so that higher is more member-like."""
    return float(probabilities(logits)[label].ln())


def margin(logits, label) -> float:
    """log p_y/(1 - p_y), as LiRA scales confidence."""
    p = probabilities(logits)[label]
    return float((p / (1 - p)).ln())


def modified_entropy(logits, label) -> float:
    """Song and Mittal 2021, equation 2: lower for members."""
    p = probabilities(logits)
    total = -(1 - p[label]) * p[label].ln()
    for i, q in enumerate(p):
        if i != label:
            total -= q * (1 - q).ln()
    return float(total)


def calibrated(score, references) -> list[float]:
    """Each score minus the mean of the references' scores of the same example."""
    return [s - sum(r[i] for r in references) / len(references) for i, s in enumerate(score)]


def rmia(x, x_references, z, z_references, gamma, a) -> list[float]:
    """Zarifzadeh et al. 2024, offline: share of z with (p(x)/P(x)) / (p(z)/P(z)) >= gamma."""

    def ratio(own, others):
        p = 1 / (1 + math.exp(-own))
        out = sum(1 / (1 + math.exp(-o)) for o in others) / len(others)
        return p / (((1 + a) * out + (1 - a)) / 2)

    population = [ratio(own, [r[i] for r in z_references]) for i, own in enumerate(z)]
    scores = []
    for i, own in enumerate(x):
        mine = ratio(own, [r[i] for r in x_references])
        scores.append(sum(mine / other >= gamma for other in population) / len(population))
    return scores
