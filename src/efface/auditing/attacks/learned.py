"""A learned membership attack: how members differ from non-members is learned on a reference bank.

In a bank it is known which model saw which example. From every model and training example one row is made:

    d_g  =  s_g(x) - mean of s_g(x) over models of other pairs that never saw x

for every signal g, less the mean of d_g over never-trained examples, and the label "was trained on x". A logistic
regression on these rows gives the log odds that an example was trained on, which is the score of the signal
``learned``. It is fitted on one half of the examples and applied to the other, and the audited model is in no row: what
it says of an example was learned from other examples and other models. A method that lowers one signal only is seen by
the others.

Source      LiRA's shadow models (Carlini et al. 2022) with several signals, combined as in Liu et al. 2021 (EncoderMI)
            and Song and Mittal 2021. The halves and the combination by logistic regression are our choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from efface.auditing import signals
from efface.auditing.controls import RENEWED_PREFIX
from efface.auditing.observations import Observations
from efface.auditing.reference_bank import ReferenceBank, draw_side

MOST_ROWS = 40_000
"""Most rows that one classifier is fitted on (an even sample of them)."""
PENALTY = 1.0
"""Inverse strength of the L2 penalty of the logistic regression."""
FOLD = 1_000_003
"""Number that draws the half of an example, apart from the numbers of pairs."""


@dataclass(frozen=True, eq=False)
class LearnedAttack:
    """Two fitted classifiers: number f is applied to the examples of half f, and was fitted on the other half."""

    signals: tuple[str, ...]
    scale: np.ndarray
    """Spread of each signal's difference among examples that a model never saw, float [g]."""
    weights: np.ndarray
    """Weight of each scaled difference, float [2, g]."""

    def log_odds(self, differences: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Score examples from their centered differences ``[m, g]``, float [m]; higher is more member-like."""
        half = np.array([draw_side(str(key), FOLD) for key in keys], dtype=np.int64)
        return (np.nan_to_num(differences / self.scale) * self.weights[half]).sum(axis=1)


@lru_cache(maxsize=4)
def fit_attack(bank: ReferenceBank) -> LearnedAttack | None:
    """Fit the attack on a bank; None if it has a single pair, whose models have no others to be compared with."""
    names = tuple(name for name in bank.scores if not np.isnan(bank.scores[name]).all())
    pairs = bank.models // 2
    if pairs < 2 or not names:
        return None
    rows, seen, half = [], [], []
    trained = np.flatnonzero(bank.trained)
    halves = np.array([draw_side(str(key), FOLD) for key in bank.keys[trained]], dtype=np.int64)
    out = {name: bank.out_scores(name) for name in names}
    for model in range(bank.models):
        others = np.arange(pairs) != model // 2
        found = np.stack([bank.scores[name][model] - out[name][others].mean(axis=0) for name in names], axis=1)
        unseen = ~bank.trained if (~bank.trained).sum() >= 20 else ~bank.inside[model]
        rows.append(found[trained] - _mean_known(found[unseen]))
        seen.append(bank.inside[model][trained])
        half.append(halves)
    x, y, fold = np.concatenate(rows), np.concatenate(seen), np.concatenate(half)
    scale = np.sqrt(_mean_known((x[~y] - _mean_known(x[~y])) ** 2))
    scale[scale == 0] = 1.0
    x = np.nan_to_num(x / scale)
    weights = [_fit_logistic(x[fold != number], y[fold != number]) for number in (0, 1)]
    return LearnedAttack(names, scale, np.stack(weights))


def _fit_logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning  # slow to import, and only a bank needs it
    from sklearn.linear_model import LogisticRegression

    step = max(1, len(x) // MOST_ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=PENALTY, max_iter=500).fit(x[::step], y[::step]).coef_[0]


def attach_scores(attack: LearnedAttack, observed: Observations, references: Sequence[Observations]) -> Observations:
    """Return observations with the signal ``learned`` on every part that has all of the attack's signals.

    Args:
        attack: The fitted attack.
        observed: Observations of a model that is not in the bank.
        references: What the bank's models score on the same examples: :meth:`ReferenceBank.calibrate`.

    """
    arrays = dict(observed.arrays)
    for part in (
        "forget",
        "retain",
        "holdout",
        "spare",
        "control",
        f"{RENEWED_PREFIX}forget",
        f"{RENEWED_PREFIX}holdout",
    ):
        center = f"{RENEWED_PREFIX}holdout" if part.startswith(RENEWED_PREFIX) else "holdout"
        usable = _usable(attack, observed, part)
        if usable is None or _usable(attack, observed, center) is None:
            continue
        found = _differences(attack, observed, references, part)
        found = found - _mean_known(_differences(attack, observed, references, center))
        arrays[f"{part}/{signals.LEARNED}"] = attack.log_odds(found, observed.of(part, "keys"))
    return replace(observed, arrays=arrays)


def _usable(attack: LearnedAttack, observed: Observations, part: str) -> tuple[str, ...] | None:
    """The attack's signals that were observed on a part; None if a margin, on which all rests, is not among them."""
    if not observed.count(part):
        return None
    found = tuple(name for name in attack.signals if signals.has_signal(observed, part, name))
    return found if any(name.endswith(".margin") for name in found) else None


def _differences(
    attack: LearnedAttack, observed: Observations, references: Sequence[Observations], part: str
) -> np.ndarray:
    """Scores less the references' mean, [m, g]; NaN where an example has no score."""
    found = np.full((observed.count(part), len(attack.signals)), np.nan)
    for column, name in enumerate(attack.signals):
        if signals.has_signal(observed, part, name):
            rows = signals.scored_rows(observed, part, name)
            stored = [one.of(part.removeprefix(RENEWED_PREFIX), signals.READY + name)[rows] for one in references]
            found[rows, column] = signals.scores(observed, part, name) - np.mean(stored, axis=0)
    return found


def _mean_known(x: np.ndarray) -> np.ndarray:
    """Mean of each column over the values that are not NaN, [g]; 0 for a column without any."""
    known = ~np.isnan(x)
    return np.where(known, x, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
