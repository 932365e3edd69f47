"""Calibrate evidence by a reference bank: its models become the references, and the attack learned on it a signal."""

from __future__ import annotations

from dataclasses import replace

from efface.auditing.attacks.learned import attach_scores, fit_attack
from efface.auditing.evidence import Evidence
from efface.auditing.reference_bank import ReferenceBank


def calibrate_evidence(evidence: Evidence, bank: ReferenceBank | None) -> Evidence:
    """Return evidence whose scores are calibrated by a bank, with the signal ``learned``.

    Args:
        evidence: The models of an audit.
        bank: A bank of the original; None: the evidence is returned as it is.

    Raises:
        EffaceError: The bank lacks scores of an example.

    """
    if bank is None:
        return evidence
    calibration = bank.calibrate(evidence.subject)
    attack = fit_attack(bank)
    if attack is None:
        return replace(evidence, calibration=calibration)
    original, subject, *oracles = (
        attach_scores(attack, one, calibration) for one in (evidence.original, evidence.subject, *evidence.oracles)
    )
    return replace(evidence, original=original, subject=subject, oracles=tuple(oracles), calibration=calibration)
