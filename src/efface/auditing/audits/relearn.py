"""Relearn: how many steps of training on bring the forgotten back, in the subject and in the oracles.

    lost(model) = AUC(original) - AUC(model)         half(model) = AUC(model) + lost(model) / 2
    steps(model) = first look at which AUC(model's copy) >= half(model)

AUC: forget against holdout, on each pre-named signal; of the score minus the oracles' mean where every model has an
oracle other than itself to be compared with (two oracles or more), else of the raw score. On R nothing about F is
taught, so a signal that returns was hidden; on F everybody learns F again, and only a copy that is quicker than the
oracles' says something. A model that lost no more than ``least`` has nothing to regain and no steps.

Source      relearning time, Golatkar et al. 2020, arXiv 1911.04933, in the form of efface's audit plan.
Departures  the signal is membership and not loss; half of what was lost, and not a fixed level.
Tests kill  a model compared with itself; a return that was there before the first step; steps where none sufficed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence, Finding, RelearnedCopies
from efface.auditing.observations import Observations


@dataclass(frozen=True)
class RelearnCurve:
    """One model's copy: what the attack sees after so many steps."""

    steps: tuple[int, ...]
    auc: tuple[float, ...]
    original: float
    """AUC of the original, by the same references."""

    def half(self) -> float:
        """The AUC at which half of what was lost is back."""
        return (self.auc[0] + self.original) / 2

    def returned(self, least: float) -> int | None:
        """Steps at the first look with half of it back; None where it never came, or little was lost."""
        if self.original - self.auc[0] <= least:
            return None
        return next((s for s, v in zip(self.steps, self.auc, strict=True) if v >= self.half()), None)


@dataclass(frozen=True)
class Relearn:
    """Steps until half of the lost signal is back, beside the oracles'."""

    least: float = 0.05
    """A loss of AUC up to this is none."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``relearn.<what>.<signal>.steps`` and ``.regained`` (AUC won by the last look); none without looks."""
        return [
            finding
            for one in evidence.relearned
            for signal in signals.prespecified_signals(evidence.subject)
            for finding in self.signal(evidence, one, signal)
        ]

    def signal(self, evidence: Evidence, one: RelearnedCopies, signal: str) -> list[Finding]:
        """Both findings of one signal; the steps come with every curve."""
        curves = {name: self.curve(evidence, one, name, signal) for name in one.looks}
        subject, last = curves["subject"], curves["subject"].steps[-1]
        oracles = [curve for name, curve in curves.items() if name != "subject"]
        steps = {name: curve.returned(self.least) for name, curve in curves.items()}
        known = [steps[name] for name in curves if name != "subject"]
        mean = float(np.mean([s for s in known if s is not None])) if known and None not in known else None
        name, n = f"relearn.{one.on}.{signal}", (evidence.subject.count("forget"), evidence.subject.count("holdout"))
        value, details = (
            steps["subject"],
            {"last": last, "curves": {k: curve_as_dict(c, steps[k]) for k, c in curves.items()}},
        )
        return [
            Finding(
                f"{name}.steps", None if value is None else float(value), None, "closer", None, mean, n, "steps",
                self.note(one, curves, steps), details,
            ),
            Finding(
                f"{name}.regained", subject.auc[-1] - subject.auc[0], None, "closer", None,
                float(np.mean([c.auc[-1] - c.auc[0] for c in oracles])) if oracles else None, n,
                note=f"AUC won in {last} steps on {one.on}",
            ),
        ]  # fmt: skip

    def note(self, one: RelearnedCopies, curves: dict[str, RelearnCurve], steps: dict[str, int | None]) -> str:
        """What each model's number of steps is, in words."""
        said = []
        for name, curve in curves.items():
            lost = curve.original - curve.auc[0]
            if lost <= self.least:
                said.append(f"{name} lost {lost:.3f}, nothing to regain")
            else:
                back = "never" if steps[name] is None else f"after {steps[name]}"
                said.append(f"{name} lost {lost:.3f}, half of it back {back}")
        return (
            f"steps on {one.on} until half of the lost AUC is back, of {curves['subject'].steps[-1]}: {'; '.join(said)}"
        )

    def curve(self, evidence: Evidence, one: RelearnedCopies, name: str, signal: str) -> RelearnCurve:
        """AUC over the steps, by the references of this very model."""
        references = reference_oracles(evidence, name)
        looks = one.looks[name]
        return RelearnCurve(
            tuple(step for step, _ in looks),
            tuple(forget_auc(seen, references, signal) for _, seen in looks),
            forget_auc(evidence.original, references, signal),
        )


def reference_oracles(evidence: Evidence, name: str) -> tuple[Observations, ...]:
    """The oracles that a model is compared with: never itself, and none where some model would have none."""
    if len(evidence.oracles) < 2:
        return ()
    return next(others for known, _, others in evidence.models() if known == name)


def forget_auc(seen: Observations, references: Sequence[Observations], signal: str) -> float:
    """Forget against holdout, of the score less the references' mean where there are any."""
    if references:
        sides = [signals.calibrated_scores(seen, references, part, signal) for part in ("forget", "holdout")]
    else:
        sides = [signals.scores(seen, part, signal) for part in ("forget", "holdout")]
    return stats.auc(sides[0], sides[1])


def curve_as_dict(curve: RelearnCurve, steps: int | None) -> dict[str, Any]:
    """A curve, JSON-able."""
    return {
        "steps": list(curve.steps), "auc": list(curve.auc), "original": curve.original,
        "half": curve.half(), "returned": steps,
    }  # fmt: skip
