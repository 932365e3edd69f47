"""Quality of frozen features: k nearest neighbors, linear probe, retrieval and label-free measures.

NumPy only, except for scikit-learn's logistic regression in the linear probe. Accuracies are returned as counts
``(right, of)``, so that callers can compute an exact confidence interval. A measure that needs labels or captions
returns ``None`` where there are none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from efface.auditing.observations import Observations
from efface.auditing.signals import labels, random_order_by_key, score_rows
from efface.data.array_files import row_chunks
from efface.errors import EffaceError

SIMILARITIES_AT_ONCE = 2**24
"""Largest number of similarities kept in memory at once (64 MB of float32)."""
ONE_DIRECTION = 1e-6
"""Share of their squared length up to which unit rows that differ count as one direction."""
Hits = tuple[int, int]
"""``(right, of)``: correct predictions, and how many were made."""


def features(observed: Observations, part: str) -> np.ndarray:
    """Return the features ``[n, d]`` of ``part``.

    Raises:
        EffaceError: If any feature is NaN or infinite.

    """
    found = observed.of(part, "features")
    bad = int(np.count_nonzero(~np.isfinite(found).all(axis=1)))
    if bad:
        raise EffaceError(
            f"{bad} of {len(found)} features of '{part}' are not finite numbers.",
            "The utility of a model that diverged cannot be measured.",
            "Check the log of the run for the step at which its loss or weights stopped being finite.",
        )
    return found


def unit_rows(x: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Scale each row of ``x`` (its last axis) to L2 norm 1; a row of zeros stays zero."""
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), dtype=dtype)


def similarity_blocks(
    queries: np.ndarray, gallery: np.ndarray, size: int, own: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ``(rows, queries[rows] @ gallery.T)`` for ``size`` queries at a time.

    Args:
        queries: Unit rows ``[m, d]``.
        gallery: Unit rows ``[n, d]``.
        size: Queries per block.
        own: For each query, the gallery row that is the same example ``[m]``; its similarity is set to -inf.

    """
    for start in range(0, len(queries), size):
        rows = slice(start, start + size)
        similar = queries[rows] @ gallery.T
        if own is not None:
            similar[np.arange(len(similar)), own[rows]] = -np.inf
        yield rows, similar


def knn_vote(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    ks: Sequence[int],
    tau: float = 0.1,
    own: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Classify each query by a weighted vote of its k most similar bank rows (Wu et al. 2018).

    Args:
        bank: Labelled features ``[n, d]``.
        bank_labels: Their labels ``[n]``.
        queries: Features to classify ``[m, d]``.
        ks: Numbers of neighbors; each is capped at the size of the bank.
        tau: A neighbor votes with weight exp(cos / tau).
        own: For each query, the bank row that is the same example ``[m]``; it does not vote.

    Returns:
        Predicted labels ``[m]`` for each k in ``ks``.

    """
    bank, queries, classes = unit_rows(bank), unit_rows(queries), int(bank_labels.max()) + 1
    most = min(max(ks), len(bank) - (own is not None))
    voted: list[list[np.ndarray]] = [[] for _ in ks]
    for _, close in similarity_blocks(queries, bank, max(1, SIMILARITIES_AT_ONCE // len(bank)), own):
        at = np.arange(len(close))[:, None]
        near = np.argpartition(close, len(bank) - most, axis=1)[:, len(bank) - most :]
        near = near[at, np.argsort(-close[at, near], axis=1, kind="stable")]
        weight = np.exp((close[at, near].astype(np.float64) - 1) / tau)
        for k, found in zip(ks, voted, strict=True):
            cells = (at * classes + bank_labels[near[:, :k]]).ravel()
            votes = np.bincount(cells, weight[:, :k].ravel(), len(close) * classes).reshape(-1, classes)
            found.append(votes.argmax(axis=1))
    return [np.concatenate(found) for found in voted]


def labelled_positions(observed: Observations, part: str) -> np.ndarray:
    """Return the positions ``[n]`` of labelled examples, in a random order that depends on their keys only."""
    if not observed.has(part, "labels"):
        return np.empty(0, dtype=np.int64)
    known = np.flatnonzero(labels(observed, part) >= 0)
    return known[random_order_by_key(observed.of(part, "keys")[known])]


def knn_hits(
    observed: Observations, part: str, ks: Sequence[int] = (20,), cap: int = 10_000
) -> list[np.ndarray] | None:
    """Whether kNN predicts the label of each example of ``part``, for each k; the retained ones are the neighbors.

    On ``retain`` an example does not vote on itself.

    Args:
        observed: Observations with features and labels.
        part: The part to classify.
        ks: Numbers of neighbors.
        cap: Largest number of queries (a random sample by key).

    Returns:
        Booleans ``[n]`` for each k, in an order that depends on the keys alone; None without labels, or with fewer than
        two labelled retained examples.

    """
    asked, voters = labelled_positions(observed, part)[:cap], np.sort(labelled_positions(observed, "retain"))
    if len(asked) == 0 or len(voters) < 2:
        return None
    truth, own = labels(observed, part)[asked], np.searchsorted(voters, asked) if part == "retain" else None
    bank, bank_labels = features(observed, "retain")[voters], labels(observed, "retain")[voters]
    return [v == truth for v in knn_vote(bank, bank_labels, features(observed, part)[asked], ks, own=own)]


def knn_accuracy(observed: Observations, part: str, ks: Sequence[int] = (20,), cap: int = 10_000) -> list[Hits] | None:
    """Count correct kNN predictions on ``part``, for each k, as ``(right, of)``; see :func:`knn_hits`."""
    found = knn_hits(observed, part, ks, cap)
    return None if found is None else [(int(one.sum()), len(one)) for one in found]


def accuracy(observed: Observations, part: str) -> Hits | None:
    """Return ``(right, of)`` of the classifier's top class on ``part``; None without logits or labels."""
    if not observed.has(part, "logits"):
        return None
    known = labels(observed, part)
    seen = known >= 0
    right = top_classes(observed, part)[seen] == known[seen]
    return (int(right.sum()), int(seen.sum())) if seen.any() else None


def top_classes(observed: Observations, part: str) -> np.ndarray:
    """Return the class with the largest logit of each example of ``part`` ``[n]``."""
    return score_rows(observed.of(part, "logits"), lambda z, _: z.argmax(axis=1)).astype(np.int64)


def retrieval_recall(observed: Observations, part: str, k: int, *, of_text: bool = False) -> np.ndarray | None:
    """Compute recall@k of each pair of ``part``: whether an image's caption is among its k most similar ones.

    Args:
        observed: Observations with embeddings ``image`` and ``text``.
        part: The part whose pairs are both queries and gallery.
        k: How many of the most similar captions (images) may hold the right one.
        of_text: Search images with captions instead of captions with images.

    Returns:
        Recall in [0, 1] of each pair ``[n]``; ties count as if broken at random. None without captions.

    """
    if not (observed.has(part, "image") and observed.has(part, "text")):
        return None
    queries, gallery = (unit_rows(observed.of(part, name)) for name in ("image", "text"))
    if of_text:
        queries, gallery = gallery, queries
    found = np.empty(len(queries))
    for rows, close in similarity_blocks(queries, gallery, 1024):
        own = close[np.arange(len(close)), np.arange(rows.start, rows.start + len(close))][:, None]
        above, equal = (close > own).sum(axis=1), (close == own).sum(axis=1)
        found[rows] = np.clip((k - above) / equal, 0, 1)
    return found


def mean_retrieval_recall(observed: Observations, part: str, k: int) -> float | None:
    """Return the mean of :func:`retrieval_recall` over both directions; None without captions."""
    ways = [retrieval_recall(observed, part, k, of_text=way) for way in (False, True)]
    found = [way for way in ways if way is not None]
    return float(np.mean(found)) if found else None


def zero_shot(observed: Observations, part: str) -> Hits | None:
    """Return ``(right, of)`` of zero-shot classification by class names; None without captions or labels."""
    if not (observed.has("prompts", "text") and observed.has(part, "image")):
        return None
    known = labels(observed, part)
    seen = known >= 0
    close = unit_rows(observed.of(part, "image")[seen]) @ unit_rows(observed.of("prompts", "text")).T
    return (int((close.argmax(axis=1) == known[seen]).sum()), int(seen.sum())) if seen.any() else None


@dataclass(frozen=True)
class LinearProbeResult:
    """Correct predictions of the probe with inverse penalty ``c``; ``note`` says if its fit did not converge."""

    right: int
    of: int
    c: float
    note: str


def linear_probe(
    observed: Observations,
    part: str = "test",
    penalties: Sequence[float] = (0.01, 0.1, 1.0, 10.0),
    cap: int = 10_000,
    iterations: int = 300,
) -> LinearProbeResult | None:
    """Fit a multinomial logistic regression on standardized retained features and evaluate it on ``part``.

    Args:
        observed: Observations with features and labels.
        part: The part to evaluate on.
        penalties: Values of C; the best on ``valid`` is used. Without ``valid``, C is 1.
        cap: Largest number of examples of each part (a random sample by key).
        iterations: Largest number of iterations per fit.

    Returns:
        The result, or None with fewer than two labelled classes.

    """
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only this needs it
    from sklearn.linear_model import LogisticRegression

    def table(name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = labelled_positions(observed, name)[:cap]
        if len(rows) == 0:
            return np.empty(0), rows
        return features(observed, name)[rows].astype(np.float64), labels(observed, name)[rows]

    (x, y), (seen, truth), (held, held_truth) = table("retain"), table(part), table("valid")
    if len(truth) == 0 or len(np.unique(y)) < 2:
        return None
    center, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-6 * (np.abs(center) + 1e-12), scale, 1.0)  # do not amplify constant features
    fits, stopped = [], False
    model = LogisticRegression(max_iter=iterations, tol=1e-3, warm_start=True)
    for c in sorted(penalties) if len(held_truth) else (1.0,):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.set_params(C=c).fit((x - center) / scale, y)
        stopped |= any(issubclass(w.category, ConvergenceWarning) for w in caught)
        right = np.count_nonzero(model.predict((seen - center) / scale) == truth)
        kept = np.count_nonzero(model.predict((held - center) / scale) == held_truth) if len(held_truth) else 0
        fits.append((int(kept), -c, int(right)))
    _, c, right = max(fits)
    return LinearProbeResult(right, len(truth), -c, f"a fit stopped at {iterations} iterations" if stopped else "")


# ---- without labels ----


def is_collapsed(x: np.ndarray) -> bool:
    """Whether all rows of features point in the same direction, to one part in a thousand, or are zero."""
    scatter, length = _scatter(x)
    return float(np.trace(scatter)) <= ONE_DIRECTION * max(length, 1e-12)


def _scatter(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Scatter of the unit rows of ``x`` around their mean ``[d, d]``, and their squared length; in parts."""
    length, total = 0.0, np.zeros(x.shape[1])
    for rows in row_chunks(x):
        z = unit_rows(x[rows]).astype(np.float64)
        total += z.sum(axis=0)
        length += float((z**2).sum())
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for rows in row_chunks(x):
        z = unit_rows(x[rows]).astype(np.float64) - total / len(x)
        scatter += z.T @ z
    return scatter, length


def effective_rank(x: np.ndarray) -> float:
    """Effective rank of features ``[n, d]`` (Roy and Vetterli 2007), from 1 (collapsed) to d.

    The exponential of the entropy of the normalized singular values of the centered unit rows. Features for which
    :func:`is_collapsed` holds have rank 1, so that rounding errors around one point do not count as directions.
    """
    if is_collapsed(x):
        return 1.0
    scatter, _ = _scatter(x)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(scatter), 0))
    p = values / values.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def uniformity(x: np.ndarray) -> float:
    """Uniformity of features ``[n, d]`` (Wang and Isola 2020); lower is better, 0 is collapsed.

    log mean exp(-2 |z_i - z_j|^2) over pairs i < j of unit rows. Needs memory for ``n * n`` numbers.
    """
    z = unit_rows(x).astype(np.float64)
    upper = np.triu_indices(len(z), 1)
    return float(np.log(np.exp(-2 * np.maximum(2 - 2 * (z @ z.T)[upper], 0)).mean()))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of two models' features of the same examples (Kornblith et al. 2019).

    Args:
        x: Features ``[n, d1]``.
        y: Features ``[n, d2]`` of the same examples in the same order.

    Returns:
        Similarity from 0 to 1 (equal up to rotation and scale); 0 where one of them is constant.

    Raises:
        EffaceError: If the numbers of examples differ.

    """
    if len(x) != len(y):
        raise EffaceError("CKA needs the same examples observed by both models.", f"There are {len(x)} and {len(y)}.")
    totals, lengths = [np.zeros(x.shape[1]), np.zeros(y.shape[1])], [0.0, 0.0]
    for rows in row_chunks(x):
        for place, v in enumerate((x, y)):
            part = np.asarray(v[rows], np.float64)
            totals[place] += part.sum(axis=0)
            lengths[place] += float((part**2).sum())
    own, other, across = (np.zeros((u.shape[1], v.shape[1])) for u, v in ((x, x), (y, y), (x, y)))
    for rows in row_chunks(x):
        a, b = (np.asarray(v[rows], np.float64) - total / len(v) for v, total in zip((x, y), totals, strict=True))
        own += a.T @ a
        other += b.T @ b
        across += a.T @ b
    scale = float(np.linalg.norm(own) * np.linalg.norm(other))
    return float(np.linalg.norm(across) ** 2 / scale) if scale > 1e-12 * lengths[0] * lengths[1] else 0.0
