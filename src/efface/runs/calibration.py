"""The reference bank of an audit: of this original, observed in the same way, and not what the method was given."""

from __future__ import annotations

from pathlib import Path

from efface.auditing.bank_file import load_bank
from efface.auditing.reference_bank import ReferenceBank
from efface.errors import EffaceError
from efface.reporting.facts import BankFacts
from efface.reporting.record import Record
from efface.runs.binding import BOUND
from efface.runs.comparison import Comparison, lineage
from efface.runs.method_bank import refuse_own_targets, used_bank, valid_digest


def open_bank(path: Path, compared: Comparison) -> ReferenceBank:
    """Read a bank for an audit, and check that it is one of this original.

    A method that took targets from the bank was given one half of its pairs; the audit of what it made gets the other.

    Args:
        path: The bank's folder or file.
        compared: The run, with the models that it is compared with.

    Raises:
        EffaceError: The bank is damaged, of another original, was observed in another way, or its half for the audit is
            what the method was given.

    """
    bank, subject = load_bank(path), compared.subject
    known = (*lineage(subject), compared.models["original"].meta["digest"])
    if bank.original not in known:
        raise EffaceError(
            f"{path} is the reference bank of another original.",
            f"It was made for {bank.original[:16]}, and {subject.folder} goes back to {known[0][:16]}.",
            f"Make one for this original: `efface references {subject.folder} --bank 8`.",
        )
    facts = compared.binder.settings() | {"valid": valid_digest(subject.data, subject.split)}
    names = BOUND | {"valid": "examples to which margins compare"}
    others = [names[name] for name, value in facts.items() if bank.meta.get(name) != value]
    if others:
        raise EffaceError(
            f"{path} was observed in another way: with other {', '.join(others)}.",
            "Scores can be compared only if they were made in the same way.",
            "Audit with the settings of the bank, or make it again with those of the audit (--set watch.NAME=VALUE).",
        )
    refuse_own_targets(path, bank, subject.meta)
    return bank.part_for("audit") if used_bank(subject.meta) else bank


def bank_facts(path: Path | None, bank: ReferenceBank | None, *, divided: bool = False) -> BankFacts | None:
    """Describe the bank of an audit for its record; None without one."""
    if path is None or bank is None:
        return None
    return BankFacts(
        file=str(Path(path).resolve()),
        digest=bank.digest,
        original=bank.original,
        models=bank.models,
        unit=str(bank.meta.get("unit")),
        share=float(bank.meta.get("share", 1.0)),
        divided=divided,
    )


def recorded_bank(record: Record) -> ReferenceBank | None:
    """Read the bank that a record was made with; None if it is not there any more, or is another one now."""
    facts = record.bank
    if facts is None or not Path(facts.file).exists():
        return None
    bank = load_bank(Path(facts.file))
    bank = bank.part_for("audit") if facts.divided else bank
    return bank if bank.digest == facts.digest else None
