"""Relearning audit: how many steps of further training bring the membership signal back, in subject and oracles.

    lost(model) = AUC(original) - AUC(model)         half(model) = AUC(model) + lost(model) / 2
    steps(model) = first snapshot at which AUC(model's copy) >= half(model)

AUC: forget against holdout, on each prespecified signal. With two oracles or more every model has an oracle other than
itself, and the scores are calibrated by the oracles; otherwise they are raw. Training on R teaches nothing about F, so
a signal that returns was only hidden. Training on F teaches F to every model, so only a copy that is faster than the
oracles' is informative. A model that lost no more than ``least`` has nothing to regain and no steps.

Source      relearning time, Golatkar et al. 2020, arXiv 1911.04933.
Departures  the signal is membership instead of loss, and the goal is half of what was lost instead of a fixed level.
Tests cover a model compared with itself; a signal that was back before the first step; steps where none were enough.
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
    """AUC of the attack on one model's copy, over the steps."""

    steps: tuple[int, ...]
    auc: tuple[float, ...]
    original: float
    """AUC of the original with the same references."""

    def half(self) -> float:
        """Return the AUC at which half of the loss is regained."""
        return (self.auc[0] + self.original) / 2

    def returned(self, least: float) -> int | None:
        """Return the steps until half of the loss is regained; None if it never is, or if little was lost."""
        if self.original - self.auc[0] <= least:
            return None
        return next((s for s, v in zip(self.steps, self.auc, strict=True) if v >= self.half()), None)


@dataclass(frozen=True)
class Relearn:
    """Steps until half of the lost signal is back, in the subject and in the oracles."""

    least: float = 0.05
    """Losses of AUC up to this do not count."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``relearn.<part>.<signal>.steps`` and ``.regained`` (AUC gained by the last snapshot)."""
        return [
            finding
            for copies in evidence.relearned
            for signal in signals.prespecified_signals(evidence.subject)
            for finding in self.signal(evidence, copies, signal)
        ]

    def signal(self, evidence: Evidence, copies: RelearnedCopies, signal: str) -> list[Finding]:
        """Build both findings of one signal; the details of ``.steps`` hold every curve."""
        curves = {name: self.curve(evidence, copies, name, signal) for name in copies.snapshots}
        subject, last = curves["subject"], curves["subject"].steps[-1]
        oracles = [curve for name, curve in curves.items() if name != "subject"]
        steps = {name: curve.returned(self.least) for name, curve in curves.items()}
        known = [steps[name] for name in curves if name != "subject"]
        mean = float(np.mean([s for s in known if s is not None])) if known and None not in known else None
        name, n = f"relearn.{copies.on}.{signal}", (evidence.subject.count("forget"), evidence.subject.count("holdout"))
        details = {"last": last, "curves": {k: curve_as_dict(c, steps[k]) for k, c in curves.items()}}
        value = steps["subject"]
        return [
            Finding(
                f"{name}.steps", None if value is None else float(value), None, "closer", None, mean, n, "steps",
                self.note(copies.on, curves, steps), details,
            ),
            Finding(
                f"{name}.regained", subject.auc[-1] - subject.auc[0], None, "closer", None,
                float(np.mean([c.auc[-1] - c.auc[0] for c in oracles])) if oracles else None, n,
                note=f"AUC won in {last} steps on {copies.on}",
            ),
        ]  # fmt: skip

    def note(self, part: str, curves: dict[str, RelearnCurve], steps: dict[str, int | None]) -> str:
        """Describe each model's number of steps in words."""
        parts = []
        for name, curve in curves.items():
            lost = curve.original - curve.auc[0]
            if lost <= self.least:
                parts.append(f"{name} lost {lost:.3f}, nothing to regain")
            else:
                back = "never" if steps[name] is None else f"after {steps[name]}"
                parts.append(f"{name} lost {lost:.3f}, half of it back {back}")
        last = curves["subject"].steps[-1]
        return f"steps on {part} until half of the lost AUC is back, of {last}: {'; '.join(parts)}"

    def curve(self, evidence: Evidence, copies: RelearnedCopies, name: str, signal: str) -> RelearnCurve:
        """Compute the AUC over the steps, with the references of the model called ``name``."""
        references = reference_oracles(evidence, name)
        snapshots = copies.snapshots[name]
        return RelearnCurve(
            tuple(step for step, _ in snapshots),
            tuple(forget_auc(observed, references, signal) for _, observed in snapshots),
            forget_auc(evidence.original, references, signal),
        )


def reference_oracles(evidence: Evidence, name: str) -> tuple[Observations, ...]:
    """Return the oracles that serve as a model's references: never itself; none if any model would have none."""
    if len(evidence.oracles) < 2:
        return ()
    return next(others for known, _, others in evidence.models() if known == name)


def forget_auc(observed: Observations, references: Sequence[Observations], signal: str) -> float:
    """Compute the AUC of forget against holdout, of scores calibrated by the references where there are any."""
    forget, holdout = (signals.membership_scores(observed, references, part, signal) for part in ("forget", "holdout"))
    return stats.auc(forget, holdout)


def curve_as_dict(curve: RelearnCurve, steps: int | None) -> dict[str, Any]:
    """Convert a curve into a JSON-serializable form."""
    return {
        "steps": list(curve.steps), "auc": list(curve.auc), "original": curve.original,
        "half": curve.half(), "returned": steps,
    }  # fmt: skip
