"""Attacks that are fitted on some examples and evaluated only on others.

An attack learns to tell retained examples from non-members: a threshold sweep learns its threshold, EncoderMI its
weights, the SVC its support vectors. It is fitted on ``fit`` and evaluated on ``judge``; :func:`cross_fit_folds` keeps
the two disjoint, by key. With shadow models an attack is fitted on *their* observations of ``fit`` and evaluated on the
audited model's observations of ``judge``.

Source      EncoderMI: Liu et al., EncoderMI: Membership Inference against Pre-trained Encoders in Contrastive
            Learning, 2021, arXiv 2108.11023. The SVC: Unlearn-Sparse and SalUn.
Departures  logistic regression instead of EncoderMI's small networks; its set attack (DeepSets) uses fixed bumps
            instead of a learned embedding of each similarity; the shadow models are the references, trained on R.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.observations import Observations
from efface.errors import EffaceError

AttackFitter = Callable[[np.ndarray, np.ndarray], tuple[Callable[[np.ndarray], np.ndarray], float]]
"""``(members, non-members) -> (score function, threshold)``: a score >= threshold is called a member.

The rows come in random order (by key), so that a prefix is a uniform sample."""
CAP = 2000
"""Largest number of members and of non-members on which a classifier is fitted (a random sample by key)."""


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Positions among the scored examples of one part, in a random order that depends on the keys only."""

    part: str
    at: np.ndarray
    """Positions ``[n]``."""


@dataclass(frozen=True, eq=False)
class CrossFitFold:
    """Disjoint rows to fit and to evaluate an attack on, each ``(members, non-members)``."""

    fit: tuple[ScoredRows, ScoredRows]
    judge: tuple[ScoredRows, ScoredRows]


def cross_fit_folds(observed: Observations, part: str, signal: str) -> list[CrossFitFold]:
    """Plan how to attack ``part`` without evaluating on examples used for fitting.

    For ``forget``, fit on retain against spare (of the same class distribution), or without spare against each half of
    the holdout in turn. For ``retain``, fit on each half of retain and its non-members and evaluate on the other half.
    Examples without a score of ``signal`` are left out.
    """

    def half(name_of_part: str, fold: int | None) -> ScoredRows:
        at = signals.scored_rows(observed, name_of_part, signal)
        order = signals.random_order_by_key(observed.of(name_of_part, "keys")[at])
        return ScoredRows(name_of_part, order if fold is None else order[fold::2])

    def full(name_of_part: str) -> ScoredRows:
        return half(name_of_part, None)

    other = signals.nonmember_part(observed, part)
    if part == "retain":
        return [CrossFitFold((half(part, 1 - f), half(other, 1 - f)), (half(part, f), half(other, f))) for f in (0, 1)]
    spare = signals.nonmember_part(observed, "retain")
    if spare != "holdout" and len(full(spare).at) >= stats.MIN_SAMPLES:
        return [CrossFitFold((full("retain"), full(spare)), (full(part), full(other)))]
    return [CrossFitFold((full("retain"), half(other, 1 - f)), (full(part), half(other, f))) for f in (0, 1)]


@dataclass(frozen=True, eq=False)
class AttackResult:
    """DeLong components of the fitted score, and the shares of members and non-members that are called members."""

    v10: np.ndarray
    """Component of each member ``[m]``."""
    v01: np.ndarray
    """Component of each non-member ``[n]``."""
    recall: float
    """Share of members called members."""
    false_rate: float
    """Share of non-members called members."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the true-positive and the true-negative rate."""
        return (1 + self.recall - self.false_rate) / 2

    @property
    def precision(self) -> float | None:
        """Precision for equally many members and non-members; None if nothing is called a member."""
        called = self.recall + self.false_rate
        return self.recall / called if called > 0 else None


FeatureReader = Callable[[Observations, str], np.ndarray]
"""``(observations, part) -> features of each scored example``, [n] or [n, d]."""


def cross_fitted_attack(
    observed: Observations,
    part: str,
    signal: str,
    fit: AttackFitter,
    read: FeatureReader | None = None,
    shadows: Sequence[Observations] = (),
) -> AttackResult:
    """Fit and evaluate an attack over all :func:`cross_fit_folds`.

    Args:
        observed: Observations of the audited model.
        part: The members: ``forget`` or ``retain``.
        signal: Signal that decides which examples have a score.
        fit: Fits the attack.
        read: Features for the attack; by default the scores of ``signal``.
        shadows: Models to fit on instead of the audited one; none of them may have seen the forget set.

    Raises:
        EffaceError: If there are too few examples for disjoint sets.

    """
    other, plan = signals.nonmember_part(observed, part), cross_fit_folds(observed, part, signal)
    read = read or (lambda model, name: signals.scores(model, name, signal))
    table = {name: read(observed, name) for name in (part, other)}
    m, n = len(table[part]), len(table[other])
    top, weight, v01, called, wrong = np.zeros(m), np.zeros(m), np.zeros(n), 0.0, 0
    for fold in plan:
        (a, b), (c, d) = fold.fit, fold.judge
        if min(len(a.at), len(b.at), len(c.at), len(d.at)) == 0:
            raise EffaceError(
                f"There are too few examples to fit an attack on '{part}' and to evaluate it on others.",
                f"retain: {observed.count('retain')}, {other}: {observed.count(other)}.",
                "Keep a larger holdout.",
            )
        score, threshold = fit(*(_read_rows(shadows or (observed,), rows, read) for rows in (a, b)))
        members, others = score(table[c.part][c.at]), score(table[d.part][d.at])
        v10, v01[d.at] = stats.placements(members, others)
        top[c.at] += len(d.at) * v10
        weight[c.at] += len(d.at)
        called += len(d.at) * float((members >= threshold).mean())
        wrong += int((others >= threshold).sum())
    return AttackResult(top / weight, v01, called / n, wrong / n)


def _read_rows(models: Sequence[Observations], rows: ScoredRows, read: FeatureReader) -> np.ndarray:
    """Stack the features of the rows from every model; models alternate, so that a prefix is a uniform sample."""
    tables = [read(model, rows.part)[rows.at] for model in models]
    return np.stack(tables, axis=1).reshape(len(rows.at) * len(tables), *tables[0].shape[1:])


def fit_threshold(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Use the score itself, with the threshold of the best balanced accuracy on these examples."""
    return (lambda scores: scores), stats.best_threshold(members, others)[0]


def fit_vector_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fit EncoderMI-V (Liu et al. 2021): logistic regression on the sorted pair similarities ``[n, pairs]``."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only fitted attacks need it
    from sklearn.linear_model import LogisticRegression

    members, others = members[:CAP], others[:CAP]
    x, y = np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)])
    center, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-3, max_iter=200)
    with warnings.catch_warnings():
        # Sorted similarities are nearly collinear: a fit stopped early scores the same to three digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x - center) / scale, y)
    return (lambda rows: model.decision_function((rows - center) / scale)), 0.0


BUMPS = 16
"""Number of Gaussian bumps with which the set attack describes an example's similarities."""


def fit_set_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fit EncoderMI-S: logistic regression on sums over the set of pair similarities ``[n, pairs]``, in any order.

    ρ(Σ_s φ(s)) as in DeepSets, with φ fixed: Gaussian bumps at quantiles of the fitted similarities.
    """
    members, others = members[:CAP], others[:CAP]
    every = np.concatenate([members, others])
    centers = np.quantile(every, np.linspace(0.01, 0.99, BUMPS))
    width = max(float(centers[-1] - centers[0]) / (BUMPS - 1), 1e-6)

    def summed(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.exp(-(((rows - c) / width) ** 2) / 2).mean(axis=1) for c in centers], axis=1)

    score, threshold = fit_vector_attack(summed(members), summed(others))
    return (lambda rows: score(summed(rows))), threshold


def _similarities(space: str) -> FeatureReader:
    return lambda observed, name: np.sort(observed.of(name, f"{space}.pairs").astype(np.float64), axis=1)


def encodermi_v(observed: Observations, part: str, space: str, shadows: Sequence[Observations] = ()) -> AttackResult:
    """Run EncoderMI's vector attack on ``<space>.pairs``: cross-fitted, or fitted on shadow encoders."""
    return cross_fitted_attack(observed, part, f"{space}.alignment", fit_vector_attack, _similarities(space), shadows)


def encodermi_s(observed: Observations, part: str, space: str, shadows: Sequence[Observations] = ()) -> AttackResult:
    """Run EncoderMI's set attack on ``<space>.pairs``: cross-fitted, or fitted on shadow encoders."""
    return cross_fitted_attack(observed, part, f"{space}.alignment", fit_set_attack, _similarities(space), shadows)


def fit_svc_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Fit the SVC of Unlearn-Sparse and SalUn (C = 3, RBF, gamma = 1 / features) on confidences, equally many."""
    from sklearn.svm import SVC  # slow to import, and only fitted attacks need it

    count = min(len(members), len(others), CAP)
    members, others = members[:count], others[:count]
    model = SVC(C=3, kernel="rbf", gamma="auto")
    model.fit(np.concatenate([members, others])[:, None], np.repeat([1, 0], count))
    return (lambda scores: model.predict(scores[:, None]).astype(np.float64)), 0.5


def mia_svc(observed: Observations, part: str = "forget") -> AttackResult:
    """Run the SVC on the confidence of the true class; ``recall`` is the share of ``part`` that it calls members.

    Unlearn-Sparse and SalUn report 1 - recall on the forget set as "MIA efficacy", for which higher is better.
    """
    return cross_fitted_attack(observed, part, "logits.confidence", fit_svc_attack)
