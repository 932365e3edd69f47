"""BYOL's regression of normalized targets, both directions averaged."""

from tests.reference.simclr import unit


def loss(predicted_first, predicted_second, target_first, target_second):
    def square(u, v):
        return sum((x - y) ** 2 for x, y in zip(unit(u), unit(v), strict=True))

    rows = zip(predicted_first, predicted_second, target_first, target_second, strict=True)
    return [(square(p1, t2) + square(p2, t1)) / 2 for p1, p2, t1, t2 in rows]
