"""Reference implementations of U-LiRA, the forgetting score and KLoM: loops over models, attacks and bins."""

from __future__ import annotations

import itertools
import math

from tests.reference.likelihood import log_normal, mean, variance


def ratio(models_u, models_r, i, x) -> float:
    """Log likelihood ratio of the score x under laws fitted without the pair i."""
    u = [s for j, s in enumerate(models_u) if j != i]
    r = [s for j, s in enumerate(models_r) if j != i]
    return log_normal(x, mean(u), math.sqrt(variance(u))) - log_normal(x, mean(r), math.sqrt(variance(r)))


def epsilon(u, r, delta) -> float:
    """Triantafillou et al. 2024: the most telling of all attacks "score above a cut" and "below a cut"."""
    values = sorted({*u, *r})
    cuts = [-math.inf, *[(a + b) / 2 for a, b in itertools.pairwise(values)], math.inf]
    best = 0.0
    for cut in cuts:
        for upwards in (True, False):

            def called(s, cut=cut, upwards=upwards):
                return (s > cut) == upwards

            fpr = sum(called(s) for s in r) / len(r)
            fnr = sum(not called(s) for s in u) / len(u)
            if fpr == 0 and fnr == 0:
                return math.inf
            if fpr == 0 or fnr == 0:
                continue
            for top, bottom in ((1 - delta - fpr, fnr), (1 - delta - fnr, fpr)):
                if top > 0:
                    best = max(best, math.log(top / bottom))
    return best


def forgetting(epsilons) -> float:
    """Mean of 2/2^n, n the bin of width 0.5, 13 bins."""
    total = 0.0
    for e in epsilons:
        n = 13 if e >= 6 else int(e // 0.5) + 1
        total += 2 / 2**n
    return total / len(epsilons)


def kl(u, r, bins) -> float:
    """KL(r ‖ u) of histograms on the range of both, with half an example more in every bin."""
    low, high = min(*u, *r), max(*u, *r)
    width = (high - low) / bins

    def shares(values):
        counts = [0.5] * bins
        for v in values:
            counts[min(bins - 1, int((v - low) / width))] += 1
        return [c / (len(values) + bins / 2) for c in counts]

    return sum(p * math.log(p / q) for p, q in zip(shares(r), shares(u), strict=True))
