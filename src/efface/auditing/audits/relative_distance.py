"""Relative distance audit (level A1): whether the forgotten look as under retrained models or as under the original.

    h_ij = k(r_i, r_j) - k(s_i, r_j) - k(r_i, s_j) - k(o_i, o_j) + k(s_i, o_j) + k(o_i, s_j)
    t = mean_{i≠j} h_ij = MMD²(S, R) - MMD²(S, O)          position = 1/2 + t / (2 MMD²(O, R))

s, o, r: all signals of a forgotten example under the model, the original and a retrained model, less the mean of the
other retrained models, less the mean of the same over the holdout, in units of the holdout's standard deviation.
k: Gaussian, its width the median distance among o and r. 0: where the retrained are; 1: where the original is; above
1/2: nearer to the original. Averaged over the retrained models, each in turn as R. A change of all scores, of the
holdout's too, is no failure to forget, and changes nothing here.

Source      the relative test of three samples: Bounliphone et al. 2016, arXiv 1511.04581. That a model is to be
            compared with retrained ones relatively: Ribero, Schrab and Gretton, Regularized f-Divergence Kernel Tests,
            2026, arXiv 2601.19755.
Departures  the three samples are the same examples: pairs i = j are left out, and the variance is that of one
            U-statistic over examples. The second paper's equations could not be read: MMD instead of its divergences.
            What lies beyond the retrained models counts as near to them: over-forgetting is seen by other audits.
Tests cover pairs of an example with itself; a shift of all scores that looks like distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from efface.auditing import signals
from efface.auditing.attacks.ratios import ratio_of_means
from efface.auditing.attacks.signal_tables import FEWEST_COMPARED, compared_models, shared_signals, signal_table
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations


@dataclass(frozen=True)
class RelativeDistance:
    """Position between the retrained models and the original, and which of them is significantly nearer."""

    level: float = 0.95
    """Confidence level of the interval."""
    cap: int = 500
    """Largest number of forgotten examples (a random sample by key): memory grows with its square."""
    references: int = 8
    """Largest number of retrained models that are used."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``relative_distance.position``; the details hold the p-value of either side."""
        name, n = "relative_distance.position", (min(self.cap, evidence.subject.count("forget")),)
        found = [self.position(evidence.original, o, r[: self.references]) for o, r in compared_models(evidence)]
        own = found[0]
        if own is None:
            note = "no retrained reference model" if not evidence.oracles else _NOTHING
            return [Finding(name, None, better="closer", n=n, note=note)]
        values = [one["position"] if one else None for one in found]
        nearer = [where for where in ("original", "retrained") if own[f"p_nearer_{where}"] < 0.05]
        note = f"0: as retrained, 1: as the original; nearer to: {nearer[0] if nearer else 'undecided'} (p < 0.05)"
        value, low, high = (own.pop(key) for key in ("position", "low", "high"))
        interval = (low, high) if high - low > 1e-6 else None
        return [
            Finding(name, value, interval, "closer", values[1], mean_measured(values[2:]), n, note=note, details=own)
        ]

    def position(
        self, original: Observations, observed: Observations, references: Sequence[Observations]
    ) -> dict[str, float] | None:
        """Locate one model; None without references, or where the original is not told from the retrained models."""
        models = (original, observed, *references)
        if not references or observed.count("forget") < FEWEST_COMPARED or not observed.count("holdout"):
            return None
        for part in ("forget", "holdout"):
            signals.require_same_examples(observed, (original, *references), part)
        names = shared_signals(models, ("forget", "holdout"))
        rows = np.sort(signals.random_order_by_key(observed.of("forget", "keys"))[: self.cap])
        if not names:
            return None
        tables = {part: [signal_table(o, part, names) for o in models] for part in ("forget", "holdout")}
        tables["forget"] = [table[rows] for table in tables["forget"]]
        projected = np.mean([projections(*centered(tables, at)) for at in range(2, len(models))], axis=0)
        ratio = ratio_of_means([projected], self.level)
        if ratio is None:
            return None
        place = ratio.shifted(0.5, 0.5)
        error = float(projected[:, 0].std(ddof=1)) / len(rows) ** 0.5
        z = ratio.top / error if error > 0 else float(np.copysign(np.inf, ratio.top))
        sides = {"p_nearer_original": float(ndtr(-z)), "p_nearer_retrained": float(ndtr(z))}
        return {"position": place.value, "low": place.low, "high": place.high} | sides


_NOTHING = "too few examples, or the signals do not tell the original from the retrained models on the forgotten"


def centered(tables: dict[str, list[np.ndarray]], at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return s, o and r ``[n, signals]`` with the model at position ``at`` as R; those from 2 on are retrained."""
    others = [i for i in range(2, len(tables["forget"])) if i != at]
    found: dict[str, list[np.ndarray]] = {}
    for part, models in tables.items():
        common = np.mean([models[i] for i in others], axis=0) if others else 0.0
        found[part] = [models[i] - common for i in (1, 0, at)]
    scale = found["holdout"][2].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    s, o, r = ((f - h.mean(axis=0)) / scale for f, h in zip(found["forget"], found["holdout"], strict=True))
    return s, o, r


def projections(s: np.ndarray, o: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return each example's part ``[n, 2]`` in t and in MMD²(O, R): their means are the two U-statistics."""
    width = np.median(squares(np.concatenate([o, r]), np.concatenate([o, r]))[np.triu_indices(2 * len(o), 1)])

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-squares(x, y) / max(float(width), 1e-12))

    rr, sr, oo, so, orr = (kernel(x, y) for x, y in ((r, r), (s, r), (o, o), (s, o), (o, r)))
    n = len(s)
    made: list[np.ndarray] = []
    for h in (rr - sr - sr.T - oo + so + so.T, oo + rr - orr - orr.T):
        np.fill_diagonal(h, 0.0)
        each = h.sum(axis=1) / (n - 1)
        made.append(2 * each - each.mean())
    return np.stack(made, axis=1)


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances ``[n, m]`` of the rows of two tables."""
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T, 0.0)
