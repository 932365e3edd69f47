"""Membership: what each attack can tell of the forgotten and of the retained, against never-trained examples.

The original's and the oracles' numbers stand beside the subject's: an attack that cannot see the examples in
the original proves nothing, and one that sees as much in an oracle sees something else than membership.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks import fitted as attacks_fitted
from efface.auditing.attacks import reference_models
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations

_T = TypeVar("_T")
Measured = float | tuple[float, float, float] | None
"""A number, one with its interval, or nothing where a model has no such signal."""
MEANING = "0.5: members and non-members look alike; compare with the oracle, which never saw the forget set"
AT = "at a threshold chosen on other examples; precision as if members and non-members were equally many"
SVC = "share of the forget set that the SVC calls member; Unlearn-Sparse and SalUn print 1 - this: MIA efficacy"
SHADOWED = f"fitted on shadow encoders, the references; {MEANING}"
SHADOWS = 4
"""Shadow encoders that an attack is fitted on, at most."""


@dataclass(frozen=True)
class Membership:
    """AUC, rates at a threshold chosen elsewhere, and true-positive rates at low false-positive rates."""

    false_rates: tuple[float, ...] = (0.01, 0.001)
    """False-positive rates at which the true-positive rate is read."""
    points: int = 200
    """Points kept of a ROC curve for figures."""
    bins: int = 40
    """Bins of the histograms for figures."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``membership.<signal>.*`` for the forget set, ``membership.retain.<signal>.*`` for the retained."""
        found: list[Finding] = []
        for part in ("forget", "retain"):
            rows = PartFindings(evidence, part, f"membership.{'retain.' if part == 'retain' else ''}")
            for signal in signals.available_signals(evidence.subject, part):
                self.signal(rows, signal)
                if part == "forget" and evidence.oracles:
                    self.referenced(rows, signal)
            fitted_attacks(rows)
            found += rows.found
        return found

    def signal(self, rows: PartFindings, signal: str) -> None:
        """One signal, in itself and as the exact threshold sweep."""
        pairs = rows.each(lambda o: signals.score_pair(o, rows.part, signal))
        details = self.figure(rows, signal) if signal in signals.prespecified_signals(rows.evidence.subject) else {}
        rows.add(f"{signal}.auc", [p and stats.delong(*p) for p in pairs], MEANING, details)
        rows.rates(
            signal,
            lambda o: attacks_fitted.cross_fitted_attack(o, rows.part, signal, attacks_fitted.fit_threshold),
            signal,
        )
        self.low_rates(rows, signal, pairs)

    def referenced(self, rows: PartFindings, signal: str) -> None:
        """Attacks with references; an oracle is attacked with the other oracles, so one alone has no number."""
        for name, (score, note) in reference_models.attacks_for_signal(signal).items():
            pairs = [
                reference_models.score_both_sides(observed, others, signal, score)
                for _, observed, others in rows.evidence.models()
            ]
            rows.add(f"{signal}.{name}.auc", [p and stats.delong(*p) for p in pairs], f"{note}; {MEANING}")
            if signal.endswith(".margin"):
                self.low_rates(rows, f"{signal}.{name}", pairs)

    def low_rates(self, rows: PartFindings, name: str, pairs: Sequence[tuple[Any, Any] | None]) -> None:
        """True-positive rates at low false-positive rates, where there are enough non-members for them."""
        for rate in self.false_rates:
            at = [p and stats.tpr_at_fpr(*p, rate) for p in pairs]
            values = [r.measured if r else None for r in at]
            rows.add(f"{name}.tpr_at_1_in_{round(1 / rate)}", values, at[0].note if at[0] else "")

    def figure(self, rows: PartFindings, signal: str) -> dict[str, Any]:
        """ROC curves, histograms on shared edges, and the permutation p of the subject's AUC."""
        named = ((name, signals.score_pair(o, rows.part, signal)) for name, o, _ in rows.evidence.models())
        pairs = {name: pair for name, pair in named if pair}
        return stats.summarize_for_figures(pairs, self.points, self.bins) | {
            "permutation_p": stats.permutation(*pairs["subject"])
        }


@dataclass(frozen=True)
class PartFindings:
    """Findings about one part, with the same number for subject, original and oracles on each."""

    evidence: Evidence
    part: str
    prefix: str
    found: list[Finding] = field(default_factory=list)

    def each(self, measure: Callable[[Observations], _T]) -> list[_T]:
        """``measure`` of subject, original and every oracle."""
        return [measure(o) for _, o, _ in self.evidence.models()]

    def add(self, name: str, values: Sequence[Measured], note: str, details: dict[str, Any] | None = None) -> None:
        """One finding from the values of subject, original and oracles."""
        subject, other = self.evidence.subject, signals.nonmember_part(self.evidence.subject, self.part)
        plain = [v[0] if isinstance(v, tuple) else v for v in values]
        between = (values[0][1], values[0][2]) if isinstance(values[0], tuple) else None
        n = (subject.count(self.part), subject.count(other))
        oracle, name = mean_measured(plain[2:]), self.prefix + name
        made = Finding(name, plain[0], between, "closer", plain[1], oracle, n, note=note, details=details or {})
        self.found.append(made)

    def rates(
        self, name: str, run: Callable[[Observations], attacks_fitted.AttackResult], signal: str, ranks: bool = False
    ) -> None:
        """Balanced accuracy, precision and recall of an attack on ``signal``; with ``ranks`` its AUC too."""
        if not signals.has_signal(self.evidence.subject, "retain", signal):
            return  # nothing to choose a threshold on
        done = self.each(lambda o: run(o) if signals.score_pair(o, self.part, signal) else None)
        nobody = "; nobody was called a member" if done[0] and done[0].precision is None else ""
        if ranks:
            self.add(f"{name}.auc", [a and stats.interval(a.v10, a.v01) for a in done], MEANING)
        self.add(f"{name}.balanced_accuracy", [a and a.balanced_accuracy for a in done], AT)
        self.add(f"{name}.precision", [a and a.precision for a in done], AT + nobody)
        self.add(f"{name}.recall", [a and a.recall for a in done], AT)


def fitted_attacks(rows: PartFindings) -> None:
    """EncoderMI in each space, with shadow encoders where there are references; for classifiers the SVC."""
    subject, part = rows.evidence.subject, rows.part
    for space in subject.spaces:
        signal = f"{space}.alignment"
        if not signals.score_pair(subject, part, signal):
            continue
        attempts = {"encodermi_v": attacks_fitted.encodermi_v} | (
            {"encodermi_s": attacks_fitted.encodermi_s} if part == "forget" else {}
        )
        for name, run in attempts.items():
            rows.rates(f"{space}.{name}", partial(run, part=part, space=space), signal, ranks=True)
            if part == "forget" and rows.evidence.oracles and signals.has_signal(subject, "retain", signal):
                values: list[Measured] = []
                for _, observed, others in rows.evidence.models():
                    done = run(observed, part, space, others[:SHADOWS]) if others else None
                    values.append(done and stats.interval(done.v10, done.v01))
                rows.add(f"{space}.{name}.shadow.auc", values, SHADOWED)
    if part == "forget" and signals.score_pair(subject, part, "logits.confidence"):
        done = rows.each(
            lambda o: attacks_fitted.mia_svc(o) if signals.score_pair(o, part, "logits.confidence") else None
        )
        rows.add("logits.mia_svc.rate", [a and a.recall for a in done], SVC)
        rows.add("logits.mia_svc.false_rate", [a and a.false_rate for a in done], "the same, of non-members")
