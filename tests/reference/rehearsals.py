"""Slow twin of the pooled AUC of rehearsals and its two-way error, in loops and float64."""

from __future__ import annotations

import math


def placement(member: float, others: list[float]) -> float:
    """P(member > other) + P(equal)/2."""
    return sum(1.0 if member > one else 0.5 if member == one else 0.0 for one in others) / len(others)


def pooled(
    sets: list[tuple[list[float], dict[str, float]]], names: list[list[str]] | None = None
) -> tuple[float, float, float]:
    """AUC, standard error and degrees of freedom.

    Args:
        sets: For each rehearsal the scores of its members, and those of its never-trained examples by key.
        names: For each rehearsal the keys of its members; by default no example is in two of them.

    """
    sizes = [len(members) for members, _ in sets]
    means = [sum(placement(one, list(unseen.values())) for one in members) / len(members) for members, unseen in sets]
    value = sum(k * a for k, a in zip(sizes, means, strict=True)) / sum(sizes)
    average = sum(sizes) / len(sizes)
    linear = [value + k / average * (a - value) for k, a in zip(sizes, means, strict=True)]
    shares = []
    for key in {key for _, unseen in sets for key in unseen}:
        seen = [(len(members), 1 - placement(unseen[key], members)) for members, unseen in sets if key in unseen]
        shares.append(sum(k * s for k, s in seen) / sum(k for k, _ in seen))

    def part(values: list[float]) -> float:
        middle = sum(values) / len(values)
        return sum((one - middle) ** 2 for one in values) / (len(values) - 1) / len(values)

    a, b, c, repeated = part(linear), part(shares), 0.0, set[str]()
    for s, (mine, unseen) in enumerate(sets):
        for t, (others, also) in enumerate(sets):
            for i, member in enumerate(mine):
                for j, other in enumerate(others):
                    if s != t and names is not None and names[s][i] == names[t][j]:
                        apart = placement(member, list(unseen.values())) - value
                        c += apart * (placement(other, list(also.values())) - value) / sum(sizes) ** 2
                        repeated.add(names[s][i])
    c = max(0.0, c)
    below = a**2 / (len(linear) - 1) + b**2 / (len(shares) - 1)
    if c:
        first = (a + b) ** 2 / below
        below = (a + b) ** 2 / first + c**2 / (len(repeated) - 1)
    return value, math.sqrt(a + b + c), (a + b + c) ** 2 / below
