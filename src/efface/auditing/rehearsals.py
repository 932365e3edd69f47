"""Rehearsals: judge the procedure on many requests like the real one, where one request alone is too small to decide.

The same method with the same settings forgets S sets of retained examples, each from the same original and each of the
size and kind of the real request. Every set is placed among never-trained examples under the model that
was to forget it:

    A_s  =  mean over the examples x of set s of P(score of x > score of a never-trained example), ties by half
    A    =  mean of A_s, weighted by the size of the sets; 0.5: nothing to tell, above: residue, below: over-forgotten

The examples of one set share a model, and all sets share the never-trained examples, so the error of A has two parts:
the variance of A_s over the sets, and the variance over never-trained examples of the share of members above them,
averaged over the sets. Examples that are in several sets add a third (:mod:`efface.auditing.pooled_placements`). Their
sum, with the degrees of freedom of Welch and Satterthwaite, gives the interval on the
logit scale. The tests are those of a direct verdict: equivalence within 0.5 ± delta, power in the original, controls.

The real request is checked to be like its rehearsals: the mean placement of its examples, and of the retained ones,
must lie in the range that the rehearsals predict for one more (:mod:`efface.auditing.release`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from efface import stats
from efface.auditing.controls import Control, strictest
from efface.auditing.pooled_placements import Rehearsal, pool_placements
from efface.auditing.rehearsal_controls import make_rehearsal_controls
from efface.auditing.release import ReleaseCheck
from efface.errors import EffaceError

FEWEST_REHEARSALS = 5
"""With fewer rehearsals, their variance says nothing."""
PooledWord = Literal["removed", "residue", "over-forgotten", "inconclusive"]


@dataclass(frozen=True)
class PooledSignal:
    """What all rehearsals together say on one signal."""

    signal: str
    power: tuple[float, float, float]
    """AUC of all rehearsed examples in the original, and its 1 - alpha interval."""
    powered: bool
    """Whether that is clearly above 0.5 + delta, corrected for the number of signals."""
    value: float
    """AUC of the rehearsed examples in the models that were to forget them."""
    low: float
    """Lower end of its 1 - 2 alpha interval."""
    high: float
    word: PooledWord
    needed: int | None
    """Number of rehearsals that would probably decide; None if decided, or if no number would."""


@dataclass(frozen=True)
class RehearsedVerdict:
    """The verdict on a procedure, from requests like the real one."""

    word: PooledWord
    requests: int
    examples: int
    """Different examples in all rehearsals together."""
    signals: tuple[PooledSignal, ...]
    controls: tuple[Control, ...] = ()
    release: tuple[ReleaseCheck, ...] = ()
    """How the real request compares with its rehearsals."""
    kind: str = ""
    """What was rehearsed, in words: ``20 random examples``."""
    alpha: float = 0.05

    @property
    def like_them(self) -> bool:
        """Whether the real request was compared with its rehearsals and looks like one of them."""
        return bool(self.release) and all(one.inside for one in self.release)


def judge_rehearsals(
    rehearsals: Sequence[Rehearsal],
    before: Rehearsal | None,
    names: Sequence[str],
    delta: float,
    alpha: float,
    kind: str = "",
) -> RehearsedVerdict:
    """Judge a procedure by its rehearsals, by the rules of this module's docstring.

    Args:
        rehearsals: At least ``FEWEST_REHEARSALS`` of them.
        before: The original, whose ``forget`` holds the examples of all rehearsals; None for exact methods, where the
            models of the bank that saw the examples show the power.
        names: The signals that decide.
        delta: Largest distance of an AUC from 0.5 that counts as no difference.
        alpha: Error probability allowed for each claim.
        kind: What was rehearsed, in words.

    Raises:
        EffaceError: There are too few rehearsals.

    """
    if len(rehearsals) < FEWEST_REHEARSALS:
        raise EffaceError(
            f"{len(rehearsals)} rehearsals decide nothing.",
            f"Their spread must be known: at least {FEWEST_REHEARSALS} are needed.",
            "Rehearse more requests: `efface rehearse RUN --requests 40`.",
        )
    judged = _judge_signals(rehearsals, before, names, delta, alpha)
    examples = len(set[str]().union(*(one.observed.of("forget", "keys").tolist() for one in rehearsals)))
    checked = make_rehearsal_controls(
        rehearsals,
        before,
        names,
        delta,
        alpha,
        lambda some, usable: _judge_signals(some, before, usable, delta, alpha),
    )
    word: PooledWord = "inconclusive"
    words = {one.word for one in judged}
    if any(one.powered for one in judged):
        if "residue" in words:
            word = "residue"
        elif "over-forgotten" in words:
            word = "over-forgotten"
        elif words == {"removed"}:
            word = "removed"
    capped = strictest(word, checked)
    return RehearsedVerdict(capped, len(rehearsals), examples, judged, checked, (), kind, alpha)  # pyright: ignore[reportArgumentType]


def _judge_signals(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> tuple[PooledSignal, ...]:
    pooled = [pool_placements(rehearsals, name) for name in names]
    power = [_power(rehearsals, before, name) for name in names]
    p_power = [stats.one_sided_p_values(*one, 0.5 + delta)[0] for one in power]
    strong, factors = stats.holm(p_power), stats.holm_factors(p_power)
    above = stats.holm([one.p_values(0.5 + delta)[0] for one in pooled])
    below = stats.holm([one.p_values(0.5 - delta)[1] for one in pooled])
    judged: list[PooledSignal] = []
    for i, name in enumerate(names):
        value, low, high = pooled[i].interval(1 - 2 * alpha)
        word: PooledWord = "inconclusive"
        if above[i] < alpha:
            word = "residue"
        elif below[i] < alpha:
            word = "over-forgotten"
        elif 0.5 - delta < low and high < 0.5 + delta:
            word = "removed"
        needed = _needed(value, low, high, len(rehearsals), delta) if word == "inconclusive" else None
        strength = stats.interval(*power[i], level=1 - alpha / factors[i])
        judged.append(PooledSignal(name, strength, strong[i] < alpha / 2, value, low, high, word, needed))
    return tuple(judged)


def _power(rehearsals: Sequence[Rehearsal], before: Rehearsal | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """DeLong components of the rehearsed examples in a model that was trained on them."""
    if before is not None:
        return stats.placements(before.scores("forget", name), before.scores("holdout", name))
    pooled = [stats.placements(one.scores("retain", name), one.scores("holdout", name)) for one in rehearsals]
    strongest_first = sorted(pooled, key=lambda one: float(one[0].mean()))
    return strongest_first[len(pooled) // 2]  # the model in the middle: no better than usual


def _needed(value: float, low: float, high: float, count: int, delta: float) -> int | None:
    """How many rehearsals would shrink the interval enough, if the pooled value stays; None if none would."""
    room = delta - abs(value - 0.5)
    half = max(high - value, value - low)
    if room <= 0:
        room = abs(value - 0.5) - delta
    return None if room < 1e-3 else max(count + 1, math.ceil(count * (half / room) ** 2))
