"""Alignment matrices: how similar the views of each two forgotten examples are, before and after.

    AM[i, j] = E_{t, t'} cos(z(t x_i), z(t' x_j))     AGM = AM_before - AM_after     FS = mean_i AGM[i, i]
 z: embedding. t, t': random views; on the diagonal two different ones. FS > 0: views of a forgotten example
agree less than before. For a data owner who holds only embeddings from before and after: two arrays, no
model. Of image-text models also AM[i, j] = cos(u_i, v_j) of the un-augmented image i and caption j.

Source      after Alignment Calibration (Wang et al. 2024).
Departures  the estimators are ours: views drawn once, the diagonal over t != t'.
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
    """AM ``[n, n]`` of embeddings ``[n, views, d]`` with at least two views; raises otherwise."""
    if embeddings.ndim != 3 or embeddings.shape[1] < 2:
        raise EffaceError(
            f"Embeddings of shape {embeddings.shape} have no alignment.",
            "Expected [examples, views >= 2, dimensions].",
        )
    n, v, d = embeddings.shape
    z = representations.unit_rows(embeddings.reshape(n * v, d)).astype(np.float64).reshape(n, v, d)
    center = z.mean(axis=1)
    matrix = center @ center.T
    own = (z**2).sum(axis=(1, 2))  # the v pairs of a view with itself, left out of the diagonal
    matrix[np.diag_indices(n)] = (v * v * (center**2).sum(axis=1) - own) / (v * (v - 1))
    return matrix


def cross_matrix(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """AM ``[n, n]`` of images (rows) and captions (columns) from their embeddings ``[n, d]`` each."""
    if images.ndim != 2 or images.shape != captions.shape:
        raise EffaceError(
            f"Images of shape {images.shape} and captions of shape {captions.shape} have no alignment.",
            "Expected [examples, dimensions] of both.",
        )
    u, v = (representations.unit_rows(z).astype(np.float64) for z in (images, captions))
    return u @ v.T


def forget_score(before: np.ndarray, after: np.ndarray) -> float:
    """FS of two arrays of embeddings ``[n, views, d]`` of the same examples: mean of the diagonal of AM
    before - after.
    """
    return float((np.diag(alignment_matrix(before)) - np.diag(alignment_matrix(after))).mean())


@dataclass(frozen=True)
class AlignmentMatrix:
    """Forget score per space, and a small heat map of the change between forgotten examples."""

    shown: int = 40
    """Examples in the heat map."""

    def findings(self, evidence: Evidence) -> list[Finding]:
        """``alignment_matrix.<space>.forget_score`` for every space, and ``pair`` where there are captions."""
        found: list[Finding] = self._pairs(evidence)
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
        """The change of images against captions; in the details the matrices before and after of some."""
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
        """Change of the cosine between un-augmented images; on the diagonal, of the agreement of views."""
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
