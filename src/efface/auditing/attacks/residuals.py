"""Residual memorization: scores of one model beyond what its references predict, with conformal intervals.

Equations: :mod:`efface.auditing.audits.per_example`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks import reference_models
from efface.auditing.observations import Observations

REFERENCE_TAIL = 0.05
"""Share of never-trained examples that lie beyond the tail, by definition."""
CURVE = 200
"""Number of examples of a curve in figures."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of one model against its references, on forget and holdout."""

    keys: np.ndarray
    """Keys [m] of the forgotten examples."""
    forget: np.ndarray
    """Residuals [m] of the forgotten examples."""
    holdout: np.ndarray
    """Residuals [n] of the holdout; their mean is 0."""
    scale: np.ndarray
    """σ(x) [m]."""
    p: np.ndarray
    """One-sided conformal p [m]; small where an example is more member-like than never-trained ones."""
    half_width: float
    """q: half-width of the intervals in units of σ."""

    @staticmethod
    def of(observed: Observations, references: tuple[Observations, ...], signal: str) -> Residuals:
        """Compute the residuals; no reference may be the model itself or have seen the forget set."""
        pool = reference_models.stack_references(references, "holdout", signal)
        values: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        for part in ("forget", "holdout"):
            signals.require_same_examples(observed, references, part)
            expected = reference_models.fit_student_t(reference_models.stack_references(references, part, signal), pool)
            values.append(signals.scores(observed, part, signal) - expected.center)
            scales.append(np.asarray(expected.scale, dtype=np.float64))
        shift = values[1].mean()
        f, h = values[0] - shift, values[1] - shift
        ranked = np.sort(np.abs(h) / scales[1])
        reach = ranked[min(len(ranked), int(np.ceil((1 - REFERENCE_TAIL) * (len(ranked) + 1)))) - 1]
        keys = observed.of("forget", "keys")[signals.scored_rows(observed, "forget", signal)]
        return Residuals(keys, f, h, scales[0], p_values(f / scales[0], h / scales[1]), float(reach))

    def curve(self) -> dict[str, list[float]]:
        """Return at most ``CURVE`` forgotten examples sorted by residual, each with its interval, for figures."""
        order = np.argsort(-self.forget, kind="stable")
        kept = order[np.unique(np.linspace(0, len(order) - 1, CURVE).round().astype(int))]
        reach = self.half_width * self.scale[kept]
        value = self.forget[kept]
        return {"residual": value.tolist(), "low": (value - reach).tolist(), "high": (value + reach).tolist()}


def p_values(scores: np.ndarray, never: np.ndarray) -> np.ndarray:
    """Return the conformal p of each score ``[m]`` against never-trained ones ``[n]``; never 0."""
    ranked = np.sort(stats.check_finite(never))
    above = len(ranked) - np.searchsorted(ranked, stats.check_finite(scores), "left")
    return (1 + above) / (len(ranked) + 1)


def discoveries(p: np.ndarray, rate: float = 0.1) -> int:
    """Count the discoveries at a false discovery rate of ``rate`` (Benjamini and Hochberg 1995)."""
    ranked = np.sort(p)
    passed = np.flatnonzero(ranked <= rate * np.arange(1, len(p) + 1) / len(p))
    return int(passed[-1] + 1) if len(passed) else 0


def welch_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of means with its 95 % interval by Welch's t: ``(value, low, high)``.

    The interval is infinite if a group has fewer than two values.
    """
    value = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return value, -np.inf, np.inf
    error, freedom = stats.welch(first, second)
    reach = float(stdtrit(freedom, 0.975)) * error
    return value, value - reach, value + reach
