"""Membership audit: how well each attack tells forgotten and retained examples from never-trained ones.

Read the subject's numbers with those of the original and the oracles: an attack that cannot see the examples in the
original proves nothing, and one that sees as much in an oracle detects something other than membership.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from efface import stats
from efface.auditing import signals
from efface.auditing.attacks import fitted, reference_models
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations

_T = TypeVar("_T")
Measured = float | tuple[float, float, float] | None
"""A number, ``(value, low, high)``, or None where a model has no such signal."""
MEANING = "0.5: members and non-members look alike; compare with the oracle, which never saw the forget set"
AT = "at a threshold chosen on other examples; precision as if members and non-members were equally many"
SVC = "share of the forget set that the SVC calls member; Unlearn-Sparse and SalUn print 1 - this: MIA efficacy"
SHADOWED = f"fitted on shadow encoders, the references; {MEANING}"
SHADOWS = 4
"""Largest number of shadow encoders on which an attack is fitted."""


@dataclass(frozen=True)
class Membership:
    """AUC, rates at a threshold chosen on other examples, and TPR at low FPR, of every attack."""

    false_rates: tuple[float, ...] = (0.01, 0.001)
    """False-positive rates at which the true-positive rate is reported."""
    points: int = 200
    """Number of points of a ROC curve in figures."""
    bins: int = 40
    """Number of bins of the histograms in figures."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``membership.<signal>.*`` for the forget set, ``membership.retain.<signal>.*`` for retained examples."""
        found: list[Finding] = []
        for part in ("forget", "retain"):
            rows = PartFindings(evidence, part, f"membership.{'retain.' if part == 'retain' else ''}")
            for signal in signals.available_signals(evidence.subject, part):
                self.signal(rows, signal)
                if part == "forget" and evidence.references:
                    self.referenced(rows, signal)
            fitted_attacks(rows)
            found += rows.found
        return found

    def signal(self, rows: PartFindings, signal: str) -> None:
        """Add the findings of one signal: AUC, rates at the best threshold, and TPR at low FPR."""
        pairs = rows.each(lambda o: signals.score_pair(o, rows.part, signal))
        details = self.figure(rows, signal) if signal in signals.prespecified_signals(rows.evidence.subject) else {}
        rows.add(f"{signal}.auc", [p and stats.delong(*p) for p in pairs], MEANING, details)
        rows.rates(
            signal,
            lambda o: fitted.cross_fitted_attack(o, rows.part, signal, fitted.fit_threshold),
            signal,
        )
        self.low_rates(rows, signal, pairs)

    def referenced(self, rows: PartFindings, signal: str) -> None:
        """Add attacks with references; an oracle is attacked with the other oracles, so a single one has no value."""
        for name, (score, note) in reference_models.attacks_for_signal(signal).items():
            pairs = [
                reference_models.score_both_sides(observed, others, signal, score)
                for _, observed, others in rows.evidence.models()
            ]
            rows.add(f"{signal}.{name}.auc", [p and stats.delong(*p) for p in pairs], f"{note}; {MEANING}")
            if signal.endswith(".margin"):
                self.low_rates(rows, f"{signal}.{name}", pairs)

    def low_rates(self, rows: PartFindings, name: str, pairs: Sequence[tuple[Any, Any] | None]) -> None:
        """Add true-positive rates at low false-positive rates, where there are enough non-members."""
        for rate in self.false_rates:
            rates = [p and stats.tpr_at_fpr(*p, rate) for p in pairs]
            values = [r.measured if r else None for r in rates]
            rows.add(f"{name}.tpr_at_1_in_{round(1 / rate)}", values, rates[0].note if rates[0] else "")

    def figure(self, rows: PartFindings, signal: str) -> dict[str, Any]:
        """Compute ROC curves, histograms on shared edges, and the permutation p of the subject's AUC."""
        named = ((name, signals.score_pair(o, rows.part, signal)) for name, o, _ in rows.evidence.models())
        pairs = {name: pair for name, pair in named if pair}
        return stats.summarize_for_figures(pairs, self.points, self.bins) | {
            "permutation_p": stats.permutation(*pairs["subject"])
        }


@dataclass(frozen=True)
class PartFindings:
    """Collects findings about one part, each measured for subject, original and oracles."""

    evidence: Evidence
    part: str
    prefix: str
    found: list[Finding] = field(default_factory=list)

    def each(self, measure: Callable[[Observations], _T]) -> list[_T]:
        """Apply ``measure`` to the subject, the original and every oracle."""
        return [measure(o) for _, o, _ in self.evidence.models()]

    def add(self, name: str, values: Sequence[Measured], note: str, details: dict[str, Any] | None = None) -> None:
        """Add a finding from the values of subject, original and oracles."""
        subject, other = self.evidence.subject, signals.nonmember_part(self.evidence.subject, self.part)
        plain = [v[0] if isinstance(v, tuple) else v for v in values]
        interval = (values[0][1], values[0][2]) if isinstance(values[0], tuple) else None
        n = (subject.count(self.part), subject.count(other))
        self.found.append(
            Finding(
                self.prefix + name, plain[0], interval, "closer", plain[1], mean_measured(plain[2:]), n,
                note=note, details=details or {},
            )
        )  # fmt: skip

    def rates(
        self, name: str, run: Callable[[Observations], fitted.AttackResult], signal: str, ranks: bool = False
    ) -> None:
        """Add balanced accuracy, precision and recall of an attack on ``signal``; with ``ranks`` also its AUC."""
        if not signals.has_signal(self.evidence.subject, "retain", signal):
            return  # no members to choose a threshold on
        results = self.each(lambda o: run(o) if signals.score_pair(o, self.part, signal) else None)
        unused = "; no example was called a member" if results[0] and results[0].precision is None else ""
        if ranks:
            self.add(f"{name}.auc", [a and stats.interval(a.v10, a.v01) for a in results], MEANING)
        self.add(f"{name}.balanced_accuracy", [a and a.balanced_accuracy for a in results], AT)
        self.add(f"{name}.precision", [a and a.precision for a in results], AT + unused)
        self.add(f"{name}.recall", [a and a.recall for a in results], AT)


def fitted_attacks(rows: PartFindings) -> None:
    """Add EncoderMI in each space, with shadow encoders where there are references; for classifiers the SVC."""
    subject, part = rows.evidence.subject, rows.part
    for space in subject.spaces:
        signal = f"{space}.alignment"
        if not signals.score_pair(subject, part, signal):
            continue
        attempts = {"encodermi_v": fitted.encodermi_v} | (
            {"encodermi_s": fitted.encodermi_s} if part == "forget" else {}
        )
        for name, run in attempts.items():
            rows.rates(f"{space}.{name}", partial(run, part=part, space=space), signal, ranks=True)
            whole = rows.evidence.oracles and not rows.evidence.calibration  # a bank holds scores, not outputs
            if part == "forget" and whole and signals.has_signal(subject, "retain", signal):
                values: list[Measured] = []
                for _, observed, others in rows.evidence.models():
                    result = run(observed, part, space, others[:SHADOWS]) if others else None
                    values.append(result and stats.interval(result.v10, result.v01))
                rows.add(f"{space}.{name}.shadow.auc", values, SHADOWED)
    if part == "forget" and signals.score_pair(subject, part, "logits.confidence"):
        results = rows.each(lambda o: fitted.mia_svc(o) if signals.score_pair(o, part, "logits.confidence") else None)
        rows.add("logits.mia_svc.rate", [a and a.recall for a in results], SVC)
        rows.add("logits.mia_svc.false_rate", [a and a.false_rate for a in results], "the same, of non-members")
