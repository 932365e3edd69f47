"""Non-member share audit: which share of the forgotten looks like examples that were never trained on.

    P_F = π P_H + (1 - π) P_M          π = 1 - (m_F - m_H) / (m_R - m_N)          m: mean of w·φ(x)

φ: features of an example under the one model that is judged; w: Fisher's direction from N to R, fitted on one half of R
and N and used on the other. N: the never-trained examples of R's kind, H: those of F's kind, M: members of F's kind.
π is near 0 for the original and near 1 for a retrained model. Above 1 the forgotten are less member-like than unseen
examples; it is not cut off. No reference is needed. Where R and N cannot be told apart, there is no π.

``signals``   φ: all signals of all spaces        ``features``   φ: the backbone's features

Source      after SMI: Sun et al., Statistical Membership Inference for Reliable Unlearned Model Auditing, 2026, arXiv
            2602.01150, which estimates the non-member mixture proportion in the unlearned features without training.
Departures  its equations could not be read: the estimator is ours, with Fieller's interval instead of a bootstrap. For
            classes or groups the shift from non-member to member is taken from R's, of another kind than F. An F that
            is no random draw may be unlike H also for a model that never saw it: then only retrained models say
            what stands for 1.
Tests cover a share cut off at 1; a direction used on the examples that it was fitted on; a share where members and
            non-members look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface.auditing import representations, signals
from efface.auditing.attacks.discriminant import fisher_direction
from efface.auditing.attacks.ratios import Ratio, ratio_of_means
from efface.auditing.attacks.signal_tables import FEWEST_COMPARED, halves_by_key, shared_signals, signal_table
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations


@dataclass(frozen=True)
class NonmemberShare:
    """Share of non-members among the forgotten, in each space."""

    level: float = 0.95
    """Confidence level of the intervals."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``nonmember_share.signals`` and ``nonmember_share.features``."""
        subject, found = evidence.subject, list[Finding]()
        for space in ("signals", "features"):
            shares = [self.share(o, space) for _, o, _ in evidence.models()]
            values = [one and one.value for one in shares]
            own = shares[0]
            n = (subject.count("forget"), subject.count("holdout"))
            note = "1: like examples never trained on; 0: like retained ones; compare with the retrained model's"
            if own is None:
                note = "retained and never-trained examples cannot be told apart here, or are too few: no share"
            found.append(
                Finding(
                    f"nonmember_share.{space}", values[0], own and (own.low, own.high), "closer", values[1],
                    mean_measured(values[2:]), n, "share", note,
                )
            )  # fmt: skip
        return found

    def share(self, observed: Observations, space: str) -> Ratio | None:
        """Estimate π of one model; None if there are too few examples, or if w tells nothing of unseen halves."""
        other = signals.nonmember_part(observed, "retain")
        parts = ("forget", "holdout", "retain", other)
        if min(observed.count(part) for part in parts) < FEWEST_COMPARED:
            return None
        names = shared_signals((observed,), parts) if space == "signals" else ()
        if not (names if space == "signals" else all(observed.has(part, space) for part in parts)):
            return None

        def table(part: str) -> np.ndarray:
            if space == "features":
                return representations.features(observed, part).astype(np.float64)
            return signal_table(observed, part, names)

        whole = {part: table(part) for part in parts}
        scale = np.concatenate([whole["retain"], whole[other]]).std(axis=0)
        whole = {part: x / np.where(scale > 0, scale, 1.0) for part, x in whole.items()}
        halves = {part: halves_by_key(observed, part) for part in ("retain", other)}
        scored = {part: np.zeros((2, len(x))) for part, x in whole.items()}
        for fold in (0, 1):
            w = fisher_direction(*(whole[part][halves[part][1 - fold]] for part in ("retain", other)))
            for part, x in whole.items():
                scored[part][fold] = x @ w
        mean = {part: z.mean(axis=0) for part, z in scored.items()}
        for part in ("retain", other):  # each of these is scored by the direction that never saw it
            for fold in (0, 1):
                mean[part][halves[part][fold]] = scored[part][fold][halves[part][fold]]
        return share_of_nonmembers(mean["forget"], mean["holdout"], mean["retain"], mean[other], self.level, other)


def share_of_nonmembers(
    forget: np.ndarray, holdout: np.ndarray, retain: np.ndarray, others: np.ndarray, level: float, part: str
) -> Ratio | None:
    """Compute π from scores of F, H, R and N; ``part`` says whether N is the holdout itself."""

    def pair(top: np.ndarray | float, bottom: np.ndarray | float, like: np.ndarray) -> np.ndarray:
        return np.stack([np.broadcast_to(v, like.shape) for v in (top, bottom)], axis=1)

    groups = [pair(forget, 0.0, forget), pair(0.0, retain, retain)]
    if part == "holdout":
        groups.append(pair(-others, -others, others))
    else:
        groups += [pair(-holdout, 0.0, holdout), pair(0.0, -others, others)]
    found = ratio_of_means(groups, level)
    return found and found.shifted(-1.0, 1.0)
