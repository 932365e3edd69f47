"""What frozen features are good for: nearest neighbors, a linear probe, measures without labels.

numpy only, except that the linear probe is scikit-learn's. Accuracies come as ``(right, of)`` so that their
exact interval can be given; ``None`` where there are no labels to be right about, never a made-up number.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efface.auditing.observations import Observations
from efface.auditing.signals import labels, random_order_by_key
from efface.errors import EffaceError

SIMILARITIES_AT_ONCE = 2**24
"""Similarities held at once (64 MB)."""
Hits = tuple[int, int]


def features(observed: Observations, part: str) -> np.ndarray:
    """Features ``[n, d]`` of ``part``; an :class:`EffaceError` if any is not a finite number."""
    found = observed.of(part, "features")
    bad = int(np.count_nonzero(~np.isfinite(found).all(axis=1)))
    if bad:
        raise EffaceError(
            f"{bad} of {len(found)} features of '{part}' are not finite numbers.",
            "A model that diverged has no utility to measure.",
            "Look at the log of the run for the step at which its loss or weights stopped being finite.",
        )
    return found


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of ``x`` scaled to length 1, float32; a row of zeros stays zero."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norms > 0, norms, 1), dtype=np.float32)


def knn_vote(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    ks: Sequence[int],
    tau: float = 0.1,
    places: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Labels voted for each query ``[m]`` by its k most similar bank rows with weight exp(cos/tau), for each
    k in ``ks``.

    ``places``: the bank row that *is* query i, which then has no vote. k is capped by the bank's size.
    """
    bank, queries, classes = unit_rows(bank), unit_rows(queries), int(bank_labels.max()) + 1
    most = min(max(ks), len(bank) - (places is not None))
    voted: list[list[np.ndarray]] = [[] for _ in ks]
    rows = max(1, SIMILARITIES_AT_ONCE // len(bank))
    for start in range(0, len(queries), rows):
        close = queries[start : start + rows] @ bank.T
        at = np.arange(len(close))[:, None]
        if places is not None:
            close[at[:, 0], places[start : start + rows]] = -np.inf
        near = np.argpartition(close, len(bank) - most, axis=1)[:, len(bank) - most :]
        near = near[at, np.argsort(-close[at, near], axis=1, kind="stable")]
        weight = np.exp((close[at, near].astype(np.float64) - 1) / tau)
        for k, found in zip(ks, voted, strict=True):
            cells = (at * classes + bank_labels[near[:, :k]]).ravel()
            votes = np.bincount(cells, weight[:, :k].ravel(), len(close) * classes).reshape(-1, classes)
            found.append(votes.argmax(axis=1))
    return [np.concatenate(found) for found in voted]


def labelled_positions(observed: Observations, part: str) -> np.ndarray:
    """Positions ``[n]`` of the labelled examples of ``part``, in an order that only their keys decide."""
    if not observed.has(part, "labels"):
        return np.empty(0, dtype=np.int64)
    known = np.flatnonzero(labels(observed, part) >= 0)
    return known[random_order_by_key(observed.of(part, "keys")[known])]


def knn_accuracy(observed: Observations, part: str, ks: Sequence[int] = (20,), cap: int = 10_000) -> list[Hits] | None:
    """``(right, of)`` for each k: neighbors among the retained examples vote on ``part``.

    On ``retain`` an example has no vote on itself. At most ``cap`` random queries. None without labels, or
    with fewer than two labelled retained examples.
    """
    mine, theirs = labelled_positions(observed, part)[:cap], np.sort(labelled_positions(observed, "retain"))
    if len(mine) == 0 or len(theirs) < 2:
        return None
    truth, own = labels(observed, part)[mine], np.searchsorted(theirs, mine) if part == "retain" else None
    bank, bank_labels = features(observed, "retain")[theirs], labels(observed, "retain")[theirs]
    voted = knn_vote(bank, bank_labels, features(observed, part)[mine], ks, places=own)
    return [(int((v == truth).sum()), len(truth)) for v in voted]


def accuracy(observed: Observations, part: str) -> Hits | None:
    """``(right, of)`` of the classifier's own top class on ``part``; None without logits or labels."""
    if not observed.has(part, "logits"):
        return None
    known = labels(observed, part)
    seen = known >= 0
    right = observed.of(part, "logits")[seen].argmax(axis=1) == known[seen]
    return (int(right.sum()), int(seen.sum())) if seen.any() else None


def retrieval_recall(observed: Observations, part: str, k: int, *, of_text: bool = False) -> np.ndarray | None:
    """Whether each image of ``part`` finds its own caption among the part's first ``k`` (``of_text``: each caption its
    image), in [0, 1], ``[n]``: of equally similar ones each is as likely to come first. None without captions.
    """
    if not (observed.has(part, "image") and observed.has(part, "text")):
        return None
    queries, gallery = (unit_rows(observed.of(part, name)) for name in ("image", "text"))
    if of_text:
        queries, gallery = gallery, queries
    found = np.empty(len(queries))
    for start in range(0, len(queries), 1024):
        close = queries[start : start + 1024] @ gallery.T
        own = close[np.arange(len(close)), np.arange(start, start + len(close))][:, None]
        above, equal = (close > own).sum(axis=1), (close == own).sum(axis=1)
        found[start : start + len(close)] = np.clip((k - above) / equal, 0, 1)
    return found


def mean_retrieval_recall(observed: Observations, part: str, k: int) -> float | None:
    """Mean of :func:`recall` over both directions."""
    ways = [retrieval_recall(observed, part, k, of_text=way) for way in (False, True)]
    found = [way for way in ways if way is not None]
    return float(np.mean(found)) if found else None


def zero_shot(observed: Observations, part: str) -> Hits | None:
    """``(right, of)`` of the class whose name fits the image best; None without captions or labels."""
    if not (observed.has("prompts", "text") and observed.has(part, "image")):
        return None
    known = labels(observed, part)
    seen = known >= 0
    close = unit_rows(observed.of(part, "image")[seen]) @ unit_rows(observed.of("prompts", "text")).T
    return (int((close.argmax(axis=1) == known[seen]).sum()), int(seen.sum())) if seen.any() else None


@dataclass(frozen=True)
class LinearProbeResult:
    """``right`` of ``of`` by the probe with inverse penalty ``c``; ``note`` if its fit stopped early."""

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
    """Multinomial logistic regression on standardized retained features, judged on ``part``; C is chosen on
    ``valid`` (1 without it). At most ``cap`` random retained examples. None with fewer than two labelled
    classes.
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
    scale = np.where(scale > 1e-6 * (np.abs(center) + 1e-12), scale, 1.0)  # a constant feature stays constant
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
    """Whether all rows of features point the same way to one part in a thousand (or are zero)."""
    z = unit_rows(x).astype(np.float64)
    return float(((z - z.mean(axis=0)) ** 2).sum()) <= 1e-6 * max(float((z**2).sum()), 1e-12)


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values of the centered unit rows (Roy and Vetterli 2007): 1 to d.

    1 where they are :func:`collapsed`, so that rounding around one point does not count as many directions.
    """
    if is_collapsed(x):
        return 1.0
    z = unit_rows(x).astype(np.float64)
    z -= z.mean(axis=0)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(z.T @ z), 0))
    p = values / values.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def uniformity(x: np.ndarray) -> float:
    """log mean exp(-2 |z_i - z_j|^2) over pairs i < j of unit rows (Wang and Isola 2020): 0 collapsed.

    Lower is better. Takes ``n * n`` numbers of memory.
    """
    z = unit_rows(x).astype(np.float64)
    upper = np.triu_indices(len(z), 1)
    return float(np.log(np.exp(-2 * np.maximum(2 - 2 * (z @ z.T)[upper], 0)).mean()))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of two feature tables ``[n, d1]``, ``[n, d2]`` of the same examples (Kornblith et al. 2019):
    0 to 1; 0 where one of them is constant. Raises if the numbers of examples differ.
    """
    if len(x) != len(y):
        raise EffaceError("CKA needs the same examples seen by both models.", f"There are {len(x)} and {len(y)}.")
    a, b = (np.asarray(v, np.float64) - np.asarray(v, np.float64).mean(axis=0) for v in (x, y))
    own = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    size = float((np.asarray(x, np.float64) ** 2).sum() * (np.asarray(y, np.float64) ** 2).sum())
    return float(np.linalg.norm(a.T @ b) ** 2 / own) if own > 1e-12 * size else 0.0
