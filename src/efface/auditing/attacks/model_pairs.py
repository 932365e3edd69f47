"""Statistics of two populations of models, N unlearned and N retrained ones, compared example by example.

    U-LiRA            Λ_i(x) = log p(s | s_j(x), unlearned j ≠ i) - log p(s | s_j(x), retrained j ≠ i)
    forgetting score  ε(x) = max over attacks of  log (1 - δ - FPR)/FNR,  log (1 - δ - FNR)/FPR
                      F = mean_x 2^(1 - bin(ε(x)))                                        0 (all are told apart) to 1
    KLoM              mean_x KL(retrained ‖ unlearned) of the margins of x, from histograms on shared edges
    KLoM, published   mean_x Σ_b p_b log p_b / q_b    p: unlearned, q: retrained, at least 1e-5 where p > 0, then scaled

s_j(x): the score of x under model j; arrays are [N, n]. Every statistic has a ceiling that N models can reach, and a
zero line: its value for retrained models against other retrained models.

Source      U-LiRA: Hayes et al., Inexact Unlearning Needs More Careful Evaluations, 2024, arXiv 2403.01218. Forgetting
            score: Triantafillou et al., Are We Making Progress in Unlearning?, 2024, arXiv 2406.09073. KLoM: Georgiev
            et al., Attribute-to-Delete, 2024, arXiv 2410.23232. Beside the papers their code: the competition's
            (google-deepmind/unlearning_evaluation) and that of data-unlearning-bench.
Departures  U-LiRA leaves out the pair (i, i) on both sides, so that equal populations give 0.5 and not less. The
            attacks of the forgetting score are every threshold in both directions, and every two that are at least
            half of the narrower population's range apart, between which scores are called its own. The competition's
            code lays grids: one threshold in the direction of the medians, and two about as far apart as that range,
            ± 2. As in the paper, an attack with one rate of zero is left out, and one with two gives ε = ∞; the code
            calls a population of less than a hundredth of the other's range ε = 50. KLoM adds half an example to every
            bin (Krichevsky and Trofimov), so it is finite for disjoint populations, and no example falls outside the
            edges. The published form is the code's, in the other direction: its histogram loses the largest score
            (kept here where nothing else would be left). Intervals are jackknife intervals over groups of pairs.
Tests cover a histogram that drops the largest score; a KL of 0 or nan for disjoint populations; a model that is scored
            under a distribution it helped to fit; thresholds on [0, 1] only; a narrow population between two
            thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from efface import stats
from efface.errors import EffaceError

BIN_WIDTH, HISTOGRAM_BIN_COUNT = 0.5, 13
"""Bins of ε in the forgetting score, as in the NeurIPS 2023 competition."""
DELTA = 1e-5
"""δ of the competition's code."""
PUBLISHED_FLOOR, PUBLISHED_RANGE = 1e-5, 100.0
"""Least share of a bin, and largest margin, in the code that published KLoM."""
Statistic = Callable[[np.ndarray, np.ndarray], float]
"""``(unlearned [N, n], retrained [N, n]) -> number``."""


def paired(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first N models of each population, N being the smaller size.

    Raises:
        EffaceError: If there are fewer than 4 pairs, or the numbers of examples differ.

    """
    count = min(len(unlearned), len(retrained))
    if unlearned.shape[1] != retrained.shape[1] or count < 4:
        raise EffaceError(
            f"{unlearned.shape} and {retrained.shape} scores (models, examples) cannot be paired.",
            "At least 4 models of each kind are needed, and the same examples under all of them.",
        )
    return unlearned[:count], retrained[:count]


# ---- U-LiRA ----


def likelihood_ratios(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Λ of every unlearned and every retrained model, both ``[N, n]``; a high ratio means unlearned."""
    unlearned, retrained = paired(unlearned, retrained)
    inside, outside = _without_one(unlearned), _without_one(retrained)

    def ratio(x: np.ndarray) -> np.ndarray:
        return _log_normal(x, *inside) - _log_normal(x, *outside)

    return ratio(unlearned), ratio(retrained)


def ulira(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Return the AUC of Λ over all models and examples; 0.5: unlearned and retrained models look alike."""
    high, low = likelihood_ratios(unlearned, retrained)
    return stats.auc(high.ravel(), low.ravel())


def _without_one(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation (n - 1) of each column without each row in turn, both ``[N, n]``."""
    count = len(scores)
    middle = scores.mean(axis=0)
    moved = scores - middle  # centered, to avoid cancellation
    mean = -moved / (count - 1)
    square = ((moved**2).sum(axis=0) - moved**2 - (count - 1) * mean**2) / (count - 2)
    # Models that agree to the last digit on an example must not make its likelihood infinite.
    floor = 1e-3 * np.sqrt(scores.var(axis=0, ddof=1).mean()) + 1e-12
    return middle + mean, np.maximum(np.sqrt(np.maximum(square, 0)), floor)


def _log_normal(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return -(((x - mean) / scale) ** 2) / 2 - np.log(scale)


# ---- the forgetting score ----


def example_epsilons(unlearned: np.ndarray, retrained: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Return ε >= 0 of every example ``[n]``; infinite where an attack makes no mistake."""
    unlearned, retrained = paired(unlearned, retrained)
    return np.array([_epsilon(u, r, delta) for u, r in zip(unlearned.T, retrained.T, strict=True)])


def _epsilon(unlearned: np.ndarray, retrained: np.ndarray, delta: float) -> float:
    fp, tp, _ = stats.sweep(unlearned, retrained)
    fpr, tpr = fp / len(retrained), tp / len(unlearned)  # first "unlearned" above each cut, then below it
    errors = [(fpr, 1 - tpr), (1 - fpr, tpr), _two_thresholds(unlearned, retrained)]
    false, missed = (np.concatenate(side) for side in zip(*errors, strict=True))
    tiny = 1e-9
    if np.any((false < tiny) & (missed < tiny)):
        return math.inf
    both = (false > tiny) & (missed > tiny)
    top = 1 - delta - np.stack([false[both], missed[both]])
    with np.errstate(divide="ignore"):
        values = np.log(np.maximum(top, 0)) - np.log(np.stack([missed[both], false[both]]))
    return max(0.0, float(values.max(initial=0.0)))


def _two_thresholds(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both error rates of every attack that calls scores between two thresholds the narrower population's.

    The thresholds are at least half of its range apart: shorter intervals would only find where chance put its scores.
    """
    narrow, wide = sorted((np.sort(unlearned), np.sort(retrained)), key=np.ptp)
    first, last = np.triu_indices(len(narrow))
    long = narrow[last] - narrow[first] >= np.ptp(narrow) / 2
    low, high = narrow[first][long], narrow[last][long]

    def share(scores: np.ndarray) -> np.ndarray:
        return (np.searchsorted(scores, high, "right") - np.searchsorted(scores, low, "left")) / len(scores)

    within, wrong = share(narrow), share(wide)
    return (1 - within, wrong) if np.ptp(retrained) <= np.ptp(unlearned) else (wrong, 1 - within)


def forgetting_from_epsilons(epsilon: np.ndarray) -> float:
    """Compute F from ε ``[n]``: the mean of 2^(1 - bin) with 13 bins of width 0.5; higher is better, at most 1."""
    bins = np.digitize(epsilon, BIN_WIDTH * np.arange(HISTOGRAM_BIN_COUNT))
    return float(np.mean(2.0 ** (1 - bins)))


def forgetting_score(unlearned: np.ndarray, retrained: np.ndarray, delta: float = DELTA) -> float:
    """Compute the forgetting score F of the NeurIPS 2023 competition; higher is better, at most 1."""
    return forgetting_from_epsilons(example_epsilons(unlearned, retrained, delta))


def largest_epsilon(count: int, delta: float = DELTA) -> float:
    """Return the largest finite ε that ``count`` models of each kind can show: one mistake of each kind."""
    return math.log((1 - delta) * count - 1)


# ---- KLoM ----


def example_divergences(unlearned: np.ndarray, retrained: np.ndarray, bins: int = 20) -> np.ndarray:
    """Return KL(retrained ‖ unlearned) of every example ``[n]`` in nats, from 0 to :func:`largest_divergence`."""
    unlearned, retrained = paired(unlearned, retrained)
    found = np.zeros(unlearned.shape[1])
    for i, (u, r) in enumerate(zip(unlearned.T, retrained.T, strict=True)):
        counts = stats.histogram({"u": u, "r": r}, bins)["counts"]
        found[i] = _kl(np.array(counts["r"]), np.array(counts["u"]))
    return found


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    p, q = (p + 0.5) / (p.sum() + len(p) / 2), (q + 0.5) / (q.sum() + len(q) / 2)
    return float((p * np.log(p / q)).sum())


def klom(unlearned: np.ndarray, retrained: np.ndarray, bins: int = 20) -> float:
    """Return KLoM, the mean KL over the examples in nats; lower is better."""
    return float(example_divergences(unlearned, retrained, bins).mean())


def klom_published(unlearned: np.ndarray, retrained: np.ndarray, bins: int = 20) -> float:
    """Return KLoM as the public code computes it, KL(unlearned ‖ retrained), for comparison with published numbers."""
    unlearned, retrained = paired(unlearned, retrained)
    pairs = zip(unlearned.T, retrained.T, strict=True)
    return float(np.mean([_published_divergence(u, r, bins) for u, r in pairs]))


def _published_divergence(unlearned: np.ndarray, retrained: np.ndarray, bins: int) -> float:
    u, r = (np.clip(x, -PUBLISHED_RANGE, PUBLISHED_RANGE) for x in (unlearned, retrained))
    low, high = min(u.min(), r.min()), max(u.max(), r.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    p, q = (_shares_without_the_largest(x, edges) for x in (u, r))
    q = np.where(p > 0, np.maximum(q, PUBLISHED_FLOOR), q)
    at = p > 0
    return float((p[at] * np.log(p[at] / (q[at] / q.sum()))).sum())


def _shares_without_the_largest(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    kept = x[x < edges[-1]]
    counts = np.histogram(kept if len(kept) else x, edges)[0]
    return counts / counts.sum()


def largest_divergence(count: int, bins: int = 20) -> float:
    """Return the KL of two populations of ``count`` models, each within one bin and sharing none."""
    one, other = np.zeros(bins), np.zeros(bins)
    one[0] = other[-1] = count
    return _kl(one, other)


# ---- zero line and interval ----


def null_statistic(statistic: Statistic, retrained: np.ndarray) -> float | None:
    """Return the mean statistic of each half of the retrained models against the other; None for fewer than 8."""
    half = len(retrained) // 2
    if half < 4:
        return None
    one, other = retrained[:half], retrained[half : 2 * half]
    return (statistic(one, other) + statistic(other, one)) / 2


def jackknife(
    statistic: Statistic, unlearned: np.ndarray, retrained: np.ndarray, groups: int = 8, level: float = 0.95
) -> tuple[float, float, float]:
    """Compute a statistic of all pairs and its jackknife interval over groups of pairs.

    Pairs are left out rather than examples, because the scores of two examples under one model are dependent.

    Args:
        statistic: Statistic of two populations of scores.
        unlearned: Scores ``[N, n]`` under the unlearned models.
        retrained: Scores ``[N, n]`` under the retrained models.
        groups: Number of groups.
        level: Confidence level.

    Returns:
        ``(value, low, high)``; the interval is infinite for too few pairs.

    """
    unlearned, retrained = paired(unlearned, retrained)
    value, count = statistic(unlearned, retrained), len(unlearned)
    # At least 4 pairs must remain: with fewer than 8, leave out one at a time.
    groups = min(groups, count) if count - -(-count // groups) >= 4 else count
    member = np.arange(count) % groups
    if count - int(np.bincount(member).max()) < 4:
        return value, -math.inf, math.inf
    left = np.array([statistic(unlearned[member != g], retrained[member != g]) for g in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((left - left.mean()) ** 2).sum()))
    reach = float(stdtrit(groups - 1, (1 + level) / 2)) * error
    return value, value - reach, value + reach
