"""Rehearsals: judge the procedure on many requests like the real one, where one request alone is too small to decide.

The same method with the same settings forgets S disjoint sets of retained examples, each from the same original and
each of the size and kind of the real request. Every set is placed among never-trained examples under the model that
was to forget it:

    A_s  =  mean over the examples x of set s of P(score of x > score of a never-trained example), ties by half
    A    =  mean of A_s, weighted by the size of the sets; 0.5: nothing to tell, above: residue, below: over-forgotten

The examples of one set share a model, and all sets share the never-trained examples, so the error of A has two parts:
the variance of A_s over the sets, and the variance over never-trained examples of the share of members above them,
averaged over the sets. Their sum, with the degrees of freedom of Welch and Satterthwaite, gives the interval on the
logit scale. The tests are those of a direct verdict: equivalence within 0.5 ± delta, power in the original, controls.

The real request is checked to be like its rehearsals: the mean placement of its examples, and of the retained ones,
must lie in the range that the rehearsals predict for one more (:func:`check_release`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from efface import stats
from efface.auditing import signals
from efface.auditing.controls import FEWEST, RENEWED_PREFIX, Control, strictest
from efface.auditing.observations import Observations
from efface.errors import EffaceError

FEWEST_REHEARSALS = 5
"""With fewer rehearsals, their variance says nothing."""
RANGE = 0.95
"""Probability of the prediction range of one more request, over all of its checks together."""
PooledWord = Literal["removed", "residue", "over-forgotten", "inconclusive"]


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """One rehearsed request: the model that was to forget it, and what its scores are calibrated by."""

    observed: Observations
    references: tuple[Observations, ...] = ()
    """What the models of a reference bank score on the same examples; empty without a bank."""

    def scores(self, part: str, signal: str) -> np.ndarray:
        """Scores ``[n]`` of a part, calibrated where there is a bank."""
        return signals.membership_scores(self.observed, self.references, part, signal)


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
class ReleaseCheck:
    """Whether the real request is like its rehearsals in one number."""

    name: str
    value: float
    low: float
    """Lower end of the range that the rehearsals predict."""
    high: float

    @property
    def inside(self) -> bool:
        """Whether the real request is in that range."""
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class RehearsedVerdict:
    """The verdict on a procedure, from requests like the real one."""

    word: PooledWord
    requests: int
    examples: int
    """Examples of all rehearsals together."""
    signals: tuple[PooledSignal, ...]
    controls: tuple[Control, ...] = ()
    release: tuple[ReleaseCheck, ...] = ()
    """How the real request compares with its rehearsals."""
    kind: str = ""
    """What was rehearsed, in words: ``20 random examples``."""
    alpha: float = 0.05

    @property
    def like_them(self) -> bool:
        """Whether the real request looks like one of its rehearsals."""
        return all(one.inside for one in self.release)


@dataclass(frozen=True, eq=False)
class Placements:
    """Placements of several sets among the same never-trained examples."""

    sets: np.ndarray
    """A weighted value for each set, float [S]; their mean is the AUC."""
    others: np.ndarray
    """Share of members above each never-trained example, averaged over the sets, float [n]."""

    @property
    def value(self) -> float:
        """The pooled AUC."""
        return float(np.clip(self.sets.mean(), 0, 1))

    def _scale(self) -> tuple[float, float]:
        error, freedom = stats.welch(self.sets, self.others)
        return error, freedom

    def interval(self, level: float) -> tuple[float, float, float]:
        """The pooled AUC and its two-sided interval: ``(value, low, high)``."""
        error, freedom = self._scale()
        if not 0 < self.value < 1 or error == 0:
            return self.value, 0.0, 1.0
        margin = float(stdtrit(freedom, (1 + level) / 2)) * error / (self.value * (1 - self.value))
        center = float(logit(self.value))
        return self.value, float(expit(center - margin)), float(expit(center + margin))

    def p_values(self, null: float) -> tuple[float, float]:
        """P-values of "the AUC is at most ``null``" and of "it is at least ``null``"."""
        error, freedom = self._scale()
        if not 0 < self.value < 1 or error == 0:
            return 1.0, 1.0
        t = (float(logit(self.value)) - float(logit(null))) * self.value * (1 - self.value) / error
        return float(stdtr(freedom, -t)), float(stdtr(freedom, t))


def pool_placements(
    rehearsals: Sequence[Rehearsal], signal: str, part: str = "forget", other: str = "holdout"
) -> Placements:
    """Place a part of every rehearsal among its never-trained examples.

    Args:
        rehearsals: The rehearsals.
        signal: The signal.
        part: Which examples are placed.
        other: The never-trained examples among which they are placed.

    """
    means, sizes = np.zeros(len(rehearsals)), np.zeros(len(rehearsals))
    total: dict[str, float] = {}
    weight: dict[str, float] = {}
    for number, one in enumerate(rehearsals):
        members, unseen = one.scores(part, signal), one.scores(other, signal)
        below, above = stats.placements(members, unseen)
        means[number], sizes[number] = below.mean(), len(below)
        keys = one.observed.of(other, "keys")[signals.scored_rows(one.observed, other, signal)]
        for key, share in zip(keys.tolist(), above.tolist(), strict=True):
            total[key] = total.get(key, 0.0) + share * len(below)
            weight[key] = weight.get(key, 0.0) + len(below)
    pooled = float((means * sizes).sum() / sizes.sum())
    # The pooled value is a ratio of sums; these are its linearized contributions.
    sets = pooled + sizes / sizes.mean() * (means - pooled)
    return Placements(sets, np.array([total[key] / weight[key] for key in total]))


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
    examples = sum(one.observed.count("forget") for one in rehearsals)
    checked = _make_controls(rehearsals, before, names, delta, alpha)
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


# ---- controls ----


def _make_controls(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> tuple[Control, ...]:
    found = (
        _check_unseen(rehearsals, before, names, delta, alpha),
        _check_fresh(rehearsals, names, delta, alpha),
        _check_alignment(rehearsals, names, delta, alpha),
        _check_statistics(rehearsals, before, names, delta, alpha),
        _check_retained(rehearsals, before, names, delta, alpha),
    )
    return tuple(one for one in found if one is not None)


def _check_unseen(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> Control:
    """Compare the holdout with the control, than which it may not look more trained on."""
    enough = all(min(one.observed.count("holdout"), one.observed.count("control")) >= FEWEST for one in rehearsals)
    usable = [name for name in names if _have(rehearsals, name, "control")]
    if not enough or not usable:
        return Control("unseen", "missing", "inconclusive", "no other never-trained examples were observed")
    matched = any(one.observed.count("spare") for one in rehearsals)
    if matched:
        return Control(
            "unseen", "passed", "inconclusive", "the holdout is matched: the request's own audit compares it"
        )
    tested: list[tuple[str, float, float]] = []
    changed = _changes(rehearsals, before, usable)
    for models, label, null in ((rehearsals, "", 0.5 + delta), (changed, " since the original", 0.5)):
        for name in usable if models else ():
            placed = pool_placements(models, name, "holdout", "control")
            by_key = pool_placements(models, name, "control", "holdout")
            p = stats.one_sided_p_values(1 - by_key.others, placed.others, null)[0]  # by example, averaged over models
            tested.append((name + label, placed.value, p))
    return _significant(tested, alpha, "unseen", "inconclusive", "the holdout against other never-trained examples")


def _changes(rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str]) -> list[Rehearsal]:
    """The rehearsals with the change of each score since the original on the holdout and the control, uncalibrated."""
    changed: list[Rehearsal] = []
    if before is None:
        return changed
    for one in rehearsals:
        arrays: dict[str, np.ndarray] = {}
        for part in ("holdout", "control"):
            signals.require_same_examples(one.observed, (before.observed,), part)
            arrays[f"{part}/keys"] = one.observed.of(part, "keys")
            if one.observed.has(part, "labels"):
                arrays[f"{part}/labels"] = one.observed.of(part, "labels")
            for name in names:
                change = np.zeros(one.observed.count(part))
                rows = signals.scored_rows(one.observed, part, name)
                change[rows] = signals.scores(one.observed, part, name) - signals.scores(before.observed, part, name)
                arrays[f"{part}/{signals.READY}{name}"] = change
        changed.append(Rehearsal(Observations(one.observed.model, one.observed.split, arrays, one.observed.meta)))
    return changed


def _check_fresh(rehearsals: Sequence[Rehearsal], names: Sequence[str], delta: float, alpha: float) -> Control | None:
    """Compare the rehearsed examples with the control; None where they differ from it in kind."""
    if any(one.observed.count("spare") for one in rehearsals):
        return None
    usable = [name for name in names if _have(rehearsals, name, "control")]
    pooled = [(name, pool_placements(rehearsals, name, "forget", "control")) for name in usable]
    tested = [(name, one.value, one.p_values(0.5 + delta)[0]) for name, one in pooled]
    return _significant(tested, alpha, "fresh", "residue", "the rehearsed against never-trained control examples")


def _check_alignment(
    rehearsals: Sequence[Rehearsal], names: Sequence[str], delta: float, alpha: float
) -> Control | None:
    """Test the agreement of views in every space whose margin decides."""
    wanted = [f"{name.removesuffix('.margin')}.alignment" for name in names if name.endswith(".margin")]
    usable = [name for name in wanted if name not in names and _have(rehearsals, name, "holdout")]
    if not usable:
        return None
    pooled = [(name, pool_placements(rehearsals, name)) for name in usable]
    tested = [(name, one.value, one.p_values(0.5 + delta)[0]) for name, one in pooled]
    return _significant(tested, alpha, "alignment", "inconclusive", "views of the rehearsed against never-trained")


def _check_statistics(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> Control | None:
    """Judge the rehearsals with BatchNorm statistics estimated anew; None where no model has such statistics."""
    if before is None or not any(one.observed.meta.get("running_statistics", False) for one in rehearsals):
        return None
    if not all(one.observed.count(f"{RENEWED_PREFIX}forget") for one in rehearsals):
        note = "the rehearsals were not observed with BatchNorm statistics estimated anew"
        return Control("statistics", "missing", "inconclusive", note)
    renewed = [_renewed(one) for one in rehearsals]
    usable = [name for name in names if _have(renewed, name, "holdout")]
    judged = _judge_signals(renewed, before, usable, delta, alpha)
    shown = "; ".join(f"{one.signal}: AUC {one.value:.3f}" for one in judged)
    words = {one.word for one in judged}
    if words == {"removed"}:
        return Control(
            "statistics", "passed", "residue", f"the same with BatchNorm statistics estimated anew ({shown})"
        )
    becomes = "residue" if "residue" in words else "inconclusive"
    note = f"with BatchNorm statistics estimated anew, it is another result ({shown})"
    return Control("statistics", "failed", becomes, note)


def _renewed(one: Rehearsal) -> Rehearsal:
    """The rehearsal as it looks with BatchNorm statistics estimated anew."""
    arrays = {
        name: value for name, value in one.observed.arrays.items() if name.split("/")[0] not in ("forget", "holdout")
    }
    arrays |= {
        name.removeprefix(RENEWED_PREFIX): value
        for name, value in one.observed.arrays.items()
        if name.startswith(RENEWED_PREFIX)
    }
    return Rehearsal(Observations(one.observed.model, one.observed.split, arrays, one.observed.meta), one.references)


def _check_retained(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> Control | None:
    """Check that the attack still sees the retained examples wherever it saw them in the original."""
    tested: list[str] = []
    blinded: list[str] = []
    for name in names:
        if name == signals.LEARNED or before is None or not _have(rehearsals, name, "retain"):
            continue
        raw = [Rehearsal(one.observed) for one in rehearsals]
        other = "spare" if all(one.observed.count("spare") for one in rehearsals) else "holdout"
        plain = Rehearsal(before.observed)
        kept = "retain" if signals.has_signal(before.observed, "retain", name) else "forget"  # the original saw both
        seen = stats.placements(plain.scores(kept, name), plain.scores(other, name))
        if stats.one_sided_p_values(*seen, 0.5 + delta)[0] >= alpha:
            continue
        now = pool_placements(raw, name, "retain", other)
        tested.append(f"{name}: AUC {now.value:.3f}")
        if now.p_values(0.5)[0] >= alpha:
            blinded.append(tested[-1])
    if not tested:
        return None
    if blinded:
        note = f"the attack does not see the retained examples any more ({'; '.join(blinded)})"
        return Control("retained", "failed", "inconclusive", note)
    return Control("retained", "passed", "inconclusive", f"the attack still sees the retained ({'; '.join(tested)})")


def _have(rehearsals: Sequence[Rehearsal], name: str, part: str) -> bool:
    return all(signals.has_signal(one.observed, part, name) for one in rehearsals)


def _significant(
    tested: Sequence[tuple[str, float, float]],
    alpha: float,
    name: str,
    becomes: Literal["residue", "inconclusive"],
    what: str,
) -> Control:
    """A control that fails where one of its comparisons is significant after Holm's correction."""
    shown = "; ".join(f"{signal}: AUC {value:.3f}" for signal, value, _ in tested)
    if not tested:
        return Control(name, "missing", "inconclusive", f"{what}: not observed")
    failed = min(stats.holm([p for _, _, p in tested])) < alpha
    return Control(name, "failed" if failed else "passed", becomes, f"{what} ({shown})")


# ---- the real request ----


def check_release(rehearsals: Sequence[Rehearsal], real: Rehearsal, names: Sequence[str]) -> tuple[ReleaseCheck, ...]:
    """Compare the real request with the range that its rehearsals predict for one more.

    Args:
        rehearsals: The rehearsals.
        real: The real request, observed in the same way.
        names: The signals that decide.

    Returns:
        For each signal the mean placement of the forgotten, and of the retained where they were observed.

    """
    wanted: list[tuple[str, np.ndarray, float]] = []
    for name in names:
        for part in ("forget", "retain"):
            everyone = [*rehearsals, real]
            if not _have(everyone, name, part):
                continue
            means = np.array([_mean_placement(one, name, part) for one in everyone])
            wanted.append((f"{name} of the {'forgotten' if part == 'forget' else 'retained'}", means[:-1], means[-1]))
    count, checks = len(rehearsals), max(1, len(wanted))
    reach = float(stdtrit(count - 1, 1 - (1 - RANGE) / 2 / checks)) * math.sqrt(1 + 1 / count)
    found: list[ReleaseCheck] = []
    for name, means, value in wanted:
        middle, wide = float(means.mean()), reach * float(means.std(ddof=1))
        found.append(ReleaseCheck(name, float(value), middle - wide, middle + wide))
    return tuple(found)


def _mean_placement(one: Rehearsal, name: str, part: str) -> float:
    other = signals.nonmember_part(one.observed, part)
    other = other if signals.has_signal(one.observed, other, name) else "holdout"
    return float(stats.placements(one.scores(part, name), one.scores(other, name))[0].mean())
