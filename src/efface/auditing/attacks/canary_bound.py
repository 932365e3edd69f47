"""Lower bound on the ε of differential privacy, from guesses about canaries in a single training run.

Each of m canaries is included in the training data by a fair coin. An attacker who sees only the output guesses r of
the coins (r is fixed in advance) and is right v times. If the mechanism from included canaries to output were
(ε, δ)-differentially private, then, with W ~ Binomial(r, e^ε/(1 + e^ε)),

    P[right >= v]  <=  P[W >= v] + 2 m δ max_{1 <= i <= v} P[v > W >= v - i] / i

which is a p-value for that ε. The lower bound at confidence 1 - β is the largest ε with a p-value of at most β.
v = r = m and δ = 0 give log(q/(1 - q)) with q = β^(1/m): the ceiling that m coins cannot exceed.

Source      Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training Run, 2023, arXiv 2305.08846.
Departures  none; r is a third of m by default, as the most extreme scores give the surest guesses.
Tests cover abstentions counted as right; the tail P[W > v]; δ without the factor 2m.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betainc, expit

from efface.errors import EffaceError

HIGHEST = 60.0
"""Upper end of the search for ε."""


def p_value(coins: int, guesses: int, right: int, epsilon: float, delta: float = 0.0) -> float:
    """Bound the probability of at least ``right`` correct guesses under (ε, δ)-differential privacy.

    Args:
        coins: Number of canaries m.
        guesses: Number of guesses r.
        right: Number of correct guesses v.
        epsilon: ε.
        delta: δ.

    Returns:
        The p-value of ε, at most 1.

    Raises:
        EffaceError: If the counts or the privacy parameters are impossible.

    """
    if not 0 <= right <= guesses <= coins or coins < 1 or epsilon < 0 or not 0 <= delta <= 1:
        raise EffaceError(
            f"{right} right of {guesses} guesses about {coins} coins at ε = {epsilon:g}, δ = {delta:g} is impossible.",
            "It must hold 0 <= right <= guesses <= coins, ε >= 0, 0 <= δ <= 1.",
        )
    if right == 0:
        return 1.0
    low = np.arange(right - 1, -1, -1)  # v - i for i = 1 .. v
    q = float(expit(epsilon))
    tail = float(betainc(right, guesses - right + 1, q))  # P[W >= v]
    reach = np.where(low == 0, 1.0, betainc(np.maximum(low, 1), guesses - low + 1, q)) - tail
    slack = float((np.maximum(reach, 0) / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * coins * delta * slack)


def lower_bound(coins: int, guesses: int, right: int, level: float = 0.95, delta: float = 0.0) -> float:
    """Return the largest ε that the guesses rule out at confidence ``level``; 0 if they rule out none."""
    beta = 1 - level
    if p_value(coins, guesses, right, 0.0, delta) > beta:
        return 0.0
    low, high = 0.0, HIGHEST
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(coins, guesses, right, middle, delta) <= beta else (low, middle)
    return low


def perfect_guess_bound(coins: int, guesses: int | None = None, level: float = 0.95, delta: float = 0.0) -> float:
    """Return the bound for guesses without an error; ``guesses`` defaults to all coins."""
    guesses = coins if guesses is None else guesses
    return lower_bound(coins, guesses, guesses, level, delta)


def count_needed_guesses(epsilon: float, level: float = 0.95) -> int:
    """Return how many correct guesses without an error a bound of ``epsilon`` needs (δ = 0)."""
    return math.ceil(math.log(1 - level) / math.log(float(expit(epsilon))) - 1e-9)
