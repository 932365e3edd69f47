"""Attacks that are fitted on some examples and judged only on others.

Fitted on retained examples against non-members: a score sweep picks its threshold, EncoderMI-V its weights,
the SVC its support vectors. Whatever they pick, they pick on ``fit`` and are judged on ``judge``;
:func:`rounds` keeps the two apart by key, whatever the order of the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from efface import signals, stats
from efface.errors import EffaceError
from efface.observations import Observations

Fit = Callable[[np.ndarray, np.ndarray], tuple[Callable[[np.ndarray], np.ndarray], float]]
"""``(members, non-members) -> (score function, threshold)``: a score >= threshold is called a member.

The rows come in random order (by key), so that the first of them are a fair sample."""
CAP = 2000
"""Examples of each side a classifier is fitted on, at most (a random sample, by key)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Places among the scored examples of one part, in an order that only the keys decide."""

    part: str
    at: np.ndarray


@dataclass(frozen=True, eq=False)
class Round:
    """One fit and its judgment: disjoint rows of members and non-members."""

    fit: tuple[Rows, Rows]
    judge: tuple[Rows, Rows]


def rounds(observed: Observations, part: str, signal: str) -> list[Round]:
    """How ``part`` is attacked without judging on what was fitted; rows without a score of ``signal`` are
    left out.

    forget: fitted on retain against spare (the same class mix), or, where there is none, against each half of
    the holdout in turn. retain: fitted on one half of retain and its non-members, judged on the other, both
    ways.
    """

    def half(name_of_part: str, fold: int | None) -> Rows:
        at = signals.rows(observed, name_of_part, signal)
        order = signals.shuffled(observed.of(name_of_part, "keys")[at])
        return Rows(name_of_part, order if fold is None else order[fold::2])

    def full(name_of_part: str) -> Rows:
        return half(name_of_part, None)

    other = signals.nonmembers(observed, part)
    if part == "retain":
        return [Round((half(part, 1 - f), half(other, 1 - f)), (half(part, f), half(other, f))) for f in (0, 1)]
    spare = signals.nonmembers(observed, "retain")
    if spare != "holdout" and len(full(spare).at) >= stats.FEW:
        return [Round((full("retain"), full(spare)), (full(part), full(other)))]
    return [Round((full("retain"), half(other, 1 - f)), (full(part), half(other, f))) for f in (0, 1)]


@dataclass(frozen=True, eq=False)
class Attacked:
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


def attack(
    observed: Observations, part: str, signal: str, fit: Fit, look: Callable[[str], np.ndarray] | None = None
) -> Attacked:
    """Fit and judge over all :func:`rounds`. The attack sees the scores of ``signal``, or ``look(part)``
    ``[n, d]``.
    """
    other, plan = signals.nonmembers(observed, part), rounds(observed, part, signal)
    look = look or (lambda name: signals.scores(observed, name, signal))
    table = {name: look(name) for name in sorted({r.part for one in plan for r in (*one.fit, *one.judge)})}
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
        score, threshold = fit(table[a.part][a.at], table[b.part][b.at])
        mine, theirs = score(table[c.part][c.at]), score(table[d.part][d.at])
        v10, v01[d.at] = stats.placements(mine, theirs)
        top[c.at] += len(d.at) * v10
        weight[c.at] += len(d.at)
        called += len(d.at) * float((mine >= threshold).mean())
        wrong += int((theirs >= threshold).sum())
    return Attacked(top / weight, v01, called / n, wrong / n)


def sweep(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The score itself, with the threshold of the best balanced accuracy on these examples."""
    return (lambda scores: scores), stats.best_threshold(members, others)[0]


def logistic(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
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


def encodermi_v(observed: Observations, part: str, space: str) -> Attacked:
    """EncoderMI's vector attack on ``<space>.pairs``, cross-fitted."""

    def ordered(name: str) -> np.ndarray:
        return np.sort(observed.of(name, f"{space}.pairs").astype(np.float64), axis=1)

    return attack(observed, part, f"{space}.alignment", logistic, ordered)


def support_vectors(members: np.ndarray, others: np.ndarray) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """The SVC of Unlearn-Sparse and SalUn (C = 3, RBF, gamma 1/features) on confidences ``[n]``, equal
    numbers.
    """
    from sklearn.svm import SVC  # slow to import, and only fitted attacks need it

    count = min(len(members), len(others), CAP)
    members, others = members[:count], others[:count]
    model = SVC(C=3, kernel="rbf", gamma="auto")
    model.fit(np.concatenate([members, others])[:, None], np.repeat([1, 0], count))
    return (lambda scores: model.predict(scores[:, None]).astype(np.float64)), 0.5


def mia_svc(observed: Observations, part: str = "forget") -> Attacked:
    """The SVC on the confidence of the true class: ``recall`` is the share of ``part`` it calls members.

    Those papers print 1 - recall of the forget set as "MIA efficacy": there, higher is called better.
    """
    return attack(observed, part, "logits.confidence", support_vectors)


# ---- with references that never saw the forget set ----


def lira(observed: Observations, references: Sequence[Observations], part: str, signal: str) -> np.ndarray:
    """Offline LiRA (Carlini et al. 2022) with one variance for all examples: (score - references' mean) /
    sigma.

    A shared sigma only scales, so the order is exactly that of :func:`efface.signals.calibrated`. With one
    reference sigma cannot be estimated and is 1.
    """
    raw = signals.calibrated(observed, references, part, signal)
    if len(references) < 2:
        return raw
    # From the holdout whatever the part: a sigma of its own for each part would reorder them.
    seen = [signals.scores(reference, "holdout", signal) for reference in references]
    sigma = float(np.sqrt(np.var(seen, axis=0, ddof=1).mean()))
    return raw / sigma if sigma > 0 else raw


def rmia(
    observed: Observations,
    references: Sequence[Observations],
    part: str,
    signal: str,
    *,
    gamma: float = 1.0,
    offline: float = 0.3,
) -> np.ndarray:
    """Offline RMIA (Zarifzadeh et al. 2024): the share of the population z with ratio(x) >= gamma ratio(z),
    where ratio is p(x; model) over (1 + a)/2 mean p(x; references) + (1 - a)/2, and p = sigmoid of the margin
    ``signal``.

    The population is the holdout, without x itself (never ``valid``: the margin's bank comes from there).
    """

    def log_ratio(name: str) -> np.ndarray:
        def log_p(o: Observations) -> np.ndarray:
            return -np.logaddexp(0, -signals.scores(o, name, signal))

        out = np.mean([np.exp(log_p(r)) for r in references], axis=0)
        return log_p(observed) - np.log((1 + offline) / 2 * out + (1 - offline) / 2)

    x, z = log_ratio(part), np.sort(log_ratio("holdout"))
    below = np.searchsorted(z, x - np.log(gamma), "right").astype(np.float64)
    if part == "holdout" and len(z) > 1:
        return (below - (gamma <= 1)) / (len(z) - 1)
    return below / len(z)
