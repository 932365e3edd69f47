"""Exact deletion for heads on a frozen encoder: ridge regression and nearest neighbors, from sufficient statistics.

    ridge    W = (Σ_i x̃_i x̃_iᵀ + Λ)⁻¹ Σ_i x̃_i ỹ_iᵀ
    kNN      the k most similar rows vote (cosine)

x̃ = (x, 1): features and intercept; ỹ: one-hot of the label; Λ = λ I, 0 for the intercept.

The sums are kept in float64; to delete examples their terms are subtracted and W is solved again, which is refitting
without them up to rounding (1e-9 is tested). Nothing statistical is needed as evidence. Each row that was fitted is
known by a digest of its key, label and features: a row that was never fitted, or not in this form, cannot be deleted.
NumPy only; nothing is trained.

Source      Schelter, "Amnesia": A Selection of Machine Learning Models That Can Forget User Data Very Fast, CIDR 2020;
            Cao and Yang, Towards Making Systems Forget, S&P 2015 (the summation form).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from efface.data.dataset import quote_first
from efface.errors import EffaceError

ROW_BYTES = 16
"""Length of a row's digest."""


def row_digests(keys: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Digest each row by its key, label and features (as float64), ``[n]`` of ``ROW_BYTES`` bytes."""
    exact = np.ascontiguousarray(features, dtype=np.float64)
    found = [
        hashlib.blake2b(f"{key}\0{label}\0".encode("utf-8", "surrogatepass") + row.tobytes(), digest_size=ROW_BYTES)
        for key, label, row in zip(keys.tolist(), labels.tolist(), exact, strict=True)
    ]
    return np.array([one.digest() for one in found], dtype=f"V{ROW_BYTES}")


def find_rows(fitted: np.ndarray, removed: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Positions of ``removed`` rows among the ``fitted`` ones, each used once.

    Raises:
        EffaceError: If a row was not fitted, or is asked for more often than it was fitted.

    """
    places: dict[bytes, list[int]] = {}
    for place, one in enumerate(fitted.tolist()):
        places.setdefault(bytes(one), []).append(place)
    found, strange = list[int](), list[str]()
    for key, one in zip(keys.tolist(), removed.tolist(), strict=True):
        if where := places.get(bytes(one)):
            found.append(where.pop())
        else:
            strange.append(str(key))
    if strange:
        raise EffaceError(
            f"{len(strange)} of {len(keys)} rows were not fitted in this form: {quote_first(strange)}.",
            "The key, the label or the features differ from those that the head was fitted on, or they were deleted.",
            "Give the embeddings that it was fitted on, from the same encoder.",
        )
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class RidgeHead:
    """A linear classifier by ridge regression, with the sums it was solved from.

    Example:
        >>> head = RidgeHead.fit(keys, features, labels, classes=("cat", "dog"))
        >>> head.without(keys[:1], features[:1], labels[:1]).predict(features)

    """

    gram: np.ndarray
    """Σ x̃ x̃ᵀ, float64 ``[d + 1, d + 1]``."""
    moments: np.ndarray
    """Σ x̃ ỹᵀ, float64 ``[d + 1, c]``."""
    rows: np.ndarray
    """Digest of each fitted row, ``[n]``."""
    classes: tuple[str, ...]
    penalty: float = 1.0
    """λ, above 0."""

    @classmethod
    def fit(
        cls, keys: np.ndarray, features: np.ndarray, labels: np.ndarray, classes: Sequence[str], penalty: float = 1.0
    ) -> RidgeHead:
        """Sum over all rows.

        Args:
            keys: Identity of each row, ``[n]``.
            features: Finite numbers, ``[n, d]``.
            labels: Positions in ``classes``, ``[n]``.
            classes: Names of the classes.
            penalty: λ, above 0.

        """
        if not penalty > 0 or not np.isfinite(penalty):
            raise EffaceError(f"The penalty of a ridge head cannot be {penalty}.", "It is a finite number above 0.")
        gram, moments = _sums(features, labels, len(classes))
        return cls(gram, moments, row_digests(keys, features, labels), tuple(classes), penalty)

    def without(self, keys: np.ndarray, features: np.ndarray, labels: np.ndarray) -> RidgeHead:
        """The head as if these rows had never been fitted."""
        gone = find_rows(self.rows, row_digests(keys, features, labels), keys)
        gram, moments = _sums(features, labels, len(self.classes))
        rows = np.delete(self.rows, gone)
        return RidgeHead(self.gram - gram, self.moments - moments, rows, self.classes, self.penalty)

    def solve(self) -> np.ndarray:
        """W, float64 ``[d + 1, c]``; the last row is the intercept."""
        if not len(self.rows):
            raise EffaceError("A head of no rows has no weights.", "All of them were deleted.")
        ridge = self.penalty * np.eye(len(self.gram))
        ridge[-1, -1] = 0
        return np.linalg.solve(self.gram + ridge, self.moments)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Score of each class, ``[n, c]``; the highest is the prediction."""
        weights = self.solve()
        return np.asarray(features, dtype=np.float64) @ weights[:-1] + weights[-1]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Position of the predicted class, ``[n]``."""
        return self.scores(features).argmax(1)


@dataclass(frozen=True, eq=False)
class NeighborHead:
    """A kNN classifier by cosine similarity: its rows are all there is, so deletion removes them."""

    features: np.ndarray
    """Rows as they were given, ``[n, d]``."""
    labels: np.ndarray
    """Positions in ``classes``, ``[n]``."""
    rows: np.ndarray
    """Digest of each row as it was given, ``[n]``."""
    classes: tuple[str, ...]
    neighbors: int = 20

    @classmethod
    def fit(
        cls, keys: np.ndarray, features: np.ndarray, labels: np.ndarray, classes: Sequence[str], neighbors: int = 20
    ) -> NeighborHead:
        """Keep all rows; arguments as in :meth:`RidgeHead.fit`, ``neighbors``: how many vote."""
        if neighbors < 1:
            raise EffaceError(f"The number of neighbors cannot be {neighbors}.", "It is at least 1.")
        _require_rows(features, labels, len(classes))
        rows = row_digests(keys, features, labels)
        return cls(np.array(features), labels.astype(np.int64), rows, tuple(classes), neighbors)

    @cached_property
    def units(self) -> np.ndarray:
        """The rows scaled to length one, float64 ``[n, d]``."""
        exact = np.asarray(self.features, dtype=np.float64)
        return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)

    def without(self, keys: np.ndarray, features: np.ndarray, labels: np.ndarray) -> NeighborHead:
        """The head as if these rows had never been there."""
        gone = find_rows(self.rows, row_digests(keys, features, labels), keys)
        kept = np.setdiff1d(np.arange(len(self.rows)), gone)
        return NeighborHead(self.features[kept], self.labels[kept], self.rows[kept], self.classes, self.neighbors)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Share of the neighbors' votes for each class, ``[n, c]``."""
        if not len(self.rows):
            raise EffaceError("A head of no rows cannot predict.", "All of them were deleted.")
        exact, votes = np.asarray(features, dtype=np.float64), np.zeros((len(features), len(self.classes)))
        k = min(self.neighbors, len(self.rows))
        for start in range(0, len(exact), 512):
            similarity = exact[start : start + 512] @ self.units.T
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            for place, labels in enumerate(self.labels[nearest]):
                votes[start + place] = np.bincount(labels, minlength=len(self.classes)) / k
        return votes

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Position of the predicted class, ``[n]``."""
        return self.scores(features).argmax(1)


def _sums(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Σ x̃ x̃ᵀ and Σ x̃ ỹᵀ in float64, a slice of rows at a time."""
    _require_rows(features, labels, classes)
    width = features.shape[1] + 1
    gram, moments = np.zeros((width, width)), np.zeros((width, classes))
    for start in range(0, len(features), 8192):
        rows = features[start : start + 8192].astype(np.float64)
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        target = np.eye(classes)[labels[start : start + 8192]]
        gram += rows.T @ rows
        moments += rows.T @ target
    return gram, moments


def _require_rows(features: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Raise unless features are finite numbers, and labels are positions among the classes."""
    if features.ndim != 2 or len(features) != len(labels):
        raise EffaceError(f"Features of shape {features.shape} do not fit {len(labels)} labels.", "They are [n, d].")
    if not np.isfinite(features).all():
        raise EffaceError("Some features are not finite numbers.", "A head cannot be fitted on NaN or infinity.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise EffaceError(f"Labels go from {labels.min()} to {labels.max()}, and there are {classes} classes.")
