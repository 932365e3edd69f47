"""Per-example audit: residual memorization of each forgotten example, and exposure of the retained examples.

    residual   r(x) = s_u(x) - mean_k s_k(x) - b          b: mean over H of the same; k: references, never saw F
    interval   r(x) ± q σ(x)                              q: 95 % quantile over H of |r(h)| / σ(h)
    p(x)       (1 + |{h: r(h)/σ(h) >= r(x)/σ(x)}|) / (|H| + 1)
    exposure   d(x) = s_u(x) - s_0(x) - mean_h (s_u(h) - s_0(h))     for retained x; needs no references

s: a margin of the unlearned model (u), the original (0) or the references (k). σ(x): the predictive scale of the
references (:func:`efface.auditing.attacks.reference_models.fit_student_t`). Interval and p are conformal: for an
example never trained on and drawn like the holdout they are valid for any distribution of the scores.

Source      after Carlini et al. 2022 (calibration by example) and Vovk et al. 2005 (conformal p); the onion effect:
            Carlini et al., The Privacy Onion Effect, 2022, arXiv 2206.10469.
Departures  the estimators are ours. The rise of a retained example is compared with the changes of the holdout. Members
            may change more for other reasons than exposure, so the oracle's number is reported too.
Tests cover a shift of all scores that looks like memorization; ranking by raw score, which finds the easiest examples;
            keys of retained examples in a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks.residuals import REFERENCE_TAIL, Residuals, discoveries, p_values, welch_difference
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations


@dataclass(frozen=True)
class PerExample:
    """Residual memorization of each forgotten example, the worst of them, and exposure of the retained ones."""

    worst: int = 10
    """How many of the most memorized examples to list (by key; a sealed record holds a keyed digest)."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``per_example.<signal>.beyond``, ``.residual``, ``.worst`` and ``.retained.*`` for every margin."""
        found: list[Finding] = []
        for signal in signals.prespecified_signals(evidence.subject):
            if signal == signals.LEARNED:
                continue  # the references have no such score
            found += self._forgotten(evidence, signal)
            found += self._retained(evidence, signal)
        return found

    def _forgotten(self, evidence: Evidence, signal: str) -> list[Finding]:
        name = f"per_example.{signal}"
        if not evidence.references:
            note = "no reference model: memorization of an example cannot be told from its being easy"
            return [Finding(f"{name}.beyond", None, better="closer", note=note)]
        residuals = [
            Residuals.of(o, others, signal)
            for _, o, others in evidence.models()
            if others and all(signals.score_pair(one, "forget", signal) for one in (o, *others))
        ]
        subject, original, *oracles = residuals
        m, n = len(subject.forget), len(subject.holdout)
        hits = int((subject.p <= REFERENCE_TAIL).sum())
        shares = [float((one.p <= REFERENCE_TAIL).mean()) for one in residuals]
        expected = f"{REFERENCE_TAIL} is expected of the forgotten"
        beyond = Finding(
            f"{name}.beyond", shares[0], stats.clopper_pearson(hits, m), "closer", shares[1],
            mean_measured(shares[2:]), (m, n),
            note=f"share beyond what 95 % of never-trained examples stay below: {expected}",
            details={"discoveries": discoveries(subject.p)},
        )  # fmt: skip
        value, low, high = welch_difference(subject.forget, subject.holdout)
        residual = Finding(
            f"{name}.residual", value, (low, high), "closer", float(original.forget.mean()),
            mean_measured(float(one.forget.mean()) for one in oracles), (m, n),
            note="mean residual memorization, in units of the score",
        )  # fmt: skip
        order = np.argsort(-subject.forget / subject.scale, kind="stable")
        rows = [self._row(subject, original, int(i)) for i in order[: self.worst]]
        top = rows[0]
        worst = Finding(
            f"{name}.worst", top["residual"], (top["low"], top["high"]), "closer", top["original"], None, (m, n),
            note="the most remembered example; p as if it had been picked beforehand",
            details={"worst": rows, "curve": subject.curve()},
        )  # fmt: skip
        return [beyond, residual, worst]

    def _row(self, subject: Residuals, original: Residuals, i: int) -> dict[str, Any]:
        reach = float(subject.half_width * subject.scale[i])
        value = float(subject.forget[i])
        return {
            "item": str(subject.keys[i]),
            "residual": value,
            "low": value - reach,
            "high": value + reach,
            "p": float(subject.p[i]),
            "original": float(original.forget[i]),
        }

    def _retained(self, evidence: Evidence, signal: str) -> list[Finding]:
        other = signals.nonmember_part(evidence.subject, "retain")
        models = [evidence.subject, *evidence.oracles]
        if not all(signals.score_pair(o, "retain", signal) for o in (evidence.original, *models)):
            return []

        def change(model: Observations, part: str) -> np.ndarray:
            return signals.calibrated_scores(model, (evidence.original,), part, signal)

        changes = [(change(o, "retain"), change(o, other)) for o in models if o.model != evidence.original.model]
        if not changes or evidence.subject.model == evidence.original.model:
            return []
        shares = [float((p_values(r, h) <= REFERENCE_TAIL).mean()) for r, h in changes]
        (r, h), name = changes[0], f"per_example.{signal}.retained"
        p = p_values(r, h)
        n = (len(r), len(h))
        value, low, high = welch_difference(r, h)
        note = f"share whose exposure rose by more than 95 % of {other} changed; the oracle's is what retraining does"
        risen = Finding(
            f"{name}.risen", shares[0], stats.clopper_pearson(int((p <= REFERENCE_TAIL).sum()), len(r)), "lower", None,
            mean_measured(shares[1:]), n, note=note, details={"discoveries": discoveries(p)},
        )  # fmt: skip
        oracle = mean_measured(float(a.mean() - b.mean()) for a, b in changes[1:])
        rise = Finding(
            f"{name}.rise", value, (low, high), "lower", None, oracle, n,
            note=f"mean change of the score since the original, less that of {other}; above 0: more exposed",
        )  # fmt: skip
        return [risen, rise]
