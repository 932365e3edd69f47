"""Attacks that are fitted on some examples and judged only on others.

Fitted on retained examples against non-members: a score sweep picks its threshold, EncoderMI-V its weights,
the SVC its support vectors. Whatever they pick, they pick on ``fit`` and are judged on ``judge``;
:func:`rounds` keeps the two apart by key, whatever the order of the rows. With shadow models an attack is fitted on
what *they* show of ``fit`` and judged on what the model on trial shows of ``judge``.

Source      EncoderMI: Liu et al., EncoderMI: Membership Inference against Pre-trained Encoders in Contrastive
            Learning, 2021, arXiv 2108.11023. The SVC: Unlearn-Sparse and SalUn.
Departures  logistic regression where EncoderMI has small networks; its set attack (DeepSets) has fixed bumps in the
            place of a learned embedding of each similarity; the shadows are the references, which trained on R.
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

The rows come in random order (by key), so that the first of them are a fair sample."""
CAP = 2000
"""Examples of each side a classifier is fitted on, at most (a random sample, by key)."""


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Places among the scored examples of one part, in an order that only the keys decide."""

    part: str
    at: np.ndarray


@dataclass(frozen=True, eq=False)
class CrossFitFold:
    """One fit and its judgment: disjoint rows of members and non-members."""

    fit: tuple[ScoredRows, ScoredRows]
    judge: tuple[ScoredRows, ScoredRows]


def cross_fit_folds(observed: Observations, part: str, signal: str) -> list[CrossFitFold]:
    """How ``part`` is attacked without judging on what was fitted; rows without a score of ``signal`` are
    left out.

    forget: fitted on retain against spare (the same class mix), or, where there is none, against each half of
    the holdout in turn. retain: fitted on one half of retain and its non-members, judged on the other, both
    ways.
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
    """DeLong components of the fitted score, and the shares called members: of members and of non-members."""

    v10: np.ndarray
    v01: np.ndarray
    recall: float
    false_rate: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the share of members called so and of non-members not called so."""
        return (1 + self.recall - self.false_rate) / 2

    @property
    def precision(self) -> float | None:
        """Share of members among those called members, as if members and non-members were equally many; None:
        none.
        """
        called = self.recall + self.false_rate
        return self.recall / called if called > 0 else None


FeatureReader = Callable[[Observations, str], np.ndarray]
"""``(model, part) -> what the attack sees of each scored example``, [n] or [n, d]."""


def cross_fitted_attack(
    observed: Observations,
    part: str,
    signal: str,
    fit: AttackFitter,
    look: FeatureReader | None = None,
    shadows: Sequence[Observations] = (),
) -> AttackResult:
    """Fit and judge over all :func:`rounds`. The attack sees the scores of ``signal``, or ``look(model, part)``.

    ``shadows``: models to fit on instead of the one that is judged; none of them may have seen F.
    """
    other, plan = signals.nonmember_part(observed, part), cross_fit_folds(observed, part, signal)
    look = look or (lambda model, name: signals.scores(model, name, signal))
    table = {name: look(observed, name) for name in (part, other)}
    m, n = len(table[part]), len(table[other])
    top, weight, v01, called, wrong = np.zeros(m), np.zeros(m), np.zeros(n), 0.0, 0
    for round_ in plan:
        (a, b), (c, d) = round_.fit, round_.judge
        if min(len(a.at), len(b.at), len(c.at), len(d.at)) == 0:
            raise EffaceError(
                f"There are too few examples to attack '{part}' and not judge on what it was fitted on.",
                f"retain: {observed.count('retain')}, {other}: {observed.count(other)}.",
                "Keep a larger holdout.",
            )
        score, threshold = fit(*(_shown(shadows or (observed,), rows, look) for rows in (a, b)))
        mine, theirs = score(table[c.part][c.at]), score(table[d.part][d.at])
        v10, v01[d.at] = stats.placements(mine, theirs)
        top[c.at] += len(d.at) * v10
        weight[c.at] += len(d.at)
        called += len(d.at) * float((mine >= threshold).mean())
        wrong += int((theirs >= threshold).sum())
    return AttackResult(top / weight, v01, called / n, wrong / n)


def _shown(models: Sequence[Observations], rows: ScoredRows, look: FeatureReader) -> np.ndarray:
    """What every model shows of the rows; the models take turns, so that the first rows are a fair sample too."""
    seen = [look(model, rows.part)[rows.at] for model in models]
    return np.stack(seen, axis=1).reshape(len(rows.at) * len(seen), *seen[0].shape[1:])


def fit_threshold(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The score itself, with the threshold of the best balanced accuracy on these examples."""
    return (lambda scores: scores), stats.best_threshold(members, others)[0]


def fit_vector_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """EncoderMI-V (Liu et al. 2021): logistic regression on the sorted pair similarities ``[n, pairs]``."""
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
"""How finely the set attack sees the distribution of an example's similarities."""


def fit_set_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """EncoderMI-S: logistic regression on sums over the set of pair similarities ``[n, pairs]``, in any order.

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
    """EncoderMI's vector attack on ``<space>.pairs``: cross-fitted, or fitted on shadow encoders."""
    return cross_fitted_attack(observed, part, f"{space}.alignment", fit_vector_attack, _similarities(space), shadows)


def encodermi_s(observed: Observations, part: str, space: str, shadows: Sequence[Observations] = ()) -> AttackResult:
    """EncoderMI's set attack on ``<space>.pairs``: cross-fitted, or fitted on shadow encoders."""
    return cross_fitted_attack(observed, part, f"{space}.alignment", fit_set_attack, _similarities(space), shadows)


def fit_svc_attack(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The SVC of Unlearn-Sparse and SalUn (C = 3, RBF, gamma 1/features) on confidences ``[n]``, equal
    numbers.
    """
    from sklearn.svm import SVC  # slow to import, and only fitted attacks need it

    count = min(len(members), len(others), CAP)
    members, others = members[:count], others[:count]
    model = SVC(C=3, kernel="rbf", gamma="auto")
    model.fit(np.concatenate([members, others])[:, None], np.repeat([1, 0], count))
    return (lambda scores: model.predict(scores[:, None]).astype(np.float64)), 0.5


def mia_svc(observed: Observations, part: str = "forget") -> AttackResult:
    """The SVC on the confidence of the true class: ``recall`` is the share of ``part`` it calls members.

    Those papers print 1 - recall of the forget set as "MIA efficacy": there, higher is called better.
    """
    return cross_fitted_attack(observed, part, "logits.confidence", fit_svc_attack)
