"""Attacks with reference models: compare a score with those of models that did or did not see the example.

    offline   t(x) = (s(x) - μ_out(x)) / σ_out(x)                    references that never saw x
    online    Λ(x) = log p(s(x) | in) - log p(s(x) | out)            and others that did
    RMIA      share of z in the population with  r(x) >= γ r(z),     r = p(x; model) / p(x)

s: a score of the audited model. μ, σ, p(· | out): fitted to the scores of the references, one distribution per example.
Three ways to fit it, from few references to many: :func:`fit_shared_variance` (one σ for all examples),
:func:`fit_student_t` (each σ shrunk towards a common one, by Bayes), :func:`fit_own_variance` (each its own). p(x) in
RMIA is ((1 + a) mean p_out(x) + (1 - a))/2.

Source      LiRA: Carlini et al., Membership Inference Attacks From First Principles, 2022, arXiv 2112.03570. RMIA:
            Zarifzadeh et al., Low-Cost High-Power Membership Inference Attacks, 2024, arXiv 2312.03262. A prior on
            the variance: Brännvall, BaVarIA, 2026, arXiv 2603.11799.
Departures  the score is any margin, also a label-free one. Offline, t replaces its tail probability, which has the same
            order. The parameters of the prior of σ² come from the moments of log s² (Smyth 2004); the prior of the mean
            is flat. With a single reference σ is 1. RMIA of an alignment c uses p = (1 + c)/2; a is 1 where the paper
            takes 0.3 for image classifiers (see ``WEIGHT``).
Tests cover a variance of n instead of n - 1; a separate variance for each part, which reorders them; a population that
            counts x itself; in and out exchanged; an a that lets the raw score through.
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
"""RMIA's a: p(x) is p_out(x) at a = 1 and (p_out(x) + 1)/2 at a = 0.

Margins of an encoder give p far below 1/2. There (1 - a)/2 outweighs p_out for any a well below 1, so the ratio orders
examples nearly as the raw score does. AUC with 8 references in one experiment: backbone.margin 0.720 at a = 1 and 0.617
at 0.3 (raw: 0.615). The price, projector.margin with one reference: 0.745 at a = 1 and 0.784 at 0.3. See
docs/results/attacks.md.
"""


@dataclass(frozen=True, eq=False)
class ScoreDistribution:
    """Predicted distribution of each example's score: Student's t, or normal where ``freedom`` is infinite."""

    center: np.ndarray
    """Mean ``[n]``."""
    scale: np.ndarray
    """Scale ``[n]`` > 0, or one number."""
    freedom: float = np.inf
    """Degrees of freedom."""

    def distance(self, x: np.ndarray) -> np.ndarray:
        """Return (x - center) / scale of scores ``[n]``; under "out", higher is more member-like."""
        return (x - self.center) / self.scale

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """Return the log density of scores ``[n]``."""
        z, v = self.distance(x), self.freedom
        if np.isinf(v):
            return -(z**2) / 2 - np.log(self.scale) - np.log(2 * np.pi) / 2
        constant = gammaln((v + 1) / 2) - gammaln(v / 2) - np.log(v * np.pi) / 2
        return constant - (v + 1) / 2 * np.log1p(z**2 / v) - np.log(self.scale)


DistributionFitter = Callable[[np.ndarray, np.ndarray], ScoreDistribution]
"""``(scores [K, n] of K references, their scores [K, p] on a pool) -> distribution``.

The pool determines what the examples share."""


def fit_shared_variance(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """Fit a mean for each example, and one variance for all: the mean variance of the pool."""
    return ScoreDistribution(seen.mean(axis=0), np.full(seen.shape[1], _pooled(pool)))


def fit_own_variance(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """Fit a mean and a variance for each example; needs many references."""
    if len(seen) < 2:
        raise EffaceError("One reference has no variance.", remedy="Use two or more, or one variance for all.")
    scale = seen.std(axis=0, ddof=1)
    return ScoreDistribution(seen.mean(axis=0), np.where(scale > 0, scale, _pooled(pool)))


def fit_student_t(seen: np.ndarray, pool: np.ndarray) -> ScoreDistribution:
    """Fit the Bayesian predictive distribution: variances shrink towards the pool's, the more the fewer references.

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
    shrunk = (freedom * variance + (count - 1) * seen.var(axis=0, ddof=1)) / degrees
    return ScoreDistribution(seen.mean(axis=0), np.sqrt(shrunk) * widened, degrees)


def fit_variance_prior(variances: np.ndarray, freedom: int) -> tuple[float, float]:
    """Fit a scaled inverse χ² prior to sample variances, by the moments of their logarithms (Smyth 2004).

    Args:
        variances: Sample variances ``[p]``.
        freedom: Degrees of freedom of each.

    Returns:
        ``(ν₀, s₀²)``; ν₀ is infinite if the variances differ no more than by chance.

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
    """Solve ψ′(x) = value for x > 0, by Newton's method on 1/ψ′, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        slope = float(polygamma(1, x))
        step = slope * (1 - slope / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def _pooled(pool: np.ndarray) -> float:
    """Return the square root of the pool's mean variance; 1 where there is none."""
    if len(pool) < 2:
        return 1.0
    sigma = float(np.sqrt(pool.var(axis=0, ddof=1).mean()))
    return sigma if sigma > 0 else 1.0


# ---- from arrays ----


def lira_offline(
    x: np.ndarray, out: np.ndarray, pool: np.ndarray, fit: DistributionFitter = fit_student_t
) -> np.ndarray:
    """Score offline LiRA ``[n]``; higher is more member-like.

    Args:
        x: Scores ``[n]`` of the audited model.
        out: Scores ``[K, n]`` of references that never saw the examples.
        pool: Scores ``[K, p]`` of the references on a pool.
        fit: Fits the distribution of each example's score.

    """
    return fit(out, pool).distance(x)


def lira_online(
    x: np.ndarray, inside: np.ndarray, out: np.ndarray, fit: DistributionFitter = fit_own_variance
) -> np.ndarray:
    """Score online LiRA ``[n]``: log likelihood ratio of models that saw each example over those that did not.

    Args:
        x: Scores ``[n]`` of the audited model.
        inside: Scores ``[M, n]`` of models that saw the examples.
        out: Scores ``[K, n]`` of models that did not.
        fit: Fits the distribution of each example's score.

    """
    return fit(inside, inside).log_density(x) - fit(out, out).log_density(x)


def rmia_ratio(x: np.ndarray, out: np.ndarray, a: float = WEIGHT) -> np.ndarray:
    """Return RMIA's log ratio ``[n]`` from log probabilities of the model ``[n]`` and of the references ``[K, n]``."""
    return x - np.log(((1 + a) * np.exp(out).mean(axis=0) + (1 - a)) / 2)


def rmia_score(x: np.ndarray, population: np.ndarray, gamma: float = 1.0, *, itself: bool = False) -> np.ndarray:
    """Return RMIA's score ``[n]``: the share of the population's log ratios ``[p]`` that x ``[n]`` exceeds by log γ.

    With ``itself``, x is the population, and each example is compared with the others only.
    """
    below = np.searchsorted(np.sort(population), x - np.log(gamma), "right").astype(np.float64)
    if itself and len(population) > 1:
        return (below - (gamma <= 1)) / (len(population) - 1)
    return below / len(population)


# ---- from observations ----


def stack_references(references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Stack the references' scores of ``part``, ``[K, n]``."""
    return np.stack([signals.scores(reference, part, signal) for reference in references])


def lira(
    observed: Observations,
    references: Sequence[Observations],
    part: str,
    signal: str,
    fit: DistributionFitter = fit_shared_variance,
) -> np.ndarray:
    """Score ``part`` by offline LiRA ``[n]``; higher is more member-like.

    The pool is always the holdout, because a separate variance for each part would reorder them. With
    :func:`fit_shared_variance` the order is that of the calibrated score.
    """
    signals.require_same_examples(observed, references, part, signal)
    out, pool = (stack_references(references, p, signal) for p in (part, "holdout"))
    return lira_offline(signals.scores(observed, part, signal), out, pool, fit)


def bayes_lira(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Score ``part`` by :func:`lira` with variances shrunk towards a common one, for few references."""
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
    """Score ``part`` by offline RMIA ``[n]`` on a margin or an alignment; higher is more member-like.

    The population is the holdout, without x itself. It is never ``valid``, from which the margin's bank is taken.
    """
    signals.require_same_examples(observed, references, part, signal)

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
    "bayes": (bayes_lira, "LiRA with each example's variance shrunk towards a common one"),
    "rmia": (rmia, f"offline RMIA, gamma 1, a {WEIGHT:g}, population: the holdout"),
}
"""Name of each attack with references to its score function and a note for readers."""
PROBABILITIES = (".margin", ".alignment")
"""Suffixes of the signals that RMIA can convert to probabilities."""


def attacks_for_signal(signal: str) -> dict[str, tuple[Callable[..., np.ndarray], str]]:
    """Return the attacks that apply to a signal.

    All of them for margins and alignments, those without probabilities for the gradient norm, none for other signals.
    """
    if signal.endswith(PROBABILITIES):
        return dict(ATTACKS)
    return {name: how for name, how in ATTACKS.items() if name != "rmia"} if signal == "gradient_norm" else {}


def score_both_sides(
    observed: Observations, references: Sequence[Observations], signal: str, score: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Score forget and holdout; None without references, or where one of the models lacks the signal."""
    if not references or not all(signals.score_pair(o, "forget", signal) for o in (observed, *references)):
        return None
    return score(observed, references, "forget", signal), score(observed, references, "holdout", signal)
