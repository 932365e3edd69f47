"""Canary audit (level A3): guess from scores which canaries were included, then compare with the coins.

A guess depends on scores only, not on the part of the split that holds a canary, which would reveal its coin. The r/2
canaries with the highest scores are called included, the r/2 with the lowest excluded; ties are broken by key.

The bound covers everything between coin and score: training *and* unlearning. Successful unlearning leaves no trace of
the coins, and the bound is then 0 with a probability of at least the confidence. A bound above 0 means that the model's
scores reveal at least that ε about single examples. It is not an upper bound.
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
    """Guesses from one model's scores, and how many were right."""

    guesses: dict[str, bool]
    """Key to whether it was called included; canaries without a guess are absent."""
    right: int
    epsilon: float
    """Lower bound on ε at confidence ``level``."""
    level: float


def score_canaries(
    observed: Observations, keys: Sequence[str], signal: str, references: Sequence[Observations] = ()
) -> np.ndarray:
    """Score each canary, in the order of ``keys``.

    Args:
        observed: Observations of the model.
        keys: Keys of the canaries.
        signal: Membership signal.
        references: Models that saw no canary; they calibrate the scores.

    Returns:
        Scores, float64 ``[m]``.

    Raises:
        EffaceError: If a canary was not observed or has no score.

    """
    found: dict[str, float] = {}
    for part in OBSERVED_PARTS:
        if not signals.has_signal(observed, part, signal):
            continue
        values = signals.membership_scores(observed, references, part, signal)
        names = observed.of(part, "keys")[signals.scored_rows(observed, part, signal)]
        found |= dict(zip(names.tolist(), values.tolist(), strict=True))
    absent = [key for key in keys if key not in found]
    if absent:
        raise EffaceError(
            f"{len(absent)} of {len(keys)} canaries were not observed, or have no score of {signal}.",
            f"For example: {quote_first(absent)}.",
            "Included canaries belong in the forget set (--forget included.txt), excluded ones in the holdout "
            "(split.canaries at pretraining); raise watch.cap above the number of spare examples.",
        )
    return np.array([found[key] for key in keys])


def guess_inclusion(values: np.ndarray, plan: CanaryPlan) -> dict[str, bool]:
    """Call the highest scores included and the lowest excluded; ties are broken by key, not by coin."""
    order = np.lexsort((np.arange(len(values)), values))
    half = plan.guesses // 2
    low = {plan.keys[i]: False for i in order[:half]}
    return low | {plan.keys[i]: True for i in order[len(order) - half :]}


def reveal_coins(
    guesses: dict[str, bool], plan: CanaryPlan, coins: InclusionCoins, level: float = 0.95, delta: float = 0.0
) -> CanaryGuesses:
    """Compare the guesses with the coins and compute the lower bound on ε."""
    right = sum(coins.included[key] == guess for key, guess in guesses.items())
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
    """Measure ``canaries.<signal>.epsilon`` and ``.right`` of the subject and the original.

    Args:
        plan: Keys of the canaries and the number of guesses.
        coins: Which canaries were included.
        original: Observations of the model before unlearning.
        subject: Observations of the unlearned model.
        references: Models that saw no canary.
        signal: Membership signal; by default the last prespecified one.
        level: Confidence of the bound.
        delta: δ of differential privacy.

    """
    signal = signal or signals.prespecified_signals(subject)[-1]
    both = [
        reveal_coins(guess_inclusion(score_canaries(o, plan.keys, signal, references), plan), plan, coins, level, delta)
        for o in (subject, original)
    ]
    after, before = both
    m, r, name = len(plan.keys), plan.guesses, f"canaries.{signal}"
    top = perfect_guess_bound(m, r, level, delta)
    counts = f"{m} coins, {r} guesses, {after.right} right (before: {before.right}); δ = {delta:g}"
    shares = [stats.clopper_pearson(one.right, r, level) for one in both]
    return [
        Finding(
            f"{name}.epsilon", after.epsilon, None, "lower", before.epsilon, n=(m, r),
            note=f"lower bound on ε of training and unlearning together, confidence {100 * level:g} %: {counts}; "
            f"perfect guesses would give {stats.rounded_down(top, 2):g}",
            details={"right": after.right, "guesses": r, "coins": m, "ceiling": top, "level": level, "delta": delta},
        ),
        Finding(
            f"{name}.right", after.right / r, shares[0], "closer", before.right / r, n=(m, r), unit="share",
            note="share of right guesses; 0.5: guessing at random",
        ),
    ]  # fmt: skip


def compute_max_epsilon(plan: CanaryPlan, level: float = 0.95) -> float:
    """Return the ε that perfect guesses would show."""
    return perfect_guess_bound(len(plan.keys), plan.guesses, level)
