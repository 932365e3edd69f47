"""Controls of rehearsed requests: those of a direct verdict, over all rehearsals together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.controls import FEWEST, RENEWED_PREFIX, Control, words_if_moved
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal, all_have_signal, pool_placements


def make_rehearsal_controls(
    rehearsals: Sequence[Rehearsal],
    before: Rehearsal | None,
    names: Sequence[str],
    delta: float,
    alpha: float,
    judged: Callable[[Sequence[Rehearsal], Sequence[str]], Sequence[Any]],
) -> tuple[Control, ...]:
    """Make every control that applies.

    Args:
        rehearsals: The rehearsals.
        before: The original on the examples of all of them; None for an exact method.
        names: The signals that decide.
        delta: Largest distance of an AUC from 0.5 that counts as no difference.
        alpha: Error probability allowed for each control.
        judged: Judges the signals of rehearsals.

    """
    found = (
        _check_unseen(rehearsals, before, names, delta, alpha),
        _check_fresh(rehearsals, names, delta, alpha),
        _check_alignment(rehearsals, names, delta, alpha),
        _check_statistics(rehearsals, before, names, judged),
        _check_retained(rehearsals, before, names, delta, alpha),
    )
    return tuple(one for one in found if one is not None)


def _check_unseen(
    rehearsals: Sequence[Rehearsal], before: Rehearsal | None, names: Sequence[str], delta: float, alpha: float
) -> Control:
    """Compare the holdout with the control, than which it may not look more trained on."""
    enough = all(min(one.observed.count("holdout"), one.observed.count("control")) >= FEWEST for one in rehearsals)
    usable = [name for name in names if all_have_signal(rehearsals, name, "control")]
    if not enough or not usable:
        return Control("unseen", "missing", "inconclusive", "no other never-trained examples were observed")
    matched = any(one.observed.count("spare") for one in rehearsals)
    if matched:
        return Control(
            "unseen", "passed", "inconclusive", "the holdout is matched: the request's own audit compares it"
        )
    tested: list[tuple[str, float, float]] = []
    changed = _changes(rehearsals, before, usable)
    # Both may differ by delta: over so many models any two samples of examples differ, for no fault. A rise since the
    # original shows at least as much in the change as in the level, which alone hides a leak.
    for models, label in ((rehearsals, ""), (changed, " since the original")):
        for name in usable if models else ():
            placed = pool_placements(models, name, "holdout", "control")
            by_key = pool_placements(models, name, "control", "holdout")
            # By example, averaged over models.
            above, _ = stats.one_sided_p_values(1 - by_key.others, placed.others, 0.5 + delta)
            tested.append((name + label, placed.value, above))
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
                change = np.full(one.observed.count(part), np.nan)
                rows = signals.scored_rows(one.observed, part, name)
                change[rows] = signals.scores(one.observed, part, name) - signals.scores(before.observed, part, name)
                arrays[f"{part}/{signals.READY}{name}"] = change
        changed.append(Rehearsal(Observations(one.observed.model, one.observed.split, arrays, one.observed.meta)))
    return changed


def _check_fresh(rehearsals: Sequence[Rehearsal], names: Sequence[str], delta: float, alpha: float) -> Control | None:
    """Compare the rehearsed examples with the control; None where they differ from it in kind."""
    if any(one.observed.count("spare") for one in rehearsals):
        return None
    usable = [name for name in names if all_have_signal(rehearsals, name, "control")]
    pooled = [(name, pool_placements(rehearsals, name, "forget", "control")) for name in usable]
    tested = [(name, one.value, one.p_values(0.5 + delta)[0]) for name, one in pooled]
    return _significant(tested, alpha, "fresh", "residue", "the rehearsed against never-trained control examples")


def _check_alignment(
    rehearsals: Sequence[Rehearsal], names: Sequence[str], delta: float, alpha: float
) -> Control | None:
    """Test the agreement of views in every space whose margin decides."""
    spaces = [space for space in rehearsals[0].observed.spaces if f"{space}.margin" in names]
    wanted = [f"{space}.alignment" for space in spaces if f"{space}.alignment" not in names]
    if not wanted:
        return None
    absent = [
        one for one in wanted if not all(all_have_signal(rehearsals, one, part) for part in ("forget", "holdout"))
    ]
    if absent:
        return Control("alignment", "missing", "inconclusive", f"{', '.join(absent)} was not observed")
    pooled = [(name, pool_placements(rehearsals, name)) for name in wanted]
    tested = [(name, one.value, one.p_values(0.5 + delta)[0]) for name, one in pooled]
    return _significant(tested, alpha, "alignment", "inconclusive", "views of the rehearsed against never-trained")


def _check_statistics(
    rehearsals: Sequence[Rehearsal],
    before: Rehearsal | None,
    names: Sequence[str],
    judged: Callable[[Sequence[Rehearsal], Sequence[str]], Sequence[Any]],
) -> Control | None:
    """Judge the rehearsals with BatchNorm statistics estimated anew; None where no model has such statistics."""
    if before is None or not any(one.observed.meta.get("running_statistics", False) for one in rehearsals):
        return None
    if not all(one.observed.count(f"{RENEWED_PREFIX}forget") for one in rehearsals):
        note = "the rehearsals were not observed with BatchNorm statistics estimated anew"
        return Control("statistics", "missing", "inconclusive", note)
    renewed = [_renewed(one) for one in rehearsals]
    usable = [name for name in names if name != signals.LEARNED]
    absent = [one for one in usable if not all(all_have_signal(renewed, one, part) for part in ("forget", "holdout"))]
    if absent:
        note = f"{', '.join(absent)} was not observed with BatchNorm statistics estimated anew"
        return Control("statistics", "missing", "inconclusive", note)
    found = judged(renewed, usable)
    shown = "; ".join(f"{one.signal}: AUC {one.value:.3f}" for one in found)
    words = {one.word for one in found}
    if "inconclusive" in words:
        words = words_if_moved(judged(rehearsals, usable), found)
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
    if before is None:
        return None
    tested: list[str] = []
    blinded: list[str] = []
    plain_names = [name for name in names if name != signals.LEARNED]
    absent = [name for name in plain_names if not all_have_signal(rehearsals, name, "retain")]
    if absent:
        return Control("retained", "missing", "inconclusive", f"{', '.join(absent)} of the retained was not observed")
    for name in plain_names:
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
