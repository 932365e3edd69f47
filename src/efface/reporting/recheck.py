"""Check a stored record against the files next to it: findings, observations and the verdict that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from efface.auditing import controls
from efface.auditing.calibration import calibrate_evidence
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.rehearsals import RehearsedVerdict
from efface.auditing.utility_gate import UtilityLoss
from efface.auditing.validation import combine_words
from efface.auditing.verdict import Verdict, combine_signals, judge
from efface.errors import EffaceError
from efface.files import parse_json
from efface.reporting.record import RECORD, Record

REMEDY = "Restore the folder from a backup, or run `efface audit` again."
CLOSE = 1e-6
"""Largest difference between a stored AUC and the same one computed again."""


def require_same_findings(folder: Path, record: Record) -> None:
    """Raise unless ``findings.json`` holds the findings of the record; a missing file holds nothing to believe."""
    path = Path(folder) / "findings.json"
    if not path.exists():
        return
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EffaceError(f"{path} cannot be read.", str(error), REMEDY) from error
    if stored != json.loads(json.dumps([asdict(one) for one in record.findings])):
        raise EffaceError(f"{path} is not what was found.", f"It differs from the findings in {RECORD}.", REMEDY)


def select_recorded(record: Record, seen: Mapping[str, Observations]) -> dict[str, Observations]:
    """Keep the observations that the record was made from; of a record of schema 1 nothing tells, and all are kept."""
    digests = record.observations
    return {role: one for role, one in seen.items() if not digests or digests.get(role) == one.digest}


def require_same_verdict(
    folder: Path, record: Record, seen: Mapping[str, Observations], bank: ReferenceBank | None = None
) -> None:
    """Raise unless the verdict of the record is the one that its numbers, and its observations, lead to.

    Args:
        folder: The run folder, for messages.
        record: The record.
        seen: Observations of its models by role, as far as they still exist.
        bank: The reference bank that it was calibrated by, if that still exists.

    """
    verdict = record.verdict
    if record.schema_version > 1 and recombine(verdict) != verdict.word:
        why = f"Its own signals and controls lead to '{recombine(verdict)}'."
        if verdict.rehearsed is not None and not verdict.rehearsed.release:
            why += " Nothing in it compares the request with its rehearsals; older releases left that out."
        raise _other_verdict_error(folder, verdict, why)
    models = [role for role in record.checkpoints if not role.startswith("unlearned")]
    if not record.observations or any(role not in seen for role in models):
        return
    own = seen["subject"].model
    oracles = {role: seen[role] for role in models if role.startswith("oracle") and seen[role].model != own}
    claimed = frozenset(one.model for role, one in oracles.items() if record.checkpoints[role].claim)
    if record.bank is not None and bank is None:
        return
    evidence = Evidence(seen["original"], seen["subject"], tuple(oracles.values()), claimed=claimed)
    evidence = calibrate_evidence(evidence, bank)
    again = judge(evidence, record.criteria, fixed=record.fixed_criteria)
    values = {one.signal: one.value for one in again.signals}
    word = again.word if verdict.rehearsed is None else combine_words(again, verdict.rehearsed)[0]
    if (word != verdict.word.removesuffix(", utility lost") and word != verdict.word) or any(
        abs(values.get(one.signal, 2) - one.value) > CLOSE for one in verdict.signals
    ):
        raise _other_verdict_error(folder, verdict, f"Computed again from its observations, it is '{word}'.")


def recombine(verdict: Verdict) -> str:
    """Return the word that the signals and controls of a stored verdict lead to; its utility is taken as stored."""
    words = {one.signal: _word_of(one.low, one.high, one.word, verdict.delta) for one in verdict.signals}
    if any(words[one.signal] != one.word for one in verdict.signals):
        return "another one"
    if verdict.rehearsed is not None and not _is_recombined(verdict.rehearsed, verdict.delta):
        return "another one"
    lost = "lost" if verdict.word.endswith(", utility lost") else ""
    word = controls.strictest(combine_signals(verdict.signals, UtilityLoss(None, lost, "")), verdict.controls)
    if verdict.rehearsed is None:
        return word
    combined, _ = combine_words(replace(verdict, word=word), verdict.rehearsed)  # pyright: ignore[reportArgumentType]
    return f"{combined}, utility lost" if combined == "validated" and lost else combined


def _is_recombined(held: RehearsedVerdict, delta: float) -> bool:
    """Whether the word of stored rehearsals is the one that their signals and controls lead to."""
    words = {_word_of(one.low, one.high, one.word, delta) for one in held.signals}
    if any(_word_of(one.low, one.high, one.word, delta) != one.word for one in held.signals):
        return False
    powered = any(one.powered for one in held.signals)
    word = (
        next((one for one in ("residue", "over-forgotten") if one in words), "inconclusive")
        if powered
        else "inconclusive"
    )
    word = "removed" if powered and words == {"removed"} else word
    return controls.strictest(word, held.controls) == held.word


def _word_of(low: float, high: float, word: str, delta: float) -> str:
    """Return the word of a signal: ``removed`` exactly where the whole interval is inside."""
    inside = 0.5 - delta < low and high < 0.5 + delta
    return "removed" if inside and word != "removed" else "inconclusive" if word == "removed" and not inside else word


def _other_verdict_error(folder: Path, verdict: Verdict, why: str) -> EffaceError:
    return EffaceError(f"The record in {folder} says '{verdict.word}', which its numbers do not.", why, REMEDY)
