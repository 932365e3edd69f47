"""The checks of early stopping in loops: scores over views, AUCs, the distance."""

from __future__ import annotations

from collections.abc import Sequence

from tests.reference.margin_matching import agreement, of_pair

Vector = Sequence[float]


def scores(
    views: Sequence[Sequence[Vector]], bank: int, tau: float, captions: Sequence[Vector] | None = None
) -> list[float]:
    """``views[k][i]``: example i under view k; mean over the pairs of views of the margin against the last ``bank``.

    With captions, of the margin of each example's caption over the last ``bank`` ones.
    """
    pairs = [
        agreement(first, second, bank, tau) if captions is None else of_pair(first, second, captions, bank, tau)
        for first, second in zip(views[::2], views[1::2], strict=True)
    ]
    return [sum(values) / len(values) for values in zip(*pairs, strict=True)]


def auc(members: Vector, others: Vector) -> float:
    """Share of pairs in the right order; ties are half."""
    won = sum(1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others)
    return won / (len(members) * len(others))


def distance(forget: Vector, retain: Vector, before: Vector) -> float:
    """Over the spaces: F from 1/2, and how far R fell since the start."""
    return max(max(abs(a - 0.5), r0 - r) for a, r, r0 in zip(forget, retain, before, strict=True))
