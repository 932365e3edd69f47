"""Attacks with references: how likely a score is from a model that never saw the example, or from one that did.

    offline   t(x) = (s(x) - μ_out(x)) / σ_out(x)                    references that never saw x
    online    Λ(x) = log p(s(x) | in) - log p(s(x) | out)            and others that did
    RMIA      share of z in the population with  r(x) >= γ r(z),     r = p(x; model) / p(x)

s: a score of the model on trial. μ, σ, p(· | out): fitted to the scores of the references, one law per example. Three
ways to fit it, from few references to many: :func:`shared` (one σ for everybody), :func:`student` (each σ drawn
towards everybody's, by Bayes), :func:`own` (each its own). p(x) in RMIA is ((1 + a) mean p_out(x) + (1 - a))/2.

Source      LiRA: Carlini et al., Membership Inference Attacks From First Principles, 2022, arXiv 2112.03570. RMIA:
            Zarifzadeh et al., Low-Cost High-Power Membership Inference Attacks, 2024, arXiv 2312.03262. A prior on
            the variance: Brännvall, BaVarIA, 2026, arXiv 2603.11799.
Departures  the score is a margin of any kind, label-free ones too. Offline, t stands for its tail probability, which
            it orders alike. The prior of σ² has its two numbers from the moments of log s² (Smyth 2004) and the mean
            has a flat one; where one reference alone gives no variance, σ is 1. RMIA of an alignment c: p = (1 + c)/2;
            a is 1 where the paper takes 0.3 for image classifiers (see ``WEIGHT``).
Tests kill  a variance of n instead of n - 1; a variance of its own for each part, which reorders them; a population
            that counts x itself; in and out exchanged; an a that lets the raw score through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln, polygamma

from efface.auditing import signals
from efface.auditing.observations import Observations
from efface.errors import EffaceError

WEIGHT = 1.0
"""RMIA's a, where p(x) is p_out(x) itself at 1 and (p_out(x) + 1)/2 at 0.

Margins of an encoder give p far below 1/2. There (1 - a)/2 outweighs p_out for any a well below 1, so the ratio orders
nearly as the raw score does. One world, AUC with 8 references: backbone.margin 0.720 at a = 1 and 0.617 at 0.3 (raw:
0.615). The price, projector.margin with one reference: 0.745 at a = 1 and 0.784 at 0.3. Table: docs/attacks.md.
"""


@dataclass(frozen=True, eq=False)
class ScoreDistribution:
    """What a score of each example is expected to be: Student's t, or normal where ``freedom`` is infinite."""

    center: np.ndarray
    """[n]."""
    scale: np.ndarray
    """[n] > 0, or one number."""
    freedom: float = np.inf

    def distance(self, x: np.ndarray) -> np.ndarray:
        """Scores [n] in units of the scale from the center: higher is more member-like, where this is "out"."""
        return (x - self.center) / self.scale

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Log density of scores [n]."""
        z, v = self.distance(x), self.freedom
        if np.isinf(v):
            return -(z**2) / 2 - np.log(self.scale) - np.log(2 * np.pi) / 2
        constant = gammaln((v + 1) / 2) - gammaln(v / 2) - np.log(v * np.pi) / 2
        return constant - (v + 1) / 2 * np.log1p(z**2 / v) - np.log(self.scale)


DistributionFitter = Callable[[np.ndarray, np.ndarray], ScoreDistribution]
"""``(scores [K, n] of K references, scores [K, p] of the same on a pool) -> law``; the pool settles what is shared."""


def fit_shared_variance(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """A mean of its own for each example, one variance for all: the pool's, averaged."""
    return ScoreDistribution(seen.mean(axis=0), np.full(seen.shape[1], _pooled(pool)))


def fit_own_variance(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """Mean and variance of its own for each example: for many references."""
    if len(seen) < 2:
        raise EffaceError("One reference has no variance.", remedy="Use at least two, or one variance for all.")
    scale = seen.std(axis=0, ddof=1)
    return ScoreDistribution(seen.mean(axis=0), np.where(scale > 0, scale, _pooled(pool)))


def fit_student_t(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """What Bayes predicts of the next score: each variance is drawn towards the pool's, the more the fewer there are.

    σ² ~ scaled inverse χ²(ν₀, s₀²), flat mean: t with ν₀ + K - 1 degrees of freedom and scale s̃ √(1 + 1/K).
    """
    count = len(seen)
    widened = np.sqrt(1 + 1 / count)
    if count < 2:
        return ScoreDistribution(seen[0], np.full(seen.shape[1], widened))
    freedom, variance = fit_variance_prior(pool.var(axis=0, ddof=1), count - 1)
    if np.isinf(freedom):
        return ScoreDistribution(seen.mean(axis=0), np.full(seen.shape[1], np.sqrt(variance) * widened))
    degrees = freedom + count - 1
    drawn = (freedom * variance + (count - 1) * seen.var(axis=0, ddof=1)) / degrees
    return ScoreDistribution(seen.mean(axis=0), np.sqrt(drawn) * widened, degrees)


def fit_variance_prior(variances: np.ndarray, freedom: int) -> tuple[float, float]:
    """``(ν₀, s₀²)`` of the scaled inverse χ² that the sample ``variances`` [p] (each of ``freedom``) come from.

    By the moments of their logarithms (Smyth 2004). ν₀ is infinite where they differ no more than chance makes them.
    """
    known = variances[variances > 0]
    if len(known) < 2:
        return np.inf, 1.0
    logs = np.log(known) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, freedom / 2))
    if excess <= 1e-6:
        return np.inf, float(known.mean())
    half = _inverse_trigamma(excess)
    return 2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half)))


def _inverse_trigamma(value: float) -> float:
    """x > 0 with ψ′(x) = value, by Newton's method on 1/ψ′, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        slope = float(polygamma(1, x))
        step = slope * (1 - slope / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def _pooled(pool: np.ndarray) -> float:
    """The mean variance of the pool as a scale; 1 where it has none."""
    if len(pool) < 2:
        return 1.0
    sigma = float(np.sqrt(pool.var(axis=0, ddof=1).mean()))
    return sigma if sigma > 0 else 1.0


# ---- from arrays ----


def lira_offline(
    x: np.ndarray, out: np.ndarray, pool: np.ndarray, fit: DistributionFitter = fit_student_t
) -> np.ndarray:
    """Scores x [n], references' scores out [K, n] and pool [K, p] -> [n]; higher is more member-like."""
    return fit(out, pool).distance(x)


def lira_online(
    x: np.ndarray, inside: np.ndarray, out: np.ndarray, fit: DistributionFitter = fit_own_variance
) -> np.ndarray:
    """Log likelihood ratio of scores x [n]: of models that saw each (inside [M, n]) over those that did not."""
    return fit(inside, inside).log_density(x) - fit(out, out).log_density(x)


def rmia_ratio(x: np.ndarray, out: np.ndarray, a: float = WEIGHT) -> np.ndarray:
    """RMIA's log ratio [n] from log probabilities x [n] of the model and out [K, n] of the references."""
    return x - np.log(((1 + a) * np.exp(out).mean(axis=0) + (1 - a)) / 2)


def rmia_score(x: np.ndarray, population: np.ndarray, gamma: float = 1.0, *, itself: bool = False) -> np.ndarray:
    """RMIA's score [n]: the share of the population's log ratios [p] that x [n] exceeds by log γ.

    ``itself``: x is the population, so each is compared with the others only.
    """
    below = np.searchsorted(np.sort(population), x - np.log(gamma), "right").astype(np.float64)
    if itself and len(population) > 1:
        return (below - (gamma <= 1)) / (len(population) - 1)
    return below / len(population)


# ---- from observations ----


def stack_references(references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """The references' scores of ``part``, [K, n]."""
    return np.stack([signals.scores(reference, part, signal) for reference in references])


def lira(
    observed: Observations,
    references: Sequence[Observations],
    part: str,
    signal: str,
    fit: DistributionFitter = fit_shared_variance,
) -> np.ndarray:
    """Offline LiRA of ``part`` [n]. What examples share is taken from the holdout whatever the part: a variance of
    its own for each part would reorder them. With ``shared`` the order is that of the calibrated score.
    """
    signals.require_same_examples(observed, references, part)
    out, pool = (stack_references(references, p, signal) for p in (part, "holdout"))
    return lira_offline(signals.scores(observed, part, signal), out, pool, fit)


def bayes_lira(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """:func:`lira` with each example's variance drawn towards everybody's: for few references."""
    return lira(observed, references, part, signal, fit_student_t)


def rmia(
    observed: Observations,
    references: Sequence[Observations],
    part: str,
    signal: str,
    *,
    gamma: float = 1.0,
    a: float = WEIGHT,
) -> np.ndarray:
    """Offline RMIA of ``part`` [n], on a margin or an alignment.

    The population is the holdout, without x itself (never ``valid``: the margin's bank comes from there).
    """
    signals.require_same_examples(observed, references, part)

    def log_p(o: Observations, name: str) -> np.ndarray:
        score = signals.scores(o, name, signal)
        if signal.endswith(".alignment"):
            return np.log(np.maximum((1 + score) / 2, 1e-12))
        return -np.logaddexp(0, -score)

    def log_ratio(name: str) -> np.ndarray:
        return rmia_ratio(log_p(observed, name), np.stack([log_p(r, name) for r in references]), a)

    return rmia_score(log_ratio(part), log_ratio("holdout"), gamma, itself=part == "holdout")


ATTACKS: dict[str, tuple[Callable[[Observations, Sequence[Observations], str, str], np.ndarray], str]] = {
    "calibrated": (signals.calibrated_scores, "score minus the references' mean score"),
    "lira": (lira, "one variance for all examples: orders them exactly as `calibrated` does"),
    "bayes": (bayes_lira, "LiRA with each example's variance drawn towards everybody's"),
    "rmia": (rmia, f"offline RMIA, gamma 1, a {WEIGHT:g}, population: the holdout"),
}
"""What needs at least one reference that never saw F, and what to say of it."""
PROBABILITIES = (".margin", ".alignment")
"""Signals that RMIA can read as probabilities."""


def attacks_for_signal(signal: str) -> dict[str, tuple[Callable[..., np.ndarray], str]]:
    """The attacks that fit a signal: all on margins and alignments, on the gradient's norm those that need no
    probabilities, none on the others.
    """
    if signal.endswith(PROBABILITIES):
        return dict(ATTACKS)
    return {name: how for name, how in ATTACKS.items() if name != "rmia"} if signal == "gradient_norm" else {}


def score_both_sides(
    observed: Observations, references: Sequence[Observations], signal: str, score: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """``score`` of the forgotten and of the holdout; None without references, or where one of the models lacks the
    signal.
    """
    if not references or not all(signals.score_pair(o, "forget", signal) for o in (observed, *references)):
        return None
    return score(observed, references, "forget", signal), score(observed, references, "holdout", signal)
