"""The reference bank that a method takes its targets from: of this original, with the same yardstick."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from efface.auditing.bank_file import load_bank
from efface.auditing.reference_bank import ReferenceBank
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.checkpoint import Checkpoint
from efface.unlearning.protocol import Method, Needs


def open_method_bank(
    path: Path, start: Checkpoint, data: Data, split: Split, ancestors: Collection[str] = ()
) -> ReferenceBank:
    """Read a bank for a method.

    Args:
        path: The bank's folder or file.
        start: The checkpoint that is unlearned.
        data: The examples.
        split: Its split.
        ancestors: Digests of the models that a run goes back to: a bank of the first one serves all later requests.

    Raises:
        EffaceError: The bank is damaged, or is of another original or other unseen examples.

    """
    bank = load_bank(path)
    if bank.meta.get("valid") != valid_digest(data, split):
        raise EffaceError(
            f"{path} compares with other unseen examples than this checkpoint's.",
            "Its targets are measured from the `valid` examples of its own original.",
            "Make a bank of this original: `efface references RUN --bank 8`.",
        )
    if bank.original not in (start.model.digest(), start.parent, *ancestors):
        raise EffaceError(
            f"{path} is the reference bank of another original.",
            f"It was made for {bank.original[:16]}, and this checkpoint is {start.model.digest()[:16]}.",
            "Make a bank of this original: `efface references RUN --bank 8`.",
        )
    return bank


def describe_unused_bank(name: str, method: Method | None, *, limited: bool) -> list[str]:
    """Say that a bank is not read, where it was given to a method that takes no targets from it.

    Args:
        name: The method's name.
        method: The method; None for ``auto``, which takes targets from a bank unless its steps are limited.
        limited: Whether there is a budget or early stopping.

    """
    if (not limited) if method is None else Needs.TARGETS in method.needs:
        return []
    how = " with --budget or --stop" if method is None else ""
    return [f"{name}{how} takes no targets from a reference bank: it is for the audit."]


def valid_digest(data: Data, split: Split) -> str:
    """SHA-256 of the keys of ``valid``, to which every margin compares."""
    return hashlib.sha256("\0".join(sorted(split.keys(data, "valid"))).encode()).hexdigest()


def used_bank(meta: Mapping[str, Any]) -> bool:
    """Whether the method of a run took targets from a reference bank."""
    method = meta.get("method")
    return isinstance(method, dict) and method.get("bank") is not None


def refuse_own_targets(path: Path, bank: ReferenceBank, meta: Mapping[str, Any]) -> None:
    """Refuse to judge a run by the models that its method was given.

    Args:
        path: The bank's folder or file.
        bank: The whole bank that an audit was given.
        meta: Of the run, which names the half that its method had.

    Raises:
        EffaceError: What the method had is the audit's half of this bank, or was that before models were added.

    """
    if not used_bank(meta):
        return
    for pairs in range(2, bank.models // 2 + 1):
        if bank.select_pairs(range(pairs)).part_for("audit").digest == meta["method"]["bank"]:
            raise EffaceError(
                f"The method of this run was given the half of {path} that belongs to the audit.",
                "What a method was given may not judge it: it would find the forgotten where the method put them.",
                "Unlearn again with --bank and this bank as `efface references` made it.",
            )
