"""Statistics of two groups of scores, members and non-members; numpy and scipy.special only.

Everywhere a higher score is more member-like, so AUC = P(member > non-member) + P(equal)/2: 0.5 says
nothing, 1 tells all. A score that is not a finite number raises an :class:`EffaceError`: it is never turned
into 0.5.

The interval of an AUC (used by :func:`delong`, :func:`tails`, :func:`tost` and :func:`delong_difference`):

* DeLong's variance (DeLong et al. 1988) with the degrees of freedom of Brunner and Munzel (2000), on the
  logit scale: for 10 to 50 members the plain normal interval misses too often (``tests/test_stats.py``
  measures the coverage).
* Where that variance is zero (complete separation, all tied) or a group is smaller than ``FEW``:
  Clopper-Pearson on min(m, n) disjoint pairs. Complete separation needs every disjoint pair in order, so this
  is exact at AUC 0 and 1; in between it is wide, because the variance of an AUC is never more than AUC(1 -
  AUC)/min(m, n) (Birnbaum and Klose 1957).
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
"""Below this many members (or non-members) a variance estimated from them is not trusted."""


def check_finite(scores: np.ndarray, name: str = "scores") -> np.ndarray:
    """``scores`` as float64 ``[n]``; an :class:`EffaceError` if there are none, or any is NaN or infinite."""
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
    """DeLong's components: for each member the share of non-members below it ``[m]``, and for each non-member
    the share of members above it ``[n]``; ties count half. Both means are the AUC.
    """
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    below, above = np.sort(neg), np.sort(pos)
    v10 = (np.searchsorted(below, pos, "left") + np.searchsorted(below, pos, "right")) / (2 * neg.size)
    v01 = 1 - (np.searchsorted(above, neg, "left") + np.searchsorted(above, neg, "right")) / (2 * pos.size)
    return v10, v01


def auc(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """P(member > non-member) + P(equal)/2 by mid-ranks, from integer counts."""
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    below = np.sort(neg)
    twice = np.searchsorted(below, pos, "left").sum() + np.searchsorted(below, pos, "right").sum()
    return float(twice) / (2 * pos.size * neg.size)


@dataclass(frozen=True)
class AucEstimate:
    """An AUC, its standard error and degrees of freedom; ``pairs`` where only the exact fallback holds."""

    auc: float
    error: float
    freedom: float
    pairs: int | None


def estimate_auc(v10: np.ndarray, v01: np.ndarray) -> AucEstimate:
    """The :class:`AucEstimate` of the AUC whose DeLong components are ``v10`` ``[m]`` and ``v01`` ``[n]``."""
    value, m, n = float(np.clip(v10.mean(), 0, 1)), len(v10), len(v01)
    if min(m, n) < MIN_SAMPLES or value in (0.0, 1.0):
        return AucEstimate(value, math.inf, 1.0, min(m, n))
    error, freedom = welch(v10, v01)
    # The components are sums of multiples of 1/2m and 1/2n: anything this small is rounding around zero.
    return AucEstimate(value, error, freedom, min(m, n) if error < 1e-9 else None)


def welch(v10: np.ndarray, v01: np.ndarray) -> tuple[float, float]:
    """Standard error of mean(v10) + mean(v01) - const, and its degrees of freedom (Satterthwaite)."""
    a, b = float(v10.var(ddof=1)) / len(v10), float(v01.var(ddof=1)) / len(v01)
    if a + b < 1e-18:
        return 0.0, 1.0
    return math.sqrt(a + b), (a + b) ** 2 / (a**2 / (len(v10) - 1) + b**2 / (len(v01) - 1))


def interval(v10: np.ndarray, v01: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """``(auc, low, high)`` of the AUC with these DeLong components, two-sided at ``level``."""
    s = estimate_auc(v10, v01)
    if s.pairs is not None:
        return s.auc, *clopper_pearson(s.auc * s.pairs, s.pairs, level)
    reach = float(stdtrit(s.freedom, (1 + level) / 2)) * s.error / (s.auc * (1 - s.auc))
    center = float(logit(s.auc))
    return s.auc, float(expit(center - reach)), float(expit(center + reach))


def delong(members: np.ndarray, nonmembers: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """``(auc, low, high)``: the AUC and its two-sided interval at ``level``; never of zero width."""
    return interval(*placements(members, nonmembers), level)


def one_sided_p_values(v10: np.ndarray, v01: np.ndarray, null: float) -> tuple[float, float]:
    """One-sided p ``(of AUC <= null, of AUC >= null)``; inverting them gives :func:`interval` exactly."""
    s = estimate_auc(v10, v01)
    if s.pairs is not None:
        hits, misses = s.auc * s.pairs, (1 - s.auc) * s.pairs
        above = 1.0 if hits == 0 else float(betainc(hits, misses + 1, null))
        below = 1.0 if misses == 0 else float(betainc(misses, hits + 1, 1 - null))
        return above, below
    t = (float(logit(s.auc)) - float(logit(null))) * s.auc * (1 - s.auc) / s.error
    return float(stdtr(s.freedom, -t)), float(stdtr(s.freedom, t))


def tost(members: np.ndarray, nonmembers: np.ndarray, delta: float, center: float = 0.5) -> float:
    """p of "the AUC is not within ``center`` ± ``delta``": two one-sided tests.

    p < alpha exactly where the 1 - 2 alpha interval lies inside.
    """
    v10, v01 = placements(members, nonmembers)
    return max(one_sided_p_values(v10, v01, center - delta)[0], one_sided_p_values(v10, v01, center + delta)[1])


def delong_difference(
    first: tuple[np.ndarray, np.ndarray], others: Sequence[tuple[np.ndarray, np.ndarray]], level: float = 0.95
) -> tuple[float, float, float]:
    """``(difference, low, high)``: the AUC of ``first`` minus the mean AUC of ``others``.

    Each is ``(members, nonmembers)``. Paired: the same examples in the same order, scored by different models
    (taken as given). Raises if counts differ.
    """
    if any(len(a) != len(b) for other in others for a, b in zip(first, other, strict=True)):
        raise EffaceError("Paired AUCs need the same examples scored by both models.", "The counts differ.")
    v10, v01 = placements(*first)
    rest = [placements(*other) for other in others]
    d10 = v10 - np.mean([r[0] for r in rest], axis=0)
    d01 = v01 - np.mean([r[1] for r in rest], axis=0)
    value = float(d10.mean())
    if min(len(d10), len(d01)) < MIN_SAMPLES:
        return value, -1.0, 1.0  # a difference of two AUCs, and too few examples to say more
    error, freedom = welch(d10, d01)
    # No example moved: n like it can still hide the rule-of-three share of examples that would have.
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error if error > 1e-9 else zero_reach(d10, d01, level)
    return value, max(-1.0, value - reach), min(1.0, value + reach)


def zero_reach(v10: np.ndarray, v01: np.ndarray, level: float) -> float:
    """Half-width where nothing varied: the largest share of examples that min(m, n) can have missed."""
    return clopper_pearson(0, min(len(v10), len(v01)), level)[1]


def roc(members: np.ndarray, nonmembers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(fpr, tpr, thresholds)`` at every distinct score, ties grouped, any range; O(n log n).

    It starts at (0, 0) with threshold inf. A score >= threshold is called a member. Exact: shares of integer
    counts from one sort.
    """
    fp, tp, thresholds = sweep(check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores"))
    return fp / len(nonmembers), tp / len(members), thresholds


def sweep(pos: np.ndarray, neg: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`roc` as integer counts: ``(false positives, true positives, thresholds)``."""
    scores = np.concatenate([pos, neg])
    order = np.argsort(scores)[::-1]
    ranked, hit = scores[order], order < pos.size
    last = np.append(np.flatnonzero(np.diff(ranked)), ranked.size - 1)  # the last index of each group of ties
    tp = np.append(0, np.cumsum(hit)[last])
    fp = np.append(0, last + 1) - tp
    return fp, tp, np.append(np.inf, ranked[last])


def thin_roc(members: np.ndarray, nonmembers: np.ndarray, most: int = 200) -> dict[str, list[float]]:
    """A JSON-able ROC for figures: ``fpr``, ``tpr`` at no more than ``most`` points, both ends included."""
    fpr, tpr, _ = roc(members, nonmembers)
    kept = np.unique(np.linspace(0, len(fpr) - 1, most).round().astype(int))
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}


def best_threshold(members: np.ndarray, nonmembers: np.ndarray) -> tuple[float, float]:
    """``(threshold, balanced accuracy)`` of the best cut on *these* scores: judge it on others."""
    fpr, tpr, thresholds = roc(members, nonmembers)
    best = int(np.argmax(tpr - fpr))
    return float(thresholds[best]), float(1 + tpr[best] - fpr[best]) / 2


def clopper_pearson(hits: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share: ``hits`` of ``n``. Raises unless 0 <= hits <= n and n >= 1."""
    if n < 1 or not 0 <= hits <= n:
        raise EffaceError(f"{hits} of {n} is not a share.", "The number of hits must lie between 0 and n, and n >= 1.")
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return low, high


@dataclass(frozen=True)
class Rate:
    """A share with its exact interval; ``value`` is None only with a ``note`` saying why."""

    value: float | None
    interval: tuple[float, float] | None
    note: str

    @property
    def measured(self) -> tuple[float, float, float] | None:
        """``(value, low, high)``, or None."""
        return None if self.value is None or self.interval is None else (self.value, *self.interval)


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float, level: float = 0.95) -> Rate:
    """The largest TPR whose FPR on these non-members is <= ``fpr`` (no interpolation), with a Clopper-Pearson
    interval given the threshold. Fewer than 1/``fpr`` non-members cannot show such a rate: no value, and the
    note says so.
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
    """Percentile interval of ``statistic(*groups)``, each group resampled along its first axis, deterministic
    in ``seed``.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(*(g[rng.integers(0, len(g), len(g))] for g in groups)) for _ in range(draws)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def permutation(members: np.ndarray, nonmembers: np.ndarray, draws: int = 999, seed: int = 0) -> float:
    """Two-sided p of "members and non-members are exchangeable", by relabelling; never 0 (the smallest is
    1/(draws+1)).
    """
    pos, neg = check_finite(members, "member scores"), check_finite(nonmembers, "non-member scores")
    scores = np.concatenate([pos, neg])
    ordered = np.sort(scores)
    ranks = np.searchsorted(ordered, scores, "left") + np.searchsorted(
        ordered, scores, "right"
    )  # 2 x mid-rank, integer
    middle = int(ranks.sum()) * pos.size / scores.size
    seen = abs(int(ranks[: pos.size].sum()) - middle)
    rng = np.random.default_rng(seed)
    drawn = [abs(int(rng.permutation(ranks)[: pos.size].sum()) - middle) for _ in range(draws)]
    return (1 + int(np.count_nonzero(np.array(drawn) >= seen - 1e-9))) / (draws + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given; reject where adjusted < alpha."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def deciding_power(m: float, n: int, delta: float, alpha: float, truth: float) -> float:
    """Probability that m members and n non-members decide, if the AUC is ``truth``: inside or outside 0.5 ±
    ``delta``.
    """
    error = math.sqrt((1 / m + 1 / n) / 12)  # the variance of an AUC at 0.5, for continuous scores
    z = float(ndtri(1 - alpha))
    low, high = (truth - 0.5 + delta) / error, (0.5 + delta - truth) / error
    if min(low, high) <= 0:
        return float(ndtr(-min(low, high) - z))
    return max(0.0, float(ndtr(low - z)) + float(ndtr(high - z)) - 1)


def needed_n(delta: float, holdout: int, alpha: float = 0.05, power: float = 0.8, truth: float = 0.5) -> int | None:
    """How many forget examples would decide (with probability ``power``) against ``holdout`` non-members, if
    the AUC is ``truth``; None where no number would, because the holdout is too small or ``truth`` lies on
    the margin.
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
    """The largest ε that a *perfect* attack could certify with so many examples: log of the lower bound of
    its TPR over the upper bound of its FPR. An audit of this size says nothing about leaks beyond it.
    """
    return math.log(clopper_pearson(members, members, level)[0] / clopper_pearson(0, nonmembers, level)[1])


def rounded_down(value: float, digits: int = 1) -> float:
    """A ceiling as it is said: never more than could be shown."""
    return math.floor(value * 10**digits) / 10**digits


def histogram(groups: dict[str, np.ndarray], bins: int = 40) -> dict[str, Any]:
    """JSON-able counts of several groups on shared edges that include the smallest and the largest score of
    all.
    """
    values = {name: check_finite(scores, f"{name} scores") for name, scores in groups.items()}
    every = np.concatenate(list(values.values()))
    low, high = float(every.min()), float(every.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one point mass: no finer than floats can count
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = {name: [int(c) for c in np.histogram(scores, edges)[0]] for name, scores in values.items()}
    return {"edges": [float(edge) for edge in edges], "counts": counts}


def summarize_for_figures(pairs: dict[str, tuple[np.ndarray, np.ndarray]], points: int, bins: int) -> dict[str, Any]:
    """Of each model's ``(members, nonmembers)``: ``points`` of its ROC curve, and histograms on shared edges."""
    groups = {f"{name} members": pair[0] for name, pair in pairs.items()}
    groups |= {f"{name} non-members": pair[1] for name, pair in pairs.items()}
    return {
        "roc": {name: thin_roc(*pair, points) for name, pair in pairs.items()},
        "histogram": histogram(groups, bins),
    }


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in nats of each row of ``p``, ``q`` ``[n, classes]`` -> ``[n]``: 0 to log 2,
    finite on one-hot rows, summed (not averaged) over the classes.
    """
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(p > 0, p * np.log(p / middle), 0.0)
        right = np.where(q > 0, q * np.log(q / middle), 0.0)
    return cast(np.ndarray, np.maximum((left + right).sum(axis=1) / 2, 0.0))
