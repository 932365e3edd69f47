"""Reference implementation of the steps until half of the lost AUC is back, in loops."""

from __future__ import annotations


def auc(members, others):
    return sum((a > b) + 0.5 * (a == b) for a in members for b in others) / (len(members) * len(others))


def returned(original, curve, least):
    """curve: (steps, auc) pairs from step 0."""
    lost = original - curve[0][1]
    if lost <= least:
        return None
    for steps, value in curve:
        if value >= curve[0][1] + lost / 2:
            return steps
    return None
