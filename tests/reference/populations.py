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
    """Triantafillou et al. 2024: the most telling of all attacks with one threshold, and of some with two."""
    values = sorted({*u, *r})
    cuts = [-math.inf, *[(a + b) / 2 for a, b in itertools.pairwise(values)], math.inf]
    attacks = [(low, math.inf, True) for low in cuts] + [(-math.inf, high, True) for high in cuts]
    retrained_is_narrow = max(r) - min(r) <= max(u) - min(u)
    narrow = r if retrained_is_narrow else u
    for low, high in itertools.combinations_with_replacement(sorted(narrow), 2):
        if high - low >= (max(narrow) - min(narrow)) / 2:
            attacks.append((low, high, not retrained_is_narrow))
    best = 0.0
    for low, high, within_is_unlearned in attacks:

        def called(s, low=low, high=high, within_is_unlearned=within_is_unlearned):
            return (low <= s <= high) == within_is_unlearned

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


def published_kl(u, r, bins) -> float:
    """KL(u ‖ r) as the public code has it: floor 1e-5 where u is, scaled to 1, and the largest score is in no bin."""
    u, r = ([min(100.0, max(-100.0, v)) for v in x] for x in (u, r))
    low, high = min(*u, *r), max(*u, *r)
    high = high if high > low else low + 1
    edges = [*(low + (high - low) * i / bins for i in range(bins)), high]

    def shares(values):
        counts = [sum(edges[i] <= v < edges[i + 1] for v in values) for i in range(bins)]
        counts[-1] += 0 if any(counts) else len(values)  # nothing would be left
        return [c / sum(counts) for c in counts]

    p, q = shares(u), shares(r)
    q = [max(b, 1e-5) if a > 0 else b for a, b in zip(p, q, strict=True)]
    return sum(a * math.log(a / (b / sum(q))) for a, b in zip(p, q, strict=True) if a > 0)
