"""Guess the coins from observations, then open them: level A3.

A guess looks at scores and nothing else: not at the part of the split that a canary stands in, which is its coin. The
r/2 canaries with the highest score are called included, the r/2 with the lowest excluded; ties by key.

The bound is about everything between coin and score: training *and* unlearning. An unlearning that worked leaves
nothing of the coins, and the bound is 0 with probability at least the confidence. A bound above 0 says: whoever sees
this model's scores learns about single examples at least as much as ε = that allows. It is no upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks.canary_bound import lower_bound, perfect_guess_bound
from efface.auditing.evidence import Finding
from efface.auditing.observations import OBSERVED_PARTS, Observations
from efface.data.canaries import CanaryPlan, InclusionCoins
from efface.data.dataset import quote_first
from efface.errors import EffaceError


@dataclass(frozen=True, eq=False)
class CanaryGuesses:
    """Guesses about one model's coins, and how many were right."""

    guesses: dict[str, bool]
    """Key to whether it was called included; the other canaries were not guessed."""
    right: int
    epsilon: float
    """Lower bound at ``level``."""
    level: float


def score_canaries(observed: Observations, keys: Sequence[str], signal: str, references: Sequence[Observations] = ()):
    """Score of each canary in the order of ``keys``, float64 ``[m]``; less the references' mean where there are any."""
    found: dict[str, float] = {}
    for part in OBSERVED_PARTS:
        if not signals.has_signal(observed, part, signal):
            continue
        if references:
            values = signals.calibrated_scores(observed, references, part, signal)
        else:
            values = signals.scores(observed, part, signal)
        names = observed.of(part, "keys")[signals.scored_rows(observed, part, signal)]
        found |= dict(zip(names.tolist(), values.tolist(), strict=True))
    absent = [key for key in keys if key not in found]
    if absent:
        raise EffaceError(
            f"{len(absent)} of {len(keys)} canaries were not looked at, or have no score of {signal}.",
            f"Such as {quote_first(absent)}.",
            "Included canaries belong into the forget set (--forget included.txt), excluded ones into the holdout "
            "(split.canaries at pretraining); raise watch.cap above the number of spare examples.",
        )
    return np.array([found[key] for key in keys])


def guess_inclusion(values: np.ndarray, plan: CanaryPlan) -> dict[str, bool]:
    """The highest scores are called included, the lowest excluded. Ties fall by key, which knows nothing of coins."""
    order = np.lexsort((np.arange(len(values)), values))
    half = plan.guesses // 2
    low = {plan.keys[i]: False for i in order[:half]}
    return low | {plan.keys[i]: True for i in order[len(order) - half :]}


def reveal_coins(
    guesses: dict[str, bool], plan: CanaryPlan, coins: InclusionCoins, level: float = 0.95, delta: float = 0.0
) -> CanaryGuesses:
    """How many guesses were right, and the ε that they rule out."""
    right = sum(coins.included[key] == said for key, said in guesses.items())
    return CanaryGuesses(guesses, right, lower_bound(len(plan.keys), len(guesses), right, level, delta), level)


def canary_findings(
    plan: CanaryPlan,
    coins: InclusionCoins,
    original: Observations,
    subject: Observations,
    references: Sequence[Observations] = (),
    *,
    signal: str | None = None,
    level: float = 0.95,
    delta: float = 0.0,
) -> list[Finding]:
    """``canaries.<signal>.epsilon`` and ``.right`` of the subject, beside the original's.

    ``signal``: by default the outermost pre-named one. ``references``: models that saw no canary at all.
    """
    signal = signal or signals.prespecified_signals(subject)[-1]
    both = [
        reveal_coins(guess_inclusion(score_canaries(o, plan.keys, signal, references), plan), plan, coins, level, delta)
        for o in (subject, original)
    ]
    after, before = both
    m, r, name = len(plan.keys), plan.guesses, f"canaries.{signal}"
    top = perfect_guess_bound(m, r, level, delta)
    said = f"{m} coins, {r} guesses, {after.right} right (before: {before.right}); δ = {delta:g}"
    shares = [stats.clopper_pearson(one.right, r, level) for one in both]
    return [
        Finding(
            f"{name}.epsilon", after.epsilon, None, "lower", before.epsilon, n=(m, r),
            note=f"lower bound on ε of training and unlearning together, confidence {100 * level:g} %: {said}; "
            f"perfect guesses would give {stats.rounded_down(top, 2):g}",
            details={"right": after.right, "guesses": r, "coins": m, "ceiling": top, "level": level, "delta": delta},
        ),
        Finding(
            f"{name}.right", after.right / r, shares[0], "closer", before.right / r, n=(m, r), unit="share",
            note="share of right guesses; 0.5: the coins cannot be told",
        ),
    ]  # fmt: skip


def compute_max_epsilon(plan: CanaryPlan, level: float = 0.95) -> float:
    """The ε that perfect guesses would prove."""
    return perfect_guess_bound(len(plan.keys), plan.guesses, level)
