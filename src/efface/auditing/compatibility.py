"""Check whether an index of stored embeddings still fits an encoder that has changed. NumPy only.

    c_i = cos(old_i, new_i)                                     the same image before and after
    o   = mean over queries q of |NN_k(new_q; old) ∩ NN_k(new_q; new)| / k

old_i, new_i: embeddings of image i by the old and the new encoder. NN_k(v; index): the k rows of an index with the
highest cosine to v, without the query's own row. The overlap o measures what users would see: it compares search
results of the new encoder on the stored vectors with its results on a rebuilt index.

Rule: the stored vectors may be kept if both encoders have the same embedding width, the 5 % quantile of c is at least
``min_cosine`` and o is at least ``min_overlap``. Otherwise the index must be rebuilt. Rows of forgotten images must be
removed in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from efface.auditing.representations import similarity_blocks, unit_rows
from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Cosine, Count, Share

LOW = 0.05
"""The quantile of the cosines that the rule tests."""


@dataclass(frozen=True, kw_only=True)
class CompatibilityCriteria(Settings):
    """Thresholds of the decision whether stored vectors may be kept."""

    min_cosine: Cosine = 0.95
    """Smallest acceptable 5 % quantile of the cosine between an image's old and new embedding."""
    min_overlap: Share = 0.9
    """Smallest acceptable share of a rebuilt index's neighbors that the stored vectors return too."""
    neighbors: Count = 10
    """Number of neighbors k to compare."""
    rows: Count = 5000
    """Largest number of images to embed (a random sample by key)."""
    queries: Count = 1000
    """Largest number of these images to use as queries."""


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """How well two encoders agree on the same images."""

    rule: CompatibilityCriteria
    images: int
    widths: tuple[int, int]
    """Embedding dimensions, old and new."""
    cosine: dict[str, float] | None
    """``mean``, ``median``, ``low`` (5 % quantile) and ``least`` of c; ``None`` if the widths differ."""
    overlap: float | None
    """o, in [0, 1], higher is better; ``None`` if the widths differ."""
    drift: float
    """Neighbor overlap of old queries on the old index and new queries on the new index."""

    @property
    def reasons(self) -> list[str]:
        """Why the stored vectors may not be kept; empty if they may."""
        if self.cosine is None or self.overlap is None:
            return [f"the embeddings have {self.widths[0]} numbers before and {self.widths[1]} after"]
        found = []
        if self.cosine["low"] < self.rule.min_cosine:
            found.append(
                f"5 % of the cosines are below {self.cosine['low']:.4f}, and {self.rule.min_cosine:g} is required"
            )
        if self.overlap < self.rule.min_overlap:
            found.append(f"the neighbor overlap is {self.overlap:.4f}, and {self.rule.min_overlap:g} is required")
        return found

    @property
    def keep(self) -> bool:
        """Whether stored vectors of images that were not forgotten may be kept."""
        return not self.reasons

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable form."""
        return vars(self) | {"rule": vars(self.rule), "keep": self.keep, "reasons": self.reasons}

    def lines(self, forgotten: int) -> list[str]:
        """Format the result for a terminal; ``forgotten`` is the number of images that the new encoder forgot."""
        k, rule = self.rule.neighbors, self.rule
        shown = [f"{self.images} images, {k} neighbors"]
        if self.cosine is not None and self.overlap is not None:
            cosine = self.cosine
            shown += [
                f"cosine of old and new   median {cosine['median']:.4f}, 5 % below {cosine['low']:.4f}, least "
                f"{cosine['least']:.4f}",
                f"neighbor overlap        {self.overlap:.4f}: new queries, stored vectors against rebuilt ones",
            ]
        shown += [f"                        {self.drift:.4f}: old queries on old vectors against new on new"]
        shown += [
            f"rule                    keep if 5 % quantile >= {rule.min_cosine:g} and overlap >= {rule.min_overlap:g}"
        ]
        if self.keep:
            shown += ["Stored vectors may be kept, as far as search is concerned. They were made by the old encoder."]
        else:
            shown += [f"The index must be REBUILT: {'; '.join(self.reasons)}.", "Use `efface embed NEW --data D`."]
        count = (
            f"{forgotten} of these images were forgotten"
            if forgotten
            else "none of these images is known as forgotten; where any was"
        )
        return [*shown, f"In any case: {count}: their rows must be removed from the index, its backups and caches."]


def compare_embeddings(
    old: np.ndarray, new: np.ndarray, rule: CompatibilityCriteria = CompatibilityCriteria()
) -> Compatibility:
    """Compare the embeddings of the same images by an old and a new encoder.

    Args:
        old: Embeddings ``[n, d_old]`` by the old encoder.
        new: Embeddings ``[n, d_new]`` of the same images, in the same order, by the new encoder.
        rule: Thresholds of the decision.

    Returns:
        Cosines, neighbor overlap and, in ``keep`` and ``reasons``, the decision.

    Raises:
        EffaceError: If the arrays do not match, are too short for ``rule.neighbors`` or are not finite.

    """
    if len(old) != len(new) or len(old) <= rule.neighbors:
        raise EffaceError(
            f"{len(old)} old and {len(new)} new embeddings cannot be compared.",
            f"Every image needs one of each, and there must be more images than {rule.neighbors} neighbors.",
            "Give more images, or set fewer neighbors.",
        )
    for name, rows in (("old", old), ("new", new)):
        if not np.isfinite(rows).all():
            raise EffaceError(f"The {name} encoder gives embeddings that are not finite numbers.")
    before, after = unit_rows(old), unit_rows(new)
    own = np.arange(min(rule.queries, len(before)))
    rebuilt = nearest_rows(after[own], after, own, rule.neighbors)
    stored = nearest_rows(before[own], before, own, rule.neighbors)
    same = before.shape[1] == after.shape[1]
    cosines = (before * after).sum(1) if same else None
    return Compatibility(
        rule=rule,
        images=len(before),
        widths=(before.shape[1], after.shape[1]),
        cosine=None if cosines is None else _described(cosines),
        overlap=neighbor_overlap(nearest_rows(after[own], before, own, rule.neighbors), rebuilt) if same else None,
        drift=neighbor_overlap(stored, rebuilt),
    )


def nearest_rows(queries: np.ndarray, index: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Return the k rows of ``index`` most similar to each query, ``[m, k]``, without the query's ``own`` row."""
    found = np.empty((len(queries), k), np.int64)
    for rows, similar in similarity_blocks(queries, index, 256, own):
        found[rows] = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    return found


def neighbor_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean share of neighbors that two tables ``[m, k]`` have in common."""
    return float(np.mean([len(np.intersect1d(x, y)) / len(x) for x, y in zip(a, b, strict=True)]))


def _described(cosines: np.ndarray) -> dict[str, float]:
    low, median = np.quantile(cosines, (LOW, 0.5))
    return {
        "mean": float(cosines.mean()),
        "median": float(median),
        "low": float(low),
        "least": float(cosines.min()),
    }
