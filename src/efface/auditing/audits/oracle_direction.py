"""Oracle direction audit (level A1): how much is left of the way from retrained models to the original, per example.

    N_P(g) = mean_{x∈P} <g(x) - r_A(x), o(x) - r_B(x)>      residual = (N_F(u) - N_H(u)) / (N_F(o) - N_H(o))

u: the audited model; o: the original; r_A, r_B: means of two halves of the retrained models, in both orders. 1: nothing
was removed; 0: as retrained. One half on both sides would look like a residual of 1/2, as the same noise is in both.
N_H is what u and o have in common for another reason than F: u was made from o. Two spaces:

``features``   g(x): cosines of x's features with those of never-trained anchors under the same model, which no
               rotation, permutation or scaling of the features changes
``signals``    g(x): all signals, less their means over H, in units of the retrained models' spread over H

Source      after Yong, Ong and Chan, Erased, but Not Gone: Output Forgetting Is Not True Forgetting, 2026, arXiv
            2606.25001, which finds residuals concentrated along retraining-related directions. Cosines with anchors:
            Moschella et al., Relative representations, 2023, arXiv 2209.15430.
Departures  the equations of the first could not be read: the estimator is ours, with the holdout's part taken off.
Tests cover a retrained model that seems to keep a half; what original and unlearned model share anyway taken for
            memory; a rotation of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from efface.auditing import representations, signals
from efface.auditing.attacks.ratios import Ratio, ratio_of_means
from efface.auditing.attacks.signal_tables import FEWEST_COMPARED, compared_models, shared_signals, signal_table
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations

ANCHOR_PARTS = ("test", "valid", "spare")
"""Never-trained parts that anchors are taken from; never the holdout, with which F is compared."""
Describe = Callable[[Observations, str], np.ndarray]
"""``(observations, part) -> g(x)`` of each example, ``[n, d]``."""


@dataclass(frozen=True)
class OracleDirection:
    """Residual of the forgotten examples along the direction from the retrained models to the original."""

    level: float = 0.95
    """Confidence level of the interval."""
    anchors: int = 200
    """Number of anchors (a random sample by key)."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``oracle_direction.features.residual`` and ``oracle_direction.signals.residual``."""
        observed, found = evidence.subject, list[Finding]()
        n = (observed.count("forget"), observed.count("holdout"))
        for space, describe in (("features", self._profiles(evidence)), ("signals", signal_descriptions(evidence))):
            name = f"oracle_direction.{space}.residual"
            if len(evidence.oracles) < 2:
                note = "two retrained models are needed: the noise of a single one looks like a residual"
            else:
                note = f"too few forgotten or never-trained examples, or no {space} were observed"
            if describe is None or len(evidence.oracles) < 2 or min(n) < FEWEST_COMPARED:
                found.append(Finding(name, None, better="lower", n=n, note=note))
                continue
            left = [self._residual(evidence.original, o, others, describe) for o, others in compared_models(evidence)]
            own, values = left[0], [one and one.value for one in left]
            note = "0: as retrained; 1: as the original; noise and what unseen examples show as well are taken off"
            if own is None:
                note = f"the original's {space} of the forgotten do not differ from the retrained ones' by memory"
            interval = (own.low, own.high) if own and own.high - own.low > 1e-6 else None
            oracle = mean_measured(values[2:])
            found.append(Finding(name, values[0], interval, "lower", values[1], oracle, n, note=note))
        return found

    def _residual(
        self, original: Observations, observed: Observations, others: Sequence[Observations], describe: Describe
    ) -> Ratio | None:
        """Measure one model against the retrained models ``others``."""
        if len(others) < 2:
            return None
        groups: list[np.ndarray] = []
        for part, sign in (("forget", 1), ("holdout", -1)):
            signals.require_same_examples(original, (observed, *others), part)
            g, o, *retrained = (describe(one, part) for one in (observed, original, *others))
            groups.append(sign * common_parts(g, o, retrained))
        return ratio_of_means(groups, self.level)

    def _profiles(self, evidence: Evidence) -> Describe | None:
        """Return the function that describes examples by cosines with anchors; None without anchors."""
        models = [o for _, o, _ in evidence.models()] + list(evidence.oracles)
        wanted = ("forget", "holdout")
        part = next((p for p in ANCHOR_PARTS if all(o.has(p, "features") for o in models)), None)
        if part is None or not all(o.has(p, "features") for o in models for p in wanted):
            return None
        signals.require_same_examples(evidence.subject, models, part)
        rows = signals.random_order_by_key(evidence.subject.of(part, "keys"))[: self.anchors]

        def describe(observed: Observations, name: str) -> np.ndarray:
            known = representations.features(observed, part)[rows].astype(np.float64)
            center = known.mean(axis=0)
            x = representations.features(observed, name).astype(np.float64) - center
            return representations.unit_rows(x, np.float64) @ representations.unit_rows(known - center, np.float64).T

        return describe


def common_parts(g: np.ndarray, o: np.ndarray, retrained: Sequence[np.ndarray]) -> np.ndarray:
    """Return each example's ``[n, 2]`` contribution to N(g) and to N(o), from descriptions ``[n, d]``."""
    a, b = (np.mean(half, axis=0) for half in (retrained[::2], retrained[1::2]))
    return np.stack([(((x - a) * (o - b)).sum(axis=1) + ((x - b) * (o - a)).sum(axis=1)) / 2 for x in (g, o)], axis=1)


def signal_descriptions(evidence: Evidence) -> Describe | None:
    """Return the function that describes examples by their signals; None where the models share none."""
    models = [o for _, o, _ in evidence.models()] + list(evidence.oracles)
    names = shared_signals(models, ("forget", "holdout"))
    if not names or len(evidence.oracles) < 2 or not evidence.subject.count("holdout"):
        return None
    unseen = np.stack([signal_table(o, "holdout", names) for o in evidence.oracles])
    scale = (unseen - unseen.mean(axis=0)).std(axis=(0, 1))
    scale = np.where(scale > 0, scale, 1.0)

    def describe(observed: Observations, part: str) -> np.ndarray:
        return (signal_table(observed, part, names) - signal_table(observed, "holdout", names).mean(axis=0)) / scale

    return describe
