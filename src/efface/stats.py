"""Statistics of two groups of scores, members and non-members, with numpy and scipy.special only.

A higher score always means "more member-like", so AUC = P(member > non-member) + P(equal)/2: 0.5 is chance and 1 is
perfect separation. NaN and infinite scores raise an :class:`EffaceError` and never become an AUC of 0.5. Arguments
named ``members`` and ``nonmembers`` are scores ``[m]`` and ``[n]``.

Confidence interval of an AUC (:func:`delong`, :func:`interval`, :func:`one_sided_p_values`):

* DeLong's variance (DeLong et al. 1988) with the degrees of freedom of Brunner and Munzel (2000), on the logit scale.
  With 10 to 50 members the plain normal interval misses the true value too often (``tests/test_stats.py`` measures the
  coverage).
* If that variance is zero (complete separation, all scores tied) or a group is smaller than ``MIN_SAMPLES``:
  Clopper-Pearson on min(m, n) disjoint pairs. Complete separation needs every disjoint pair in order, so this is exact
  at AUC 0 and 1. In between it is conservative, because the variance of an AUC is at most AUC(1 - AUC)/min(m, n)
  (Birnbaum and Klose 1957).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.special import betainc, betaincinv, expit, logit, ndtr, ndtri, stdtr, stdtrit

from efface.errors import EffaceError

MIN_SAMPLES = 10
"""With fewer members or non-members than this, their estimated variance is not used."""


def check_finite(scores: np.ndarray, name: str = "scores") -> np.ndarray:
    """Convert scores to float64 ``[n]``; raise if there are none, or if any is NaN or infinite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise EffaceError(f"The {name} are not a list of numbers.", f"Their shape is {values.shape}, expected [n].")
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise EffaceError(
            f"{bad} of {values.size} {name} are not finite numbers.",
            "A model that diverged, or an observation that failed, cannot be scored.",
            "Look at the log of the run for the step at which its loss or weights stopped being finite.",
        )
    return values


def placements(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute DeLong's components; the mean of either one is the AUC.

    Returns:
        The share of non-members below each member ``[m]``, and the share of members above each non-member ``[n]``. Ties
        count half.

    """
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    below, above = np.sort(neg), np.sort(pos)
    v10 = (np.searchsorted(below, pos, "left") + np.searchsorted(below, pos, "right")) / (2 * neg.size)
    v01 = 1 - (np.searchsorted(above, neg, "left") + np.searchsorted(above, neg, "right")) / (2 * pos.size)
    return v10, v01


def auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Compute P(member > non-member) + P(equal)/2 from mid-ranks: 0.5 is chance, 1 is perfect separation."""
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    below = np.sort(neg)
    twice = np.searchsorted(below, pos, "left").sum() + np.searchsorted(below, pos, "right").sum()
    return float(twice) / (2 * pos.size * neg.size)


@dataclass(frozen=True)
class AucEstimate:
    """An AUC with its standard error and degrees of freedom; ``pairs`` is set if only the exact fallback is valid."""

    auc: float
    error: float
    freedom: float
    pairs: int | None


def estimate_auc(v10: np.ndarray, v01: np.ndarray) -> AucEstimate:
    """Estimate the AUC from its DeLong components ``v10`` ``[m]`` and ``v01`` ``[n]``."""
    value, m, n = float(np.clip(v10.mean(), 0, 1)), len(v10), len(v01)
    if min(m, n) < MIN_SAMPLES or value in (0.0, 1.0):
        return AucEstimate(value, math.inf, 1.0, min(m, n))
    error, freedom = welch(v10, v01)
    # The components are sums of multiples of 1/2m and 1/2n, so anything this small is rounding error around zero.
    return AucEstimate(value, error, freedom, min(m, n) if error < 1e-9 else None)


def welch(v10: np.ndarray, v01: np.ndarray) -> tuple[float, float]:
    """Compute the standard error of mean(v10) + mean(v01) and its degrees of freedom (Welch-Satterthwaite)."""
    a, b = float(v10.var(ddof=1)) / len(v10), float(v01.var(ddof=1)) / len(v01)
    if a + b < 1e-18:
        return 0.0, 1.0
    return math.sqrt(a + b), (a + b) ** 2 / (a**2 / (len(v10) - 1) + b**2 / (len(v01) - 1))


def interval(v10: np.ndarray, v01: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Compute an AUC and its two-sided interval at ``level`` from the components of :func:`placements`.

    Returns:
        ``(auc, low, high)``.

    """
    estimate = estimate_auc(v10, v01)
    if estimate.pairs is not None:
        return estimate.auc, *clopper_pearson(estimate.auc * estimate.pairs, estimate.pairs, level)
    margin = float(stdtrit(estimate.freedom, (1 + level) / 2)) * estimate.error / (estimate.auc * (1 - estimate.auc))
    center = float(logit(estimate.auc))
    return estimate.auc, float(expit(center - margin)), float(expit(center + margin))


def delong(members: np.ndarray, nonmembers: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Compute the AUC and its two-sided interval at ``level``, as ``(auc, low, high)``; the width is never zero.

    Example:
        >>> value, low, high = delong(scores[split.forget], scores[split.holdout])

    """
    return interval(*placements(members, nonmembers), level)


def one_sided_p_values(v10: np.ndarray, v01: np.ndarray, null: float) -> tuple[float, float]:
    """Compute the p-values of AUC <= ``null`` and of AUC >= ``null``; inverting them gives :func:`interval` exactly."""
    estimate = estimate_auc(v10, v01)
    if estimate.pairs is not None:
        hits, misses = estimate.auc * estimate.pairs, (1 - estimate.auc) * estimate.pairs
        above = 1.0 if hits == 0 else float(betainc(hits, misses + 1, null))
        below = 1.0 if misses == 0 else float(betainc(misses, hits + 1, 1 - null))
        return above, below
    t = (float(logit(estimate.auc)) - float(logit(null))) * estimate.auc * (1 - estimate.auc) / estimate.error
    return float(stdtr(estimate.freedom, -t)), float(stdtr(estimate.freedom, t))


def delong_difference(
    first: tuple[np.ndarray, np.ndarray], others: Sequence[tuple[np.ndarray, np.ndarray]], level: float = 0.95
) -> tuple[float, float, float]:
    """Compute the AUC of ``first`` minus the mean AUC of ``others``, as ``(difference, low, high)``.

    The comparison is paired: all models must have scored the same examples in the same order.

    Args:
        first: ``(members, nonmembers)`` of one model.
        others: ``(members, nonmembers)`` of each model that it is compared with.
        level: Confidence level of the two-sided interval.

    Raises:
        EffaceError: The models scored different numbers of examples.

    """
    if any(len(a) != len(b) for other in others for a, b in zip(first, other, strict=True)):
        raise EffaceError("Paired AUCs need the same examples scored by both models.", "The counts differ.")
    v10, v01 = placements(*first)
    rest = [placements(*other) for other in others]
    d10 = v10 - np.mean([r[0] for r in rest], axis=0)
    d01 = v01 - np.mean([r[1] for r in rest], axis=0)
    value = float(d10.mean())
    if min(len(d10), len(d01)) < MIN_SAMPLES:
        return value, -1.0, 1.0  # too few examples: only the range of a difference of two AUCs is certain
    error, freedom = welch(d10, d01)
    # If no example changed, up to the rule-of-three share of the population may still have changed.
    margin = float(stdtrit(freedom, (1 + level) / 2)) * error if error > 1e-9 else zero_variance_margin(d10, d01, level)
    return value, max(-1.0, value - margin), min(1.0, value + margin)


def zero_variance_margin(v10: np.ndarray, v01: np.ndarray, level: float) -> float:
    """Compute the margin used if nothing varied: the largest share of examples that min(m, n) of them can miss."""
    return clopper_pearson(0, min(len(v10), len(v01)), level)[1]


def roc(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the ROC curve at every distinct score; O(n log n).

    Returns:
        ``(fpr, tpr, thresholds)``. A score >= threshold counts as a member. The curve starts at (0, 0) with threshold
        infinity and has one point for each distinct score; the rates are exact shares of integer counts.

    """
    fp, tp, thresholds = sweep(check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores"))
    return fp / len(nonmembers), tp / len(members), thresholds


def sweep(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute :func:`roc` as integer counts: ``(false positives, true positives, thresholds)``."""
    scores = np.concatenate([pos, neg])
    order = np.argsort(scores)[::-1]
    ranked, is_member = scores[order], order < pos.size
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)  # the last index of each group of ties
    tp = np.append(0, np.cumsum(is_member)[last])
    fp = np.append(0, last + 1) - tp
    return fp, tp, np.append(np.inf, ranked[last])


def thin_roc(members: np.ndarray, nonmembers: np.ndarray, most: int = 200) -> dict[str, list[float]]:
    """Thin the ROC curve to at most ``most`` points for figures; the result is JSON-able and keeps both ends."""
    fpr, tpr, _ = roc(members, nonmembers)
    kept = np.unique(np.linspace(0, len(fpr) - 1, most).round().astype(int))
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}


def best_threshold(members: np.ndarray, nonmembers: np.ndarray) -> tuple[float, float]:
    """Find the threshold with the best balanced accuracy on *these* scores; evaluate it on others.

    Returns:
        ``(threshold, balanced accuracy)``.

    """
    fpr, tpr, thresholds = roc(members, nonmembers)
    best = int(np.argmax(tpr - fpr))
    return float(thresholds[best]), float(1 + tpr[best] - fpr[best]) / 2


def clopper_pearson(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Compute the exact interval of a proportion, ``hits`` of ``n``; raise unless 0 <= hits <= n and n >= 1."""
    if n < 1 or not 0 <= hits <= n:
        raise EffaceError(
            f"{hits} of {n} is not a proportion.", "The number of hits must lie between 0 and n, and n >= 1."
        )
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return low, high


def sign_test(more: int, fewer: int) -> float:
    """Compute the exact one-sided p-value of pairs that changed: ``more`` one way and ``fewer`` the other.

    On right and wrong answers of two models to the same questions it is the exact test of McNemar. Pairs that did not
    change say nothing and are not counted. 1 if none changed.
    """
    return 1.0 if more == 0 else float(betainc(more, fewer + 1, 0.5))


@dataclass(frozen=True)
class Rate:
    """A proportion with its exact interval; ``value`` is None if there is none, and ``note`` says why."""

    value: float | None
    interval: tuple[float, float] | None
    note: str

    @property
    def measured(self) -> tuple[float, float, float] | None:
        """``(value, low, high)``, or None if there is no value."""
        return None if self.value is None or self.interval is None else (self.value, *self.interval)


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float, level: float = 0.95) -> Rate:
    """Compute the largest TPR whose FPR on these non-members is at most ``fpr``, without interpolation.

    Returns:
        The TPR with its Clopper-Pearson interval, given the threshold. With fewer than 1/``fpr`` non-members such a
        rate cannot be measured: then there is no value, and the note says so.

    """
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    allowed = math.floor(fpr * neg.size + 1e-9)
    if allowed < 1:
        need = math.ceil(1 / fpr - 1e-9)
        return Rate(None, None, f"an FPR of {fpr:g} needs at least {need} non-members; there are {neg.size}")
    fp, tp, _ = sweep(pos, neg)
    hits = int(tp[fp <= allowed].max())
    note = f"interval exact given the threshold, which {allowed} of {neg.size} non-members may pass"
    return Rate(hits / pos.size, clopper_pearson(hits, pos.size, level), note)


def bootstrap(
    statistic: Callable[..., float],
    *groups: np.ndarray,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval ``(low, high)`` of ``statistic(*groups)``.

    Each group is resampled separately along its first axis. The result is deterministic in ``seed``.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(g[rng.integers(0, len(g), len(g))] for g in groups)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation(members: np.ndarray, nonmembers: np.ndarray, draws: int = 999, seed: int = 0) -> float:
    """Compute the two-sided permutation p-value of "members and non-members are exchangeable".

    It is never 0; the smallest value is 1/(draws + 1).
    """
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    scores = np.concatenate([pos, neg])
    ordered = np.sort(scores)
    # Twice the mid-rank, which is an integer.
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    middle = int(ranks.sum()) * pos.size / scores.size
    observed = abs(int(ranks[: pos.size].sum()) - middle)
    rng = np.random.default_rng(seed)
    drawn = [abs(int(rng.permutation(ranks)[: pos.size].sum()) - middle) for _ in range(draws)]
    return (1 + int(np.count_nonzero(np.array(drawn) >= observed - 1e-9))) / (draws + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's step-down procedure, in the order given; reject where the result is < alpha."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def holm_factors(p: Sequence[float]) -> list[float]:
    """By how much Holm's procedure corrects each p-value, at least 1, in the order given.

    The result of :func:`holm` is below alpha exactly where the p-value itself is below alpha divided by its factor. So
    the interval at that level decides as the procedure does.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.arange(len(values), 0, -1)
    stepped = np.maximum.accumulate(values[order] * steps)
    factors = np.empty_like(values)
    factors[order] = np.where(values[order] > 0, stepped / np.maximum(values[order], 1e-300), steps)
    return [float(value) for value in factors]


def deciding_power(m: float, n: int, delta: float, alpha: float, truth: float) -> float:
    """Compute the power of the equivalence test: how likely m members and n non-members give a decision.

    Args:
        m: Number of members; may be infinite.
        n: Number of non-members.
        delta: Margin. A decision is "inside" or "outside" 0.5 ± ``delta``.
        alpha: Level of each one-sided test.
        truth: The true AUC.

    """
    error = math.sqrt((1 / m + 1 / n) / 12)  # the variance of an AUC at 0.5, for continuous scores
    z = float(ndtri(1 - alpha))
    low, high = (truth - 0.5 + delta) / error, (0.5 + delta - truth) / error
    if min(low, high) <= 0:
        return float(ndtr(-min(low, high) - z))
    return max(0.0, float(ndtr(low - z)) + float(ndtr(high - z)) - 1)


def needed_n(delta: float, holdout: int, alpha: float = 0.05, power: float = 0.8, truth: float = 0.5) -> int | None:
    """Compute how many forget examples are needed for a decision with probability ``power``.

    Args:
        delta: Margin around an AUC of 0.5.
        holdout: Number of non-members.
        alpha: Level of each one-sided test.
        power: Wanted probability of a decision.
        truth: The true AUC.

    Returns:
        The number, or None if no number suffices because the holdout is too small or ``truth`` lies on the margin.

    """
    if deciding_power(math.inf, holdout, delta, alpha, truth) < power:
        return None
    low, high = 0, 1
    while deciding_power(high, holdout, delta, alpha, truth) < power:
        low, high = high, 2 * high
        if high > 10**9:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if deciding_power(middle, holdout, delta, alpha, truth) >= power else (middle, high)
    return high


def epsilon_ceiling(members: int, nonmembers: int, level: float = 0.95) -> float:
    """Compute the largest ε that a *perfect* attack could certify with this many examples.

    ε = log(lower bound of its TPR / upper bound of its FPR). An audit of this size cannot detect a larger leak.
    """
    return math.log(clopper_pearson(members, members, level)[0] / clopper_pearson(0, nonmembers, level)[1])


def rounded_down(value: float, digits: int = 1) -> float:
    """Round down for display, so that a printed bound never claims more than was measured."""
    return math.floor(value * 10**digits) / 10**digits


def histogram(groups: dict[str, np.ndarray], bins: int = 40) -> dict[str, Any]:
    """Count the scores of several groups on shared bin edges from the smallest to the largest score; JSON-able."""
    values = {name: check_finite(scores, f"{name} scores") for name, scores in groups.items()}
    pooled = np.concatenate(list(values.values()))
    low, high = float(pooled.min()), float(pooled.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a point mass: bins this narrow are below float precision
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = {name: [int(c) for c in np.histogram(scores, edges)[0]] for name, scores in values.items()}
    return {"edges": [float(edge) for edge in edges], "counts": counts}


def summarize_for_figures(pairs: dict[str, tuple[np.ndarray, np.ndarray]], points: int, bins: int) -> dict[str, Any]:
    """Summarize the ``(members, nonmembers)`` of each model: ROC curves of ``points`` points, and histograms."""
    groups = {f"{name} members": pair[0] for name, pair in pairs.items()}
    groups |= {f"{name} non-members": pair[1] for name, pair in pairs.items()}
    return {
        "roc": {name: thin_roc(*pair, points) for name, pair in pairs.items()},
        "histogram": histogram(groups, bins),
    }


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute the Jensen-Shannon divergence of each row of ``p`` and ``q`` ``[n, classes]``, in nats.

    Returns:
        Divergences ``[n]`` from 0 (equal) to log 2 (disjoint); finite on one-hot rows.

    """
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log(p / middle), 0.0)
        right = np.where(q > 0, q * np.log(q / middle), 0.0)
    return cast(np.ndarray, np.maximum((left + right).sum(axis=1) / 2, 0.0))
