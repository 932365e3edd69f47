"""Controls of a verdict: what must also hold before "removed" is said. NumPy only.

``unseen``      The holdout is compared with other never-trained examples (``control``: a sample of ``test``). If it
                looks more trained on than they do, the model trained on the holdout too, and F may hide behind it.
``withheld``    The holdout is compared with pictures that only the auditor has, if there are any. They show a model
                that was trained on all never-trained parts of the split.
``fresh``       F is compared with these examples as well. What stands out against them is residue.
``alignment``   The agreement of views, on its own. A method that lowers the margins can leave it as it was.
``statistics``  F and holdout through a copy with BatchNorm statistics estimated anew on retained images. A leak that
                comes back was only covered. Where no AUC moves by more than ``UNMOVED``, the statistics cover nothing.
``claimed``     Reference models that the user only states to be clean may speak against "removed", never for it.
``fixed``       Criteria chosen after unlearning: the criteria fixed before must say "removed" as well.

A control that fails turns ``removed`` into ``residue`` or ``inconclusive``. One that could not be made (``missing``)
does not count as passed. All tests use the criteria's α, with Holm's correction over the signals of a control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from efface import stats
from efface.auditing import signals
from efface.auditing.evidence import Evidence
from efface.auditing.observations import WITHHELD, Observations

ControlWord = Literal["passed", "failed", "missing"]
FEWEST = 20
"""A holdout and a control of fewer examples are not compared."""
UNMOVED = 0.01
"""BatchNorm statistics that move an AUC by no more than this, estimated anew, hide nothing."""
RENEWED_PREFIX = "renewed-"
"""Prefix of the parts that were observed with BatchNorm statistics estimated anew."""


@dataclass(frozen=True)
class Control:
    """The result of one control."""

    name: str
    word: ControlWord
    becomes: Literal["residue", "inconclusive"]
    """What ``removed`` becomes unless the control passed."""
    note: str
    """What was compared and what came out, in a sentence without its full stop."""


def make_controls(
    evidence: Evidence, names: Sequence[str], delta: float, alpha: float, judged: Callable[[Evidence], Sequence[Any]]
) -> tuple[Control, ...]:
    """Make every control that applies, except the one of criteria.

    Args:
        evidence: The evidence of the verdict, with the oracles that are only claimed to be clean.
        names: The signals that decide.
        delta: Largest distance of an AUC from 0.5 that counts as no difference.
        alpha: Error probability allowed for each control.
        judged: Judges the signals of an evidence.

    """
    verified = evidence.verified()
    found = (
        check_unseen(verified, names, delta, alpha),
        check_withheld(verified, names, delta, alpha),
        check_fresh(verified, names, delta, alpha),
        check_alignment(verified, names, delta, alpha),
        check_statistics(verified, judged),
        check_claimed(evidence, judged),
    )
    return tuple(one for one in found if one is not None)


def strictest(word: str, controls: Sequence[Control]) -> str:
    """Apply the controls to a verdict: ``removed`` stays only if all of them passed; other words are as they are."""
    becomes = {one.becomes for one in controls if one.word != "passed"}
    if word != "removed" or not becomes:
        return word
    return "residue" if "residue" in becomes else "inconclusive"


def describe_objection(word: str, controls: Sequence[Control]) -> str:
    """Say why a verdict whose signals all read ``removed`` is another word; empty if no control is the reason."""
    against = [one for one in controls if one.word != "passed"]
    notes = "; ".join(one.note for one in [one for one in against if one.becomes == word] or against)
    if word == "residue" and notes:
        return f"The forgotten examples can still be told from examples never trained on: {notes}"
    if word == "inconclusive" and notes:
        return f"The forgotten examples look like the holdout, but that shows nothing: {notes}"
    return ""


def check_unseen(evidence: Evidence, names: Sequence[str], delta: float, alpha: float) -> Control:
    """Compare the holdout with other never-trained examples, than which it may not look more trained on.

    Two tests: it may not lie above them by more than ``delta``, which would hide a leak of that size; and it may not
    have risen above them at all since the original, which is what training on it does.
    """
    part = control_part(evidence.subject, names)
    if part is None:
        return Control("unseen", "missing", "inconclusive", _NOTHING_ELSE)
    pairs = _likened(evidence.subject, part, "holdout")
    tested = _compare(evidence, names, pairs, 0.5 + delta) + _compare(evidence, names, pairs, 0.5, since_original=True)
    if not tested:
        note = f"there are fewer than {FEWEST} examples to show whether the holdout was trained on: enlarge split.test"
        return Control("unseen", "missing", "inconclusive", note)
    return _judge_holdout("unseen", tested, alpha, f"never-trained {part} examples", f"{part} does")


def check_withheld(evidence: Evidence, names: Sequence[str], delta: float, alpha: float) -> Control | None:
    """Compare the holdout with pictures that only the auditor has; None if there are none.

    They may differ in kind from the holdout. So they are compared by how much each changed since the original, and
    with retrained references by how much each differs from those.
    """
    observed = evidence.subject
    if not observed.count(WITHHELD):
        return None
    plain = replace(evidence, calibration=())
    usable = [name for name in names if signals.has_signal(observed, WITHHELD, name)]
    pairs = [("", _all(observed, "holdout"), _all(observed, WITHHELD))]
    tested = _compare(plain, usable, pairs, 0.5, since_original=True)
    tested += _compare(plain, usable, pairs, 0.5 + delta) if plain.oracles else []
    if not tested:
        note = f"there are fewer than {FEWEST} withheld or holdout examples, or no original to compare with"
        return Control("withheld", "missing", "inconclusive", note)
    others = "pictures that only the auditor has"
    return _judge_holdout("withheld", tested, alpha, others, others)


def _judge_holdout(
    name: str, tested: Sequence[tuple[str, float, float]], alpha: float, others: str, as_unseen_as: str
) -> Control:
    """The control of the holdout, by comparisons in which it may not look more trained on than other examples do."""
    worst = _significant(tested, alpha)
    if worst:
        return Control(
            name, "failed", "inconclusive",
            f"the holdout itself looks trained on, compared with {others} ({worst}): the forgotten may look like it "
            "because the model was trained on both",
        )  # fmt: skip
    return Control(name, "passed", "inconclusive", f"the holdout looks as unseen as {as_unseen_as} ({_shown(tested)})")


def check_fresh(evidence: Evidence, names: Sequence[str], delta: float, alpha: float) -> Control | None:
    """Compare F with the never-trained examples of the control; None where they differ from F in kind."""
    observed = evidence.subject
    part = control_part(observed, names)
    if part is None or (observed.meta.get("official_test", False) and not evidence.references):
        return None
    tested = _compare(evidence, names, _likened(observed, part, "forget"), 0.5 + delta)
    if not tested:
        return None
    worst = _significant(tested, alpha)
    if worst:
        note = f"against never-trained {part} examples, the forgotten ones do stand out ({worst})"
        return Control("fresh", "failed", "residue", note)
    return Control("fresh", "passed", "residue", f"the forgotten against {part} examples ({_shown(tested)})")


def check_alignment(evidence: Evidence, names: Sequence[str], delta: float, alpha: float) -> Control | None:
    """Test the agreement of views in every space that was observed; None where it decides already."""
    observed = evidence.subject
    wanted = [f"{space}.alignment" for space in observed.spaces if f"{space}.margin" in names]
    wanted = [name for name in wanted if name not in names]
    if not wanted:
        return None
    absent = [one for one in wanted if not all(signals.has_signal(observed, p, one) for p in ("forget", "holdout"))]
    if absent:
        return Control("alignment", "missing", "inconclusive", f"{', '.join(absent)} was not observed")
    sides = [("", _all(observed, "forget"), _all(observed, "holdout"))]
    tested = _compare(evidence, wanted, sides, 0.5 + delta)
    if not tested:
        return None  # so few examples decide nothing else either
    worst = _significant(tested, alpha)
    if worst:
        note = f"views of the forgotten examples still agree more than those of unseen ones ({worst})"
        return Control("alignment", "failed", "inconclusive", note)
    return Control("alignment", "passed", "inconclusive", f"views agree as in unseen examples ({_shown(tested)})")


def renewed_evidence(evidence: Evidence) -> Evidence | None:
    """Return the evidence with the subject as it looks with BatchNorm statistics estimated anew; None if unobserved."""
    observed = evidence.subject
    if not all(observed.has(f"{RENEWED_PREFIX}{part}", "keys") for part in ("forget", "holdout")):
        return None
    kept = {name: value for name, value in observed.arrays.items() if name.split("/")[0] not in ("forget", "holdout")}
    moved = {
        name.removeprefix(RENEWED_PREFIX): value
        for name, value in observed.arrays.items()
        if name.startswith(RENEWED_PREFIX)
    }
    subject = Observations(f"{observed.model} with new statistics", observed.split, kept | moved, observed.meta)
    return Evidence(evidence.original, subject, evidence.oracles, calibration=evidence.calibration)


def check_statistics(evidence: Evidence, judged: Callable[[Evidence], Sequence[Any]]) -> Control | None:
    """Judge the subject with its BatchNorm statistics estimated anew; None for a model without such statistics.

    Args:
        evidence: The evidence of the verdict.
        judged: Judges the signals of an evidence: what :func:`efface.auditing.verdict.judge_signals` returns.

    """
    if not evidence.subject.meta.get("running_statistics", False):
        return None
    renewed = renewed_evidence(evidence)
    if renewed is None:
        note = "the model was not observed with BatchNorm statistics estimated anew"
        return Control("statistics", "missing", "inconclusive", note)
    found = judged(renewed)
    shown = "; ".join(f"{one.signal}: AUC {one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in found)
    words = {one.word for one in found}
    if "inconclusive" in words:
        words = words_if_moved(judged(evidence), found)
    if "residue" in words:
        note = f"with BatchNorm statistics estimated anew on retained examples, the leak is back ({shown})"
        return Control("statistics", "failed", "residue", note)
    if words != {"removed"}:
        note = f"with BatchNorm statistics estimated anew, it is no longer shown that nothing is left ({shown})"
        return Control("statistics", "failed", "inconclusive", note)
    return Control("statistics", "passed", "residue", f"the same with BatchNorm statistics estimated anew ({shown})")


def words_if_moved(plain: Sequence[Any], renewed: Sequence[Any]) -> set[str]:
    """The words of all signals with new statistics; one that hardly moved keeps the word that it had.

    Args:
        plain: The judged signals, with ``signal``, ``value`` and ``word``.
        renewed: The same signals with BatchNorm statistics estimated anew.

    """
    before = {one.signal: one for one in plain}
    words: set[str] = set()
    for one in renewed:
        was = before.get(one.signal)
        stayed = was is not None and one.word == "inconclusive" and abs(one.value - was.value) <= UNMOVED
        words.add(was.word if was is not None and stayed else one.word)
    return words


def check_claimed(evidence: Evidence, judged: Callable[[Evidence], Sequence[Any]]) -> Control | None:
    """Hear the oracles that are only claimed to be clean; None without any. ``judged``: as above."""
    count = len(evidence.oracles) - len(evidence.verified().oracles)
    if not count:
        return None
    stated = f"{count} reference model(s) are only stated never to have seen the forgotten, which nothing shows"
    telling = [one for one in judged(replace(evidence, calibration=())) if one.word in ("residue", "over-forgotten")]
    if telling:
        note = "; ".join(f"{one.signal}: AUC {one.value:.3f} ({one.low:.3f} to {one.high:.3f})" for one in telling)
        return Control("claimed", "failed", "inconclusive", f"{stated}; yet even compared with them, {note}")
    return Control("claimed", "passed", "inconclusive", f"{stated}: the verdict is the one without them")


def describe_change(now: Any, before: Any) -> str:
    """Name each criterion that differs from the one that was fixed before, with both values."""

    def shown(value: object) -> str:
        return (
            ", ".join(map(str, value)) if isinstance(value, tuple) else "the default" if value is None else f"{value}"
        )

    names = [one.name for one in fields(now) if getattr(now, one.name) != getattr(before, one.name)]
    return "; ".join(f"{n}: {shown(getattr(now, n))} instead of {shown(getattr(before, n))}" for n in names)


def describe_fixed(now: Any, before: Any, word: str) -> str:
    """Say which criteria were changed after unlearning, and which word those before lead to."""
    return f"criteria were changed afterwards ({describe_change(now, before)}); by those before: {word}"


def control_part(observed: Observations, names: Sequence[str]) -> str | None:
    """Return the part that the holdout is compared with: ``control``, or ``test`` where that has the signals."""
    for part in ("control", "test"):
        if all(signals.has_signal(observed, part, name) for name in names):
            return part
    return None


_NOTHING_ELSE = "no other never-trained examples were observed, so nothing shows whether the holdout was trained on"
Chosen = list[tuple[str, np.ndarray]]
"""Examples of several parts: name of the part, and which of its examples, bool [n]."""


def _all(observed: Observations, part: str) -> Chosen:
    return [(part, np.ones(observed.count(part), dtype=bool))]


def _likened(observed: Observations, part: str, side: str) -> list[tuple[str, Chosen, Chosen]]:
    """Return pairs of examples that differ in nothing but training: a label, those of ``side``, those of ``part``.

    A random draw is compared with the whole control. Examples of some classes are compared with control examples of
    the same classes in the same proportions. The whole pool that a holdout was taken from is a random draw again.
    """
    matched = observed.meta.get("matched") or ("class" if observed.count("spare") else None)
    random = bool(observed.meta.get("random", True))
    if side == "holdout" and not observed.count("spare"):
        return [("", _all(observed, "holdout"), _all(observed, part))]
    if side == "forget" and random:
        return [("", _all(observed, "forget"), _all(observed, part))]
    pairs: list[tuple[str, Chosen, Chosen]] = []
    if side == "holdout":
        whole, seen = observed.meta.get("whole", {}).get("spare"), observed.count("spare")
        count = round(observed.count("holdout") * seen / whole) if whole else observed.count("holdout")
        share = _first(observed, "holdout", np.arange(observed.count("holdout")), count)
        pairs.append((" of the whole pool", [("holdout", share), *_all(observed, "spare")], _all(observed, part)))
    if matched == "class" and observed.has(side, "labels") and observed.has(part, "labels"):
        pairs.append((" by class", _all(observed, side), [(part, _in_proportion(observed, side, part))]))
    return pairs


def _in_proportion(observed: Observations, side: str, part: str) -> np.ndarray:
    """Choose examples of ``part`` with the class proportions of ``side``, bool [n]."""
    wanted, counts = np.unique(signals.labels(observed, side), return_counts=True)
    rows = [np.flatnonzero(signals.labels(observed, part) == label) for label in wanted]
    scale = min(len(found) / count for found, count in zip(rows, counts, strict=True))
    chosen = np.zeros(observed.count(part), dtype=bool)
    for found, count in zip(rows, counts, strict=True):
        chosen |= _first(observed, part, found, int(scale * count))
    return chosen


def _first(observed: Observations, part: str, rows: np.ndarray, count: int) -> np.ndarray:
    """Choose ``count`` of some rows of a part at random by key, bool [n]."""
    chosen = np.zeros(observed.count(part), dtype=bool)
    keys = observed.of(part, "keys")[rows]
    chosen[rows[signals.random_order_by_key(keys)[:count]]] = True
    return chosen


def _scores(evidence: Evidence, name: str, chosen: Chosen) -> np.ndarray:
    """Scores of the chosen examples: less those of the references, or of the original where only that can be used."""
    observed, references = evidence.subject, evidence.references
    if not references and observed.meta.get("official_test", False):
        references = (evidence.original,)  # an official test set may differ from the holdout by itself
    found = [
        signals.membership_scores(observed, references, part, name)[mask[signals.scored_rows(observed, part, name)]]
        for part, mask in chosen
    ]
    return np.concatenate(found)


def _changes(evidence: Evidence, name: str, chosen: Chosen) -> np.ndarray:
    """How much more member-like the chosen examples are in the subject than in the original."""
    subject, original = (
        [signals.scores(observed, part, name)[mask[signals.scored_rows(observed, part, name)]] for part, mask in chosen]
        for observed in (evidence.subject, evidence.original)
    )
    return np.concatenate(subject) - np.concatenate(original)


def _compare(
    evidence: Evidence,
    names: Sequence[str],
    pairs: Sequence[tuple[str, Chosen, Chosen]],
    null: float,
    *,
    since_original: bool = False,
) -> list[tuple[str, float, float]]:
    """Return name, AUC and p-value of "the first side is no more than ``null`` above the second" of each comparison.

    ``since_original``: compare the change since the original. What makes an example easy for both models cancels, so
    training on one side alone is seen much better.
    """
    if since_original and evidence.subject.model == evidence.original.model:
        return []
    tested: list[tuple[str, float, float]] = []
    for label, side, control in pairs:
        for name in names:
            measure = _changes if since_original else _scores
            scored = measure(evidence, name, side), measure(evidence, name, control)
            if min(map(len, scored)) >= FEWEST:
                placed = stats.placements(*scored)
                since = " since the original" if since_original else ""
                tested.append(
                    (name + label + since, float(placed[0].mean()), stats.one_sided_p_values(*placed, null)[0])
                )
    return tested


def _significant(tested: Sequence[tuple[str, float, float]], alpha: float) -> str:
    """Return the comparisons that are significant after Holm's correction; an empty string if none is."""
    adjusted = stats.holm([p for _, _, p in tested])
    return "; ".join(f"{name}: AUC {auc:.3f}" for (name, auc, _), p in zip(tested, adjusted, strict=True) if p < alpha)


def _shown(tested: Sequence[tuple[str, float, float]]) -> str:
    return "; ".join(f"{name}: AUC {auc:.3f}" for name, auc, _ in tested)
