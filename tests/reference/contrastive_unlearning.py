"""Push from retained examples of the same label, pull to those of another, one anchor at a time."""

import math

from tests.reference.simclr import dot, unit


def anchor(z, label, others, labels, tau):
    """L_i, or ``None`` where there is nothing to pull to."""
    same = [dot(z, other) / tau for other, known in zip(others, labels, strict=True) if known == label]
    apart = [dot(z, other) / tau for other, known in zip(others, labels, strict=True) if known != label]
    if not apart:
        return None
    pull = sum(apart) / len(apart)
    if not same:
        return math.log(len(apart)) - pull
    return math.log(sum(math.exp(value) for value in same)) - pull


def loss(features, y, other_features, other_y, tau):
    z, others = [unit(row) for row in features], [unit(row) for row in other_features]
    values = [anchor(row, label, others, other_y, tau) for row, label in zip(z, y, strict=True)]
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else 0.0
