"""Ratios of two estimates from the same examples, with Fieller's interval.

    ratio = a / b        {r: (a - r b)² <= t² (V_aa - 2 r V_ab + r² V_bb)}        t: quantile of Student's distribution

a and b are sums of means over independent groups of examples; V is their covariance. The interval is an interval only
if b differs from 0 by more than t standard errors. Otherwise there is no ratio, however well a is known.

Source      Fieller, Some Problems in Interval Estimation, 1954.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Ratio:
    """A ratio with its interval, and the estimates that it is made of."""

    value: float
    low: float
    high: float
    top: float
    """a."""
    bottom: float
    """b."""

    def shifted(self, scale: float, shift: float) -> Ratio:
        """Return ``scale * ratio + shift``, with its interval."""
        low, high = sorted((scale * self.low + shift, scale * self.high + shift))
        return Ratio(scale * self.value + shift, low, high, self.top, self.bottom)


def ratio_of_means(groups: Sequence[np.ndarray], level: float = 0.95) -> Ratio | None:
    """Compute a / b, where (a, b) is the sum over groups of each group's mean.

    Args:
        groups: What each example contributes to a and to b, ``[n, 2]`` for each group of independent examples.
        level: Confidence level.

    Returns:
        The ratio; None if b is not above 0 at this level, or if a group has fewer than two examples.

    """
    if min(len(group) for group in groups) < 2:
        return None
    a, b = np.sum([group.mean(axis=0) for group in groups], axis=0)
    spread = np.sum([np.cov(group, rowvar=False) / len(group) for group in groups], axis=0)
    t = float(stdtrit(min(len(group) for group in groups) - 1, (1 + level) / 2))
    aa, ab, bb = spread[0, 0], spread[0, 1], spread[1, 1]
    if not b > 0 or b * b <= t * t * bb:
        return None
    g = t * t * bb / (b * b)
    center = (a / b - g * ab / bb) / (1 - g) if bb > 0 else a / b
    inner = aa - 2 * a / b * ab + (a / b) ** 2 * bb - (g * (aa - ab * ab / bb) if bb > 0 else 0.0)
    reach = t / b * math.sqrt(max(inner, 0.0)) / (1 - g)
    return Ratio(float(a / b), float(center - reach), float(center + reach), float(a), float(b))
