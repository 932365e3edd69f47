"""Criteria of a verdict: thresholds that are fixed before any score is seen."""

from __future__ import annotations

from dataclasses import dataclass

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import OpenHalf, Share


@dataclass(frozen=True)
class Criteria(Settings):
    """Thresholds of the verdict, fixed before any score is seen."""

    delta: OpenHalf = 0.05
    """Resolution δ: largest distance of an AUC from 0.5 that counts as no difference."""
    alpha: OpenHalf = 0.05
    """Error probability allowed for each claim."""
    max_utility_drop: Share = 0.05
    """Largest acceptable loss of kNN accuracy on test, and of recall@10 of image-text models (0.05: five points)."""
    signals: tuple[str, ...] | None = None
    """Signals that decide; None: the margins of backbone, projector and classifier, where observed."""

    def __post_init__(self) -> None:
        """Refuse thresholds that no interval or every interval would meet."""
        super().__post_init__()
        if self.signals is not None and (not self.signals or len(set(self.signals)) < len(self.signals)):
            raise EffaceError(
                f"A verdict cannot rest on the signals {list(self.signals)}.",
                "The list is empty, or names a signal twice.",
            )
