"""Alignment matrix audit: how similar the views of two forgotten examples are, before and after unlearning.

    AM[i, j] = E_{t, t'} cos(z(t x_i), z(t' x_j))     AGM = AM_before - AM_after     FS = mean_i AGM[i, i]

z: embedding. t, t': random views; on the diagonal two different ones. FS > 0: the views of a forgotten example agree
less than before. For image-text models also AM[i, j] = cos(u_i, v_j) of the un-augmented image i and the caption j.

Source      after Alignment Calibration (Wang et al. 2024).
Departures  the estimators are ours: views are drawn once, and the diagonal is the mean over t != t'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import representations, signals
from efface.auditing.evidence import Evidence, Finding, mean_measured
from efface.auditing.observations import Observations
from efface.errors import EffaceError


def alignment_matrix(embeddings: np.ndarray) -> np.ndarray:
    """Compute AM ``[n, n]`` from embeddings ``[n, views, d]``.

    Raises:
        EffaceError: If there are fewer than two views of each example.

    """
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        raise EffaceError(
            f"The alignment of embeddings of shape {embeddings.shape} cannot be computed.",
            "Expected [examples, views >= 2, dimensions].",
        )
    n, v, d = embeddings.shape
    z = representations.unit_rows(embeddings.reshape(n * v, d)).astype(np.float64).reshape(n, v, d)
    center = z.mean(axis=1)
    matrix = center @ center.T
    same_view = (z**2).sum(axis=(1, 2))  # the v pairs of a view with itself do not count
    matrix[np.diag_indices(n)] = (v * v * (center**2).sum(axis=1) - same_view) / (v * (v - 1))
    return matrix


def cross_matrix(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Compute AM ``[n, n]`` of images (rows) and captions (columns) from their embeddings, ``[n, d]`` each."""
    if images.ndim != 2 or images.shape != captions.shape:
        raise EffaceError(
            f"The alignment of images {images.shape} and captions {captions.shape} cannot be computed.",
            "Expected [examples, dimensions] of both.",
        )
    u, v = (representations.unit_rows(z).astype(np.float64) for z in (images, captions))
    return u @ v.T


@dataclass(frozen=True)
class AlignmentMatrix:
    """Forget score per space, and a heat map of the change between forgotten examples."""

    shown: int = 40
    """Number of examples in the heat map."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``alignment_matrix.<space>.forget_score`` for every space, and ``pair`` where there are captions."""
        found = self._pairs(evidence)
        for space in evidence.subject.spaces:
            name = f"{space}.pairs"
            if not (evidence.subject.has("forget", name) and evidence.original.has("forget", name)):
                continue
            before = evidence.original.of("forget", name).astype(np.float64).mean(axis=1)
            drop = before - evidence.subject.of("forget", name).astype(np.float64).mean(axis=1)
            oracles = [
                float((before - o.of("forget", name).astype(np.float64).mean(axis=1)).mean())
                for o in evidence.oracles
                if o.has("forget", name)
            ]
            interval = stats.bootstrap(lambda v: float(v.mean()), drop, draws=500)
            note = "how much less two views of a forgotten example agree than in the original"
            details = self._map(evidence.original, evidence.subject, drop) if space == "backbone" else {}
            found.append(
                Finding(
                    f"alignment_matrix.{space}.forget_score",
                    float(drop.mean()),
                    interval,
                    "closer",
                    0.0,
                    mean_measured(oracles),
                    (len(drop),),
                    note=note,
                    details=details,
                )
            )
        return found

    def _pairs(self, evidence: Evidence) -> list[Finding]:
        """Measure the change of images against captions; the details hold both matrices for some examples."""
        if not all(evidence.subject.has("forget", name) for name in ("image", "text")):
            return []
        each = [cross_matrix(o.of("forget", "image"), o.of("forget", "text")) for _, o, _ in evidence.models()]
        after, before, *oracles = each
        drop = np.diag(before) - np.diag(after)
        rows = np.sort(signals.random_order_by_key(evidence.subject.of("forget", "keys"))[: self.shown])
        found = Finding(
            "alignment_matrix.pair.forget_score",
            float(drop.mean()),
            stats.bootstrap(lambda v: float(v.mean()), drop, draws=500),
            "closer",
            0.0,
            mean_measured(float((np.diag(before) - np.diag(o)).mean()) for o in oracles),
            (len(drop),),
            note="how much less a forgotten image agrees with its caption than in the original",
            details={
                "keys": [str(k) for k in evidence.subject.of("forget", "keys")[rows]],
                "before": before[np.ix_(rows, rows)].round(4).tolist(),
                "after": after[np.ix_(rows, rows)].round(4).tolist(),
                "change": (before - after)[np.ix_(rows, rows)].round(4).tolist(),
            },
        )
        return [found]

    def _map(self, before: Observations, after: Observations, drop: np.ndarray) -> dict[str, object]:
        """Build the heat map: change of the cosine of un-augmented images; on the diagonal, of two views."""
        rows = np.sort(signals.random_order_by_key(after.of("forget", "keys"))[: self.shown])
        old, new = (
            representations.unit_rows(representations.features(o, "forget")[rows]).astype(np.float64)
            for o in (before, after)
        )
        change = old @ old.T - new @ new.T
        change[np.diag_indices(len(rows))] = drop[rows]
        return {
            "keys": [str(k) for k in after.of("forget", "keys")[rows]],
            "change": change.round(4).tolist(),
        }
