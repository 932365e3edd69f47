"""The page for the data-protection officer: what it says with a reference bank, and what is listed for deletion."""

from __future__ import annotations

import re
from dataclasses import replace

from efface.reporting.facts import BankFacts
from efface.reporting.format import mark_commands
from tests import records
from tests.records import Case
from tests.reporting.test_report import page, squeezed

CHECKS = (("thumbnails and caches", "stored embeddings"), ("queues of embeddings", "backups of all"))


def words_of(case: Case) -> str:
    """The page without its markup."""
    return squeezed(re.sub(r"<[^>]+>", "", page(case)))


def test_a_reference_bank_is_named_as_what_scores_were_compared_with() -> None:
    """It is no retrained model without the examples, and who has one is not advised to make one."""
    made = records.small()
    signal = replace(made.record.verdict.signals[0], signal="learned")
    limits = (
        "learned has no power.",
        "No attack could be learned.",
        "The unlearned model; logits.margin, learned alone.",
    )
    verdict = replace(made.record.verdict, level="A1", signals=(*made.record.verdict.signals, signal), limits=limits)
    bank = BankFacts(
        file="bank", digest="0" * 64, original="1" * 64, models=4, unit="example", share=1.0, divided=False
    )
    text = words_of(replace(made, record=made.record.model_copy(update={"verdict": verdict, "bank": bank})))
    first = text.partition("For the engineer")[2].partition("For the engineer")[0]
    assert "compared with 2 models of a reference bank that never saw the example (level A1)" in first
    assert "From a learned combination of all signals, it was right" in first
    assert "A learned combination of all signals has no power." in first and "could be learned." in first
    assert "The unlearned model; the classifier’s output, a learned combination of all signals alone." in first
    then = first.partition("What to do.")[2].partition("The request")[0]
    assert "efface rehearse" in then and "`" not in then and "reference bank" not in then
    assert "reference bank" in words_of(made).partition("What to do.")[2].partition("The request")[0]


def test_what_remembers_is_listed_where_it_belongs() -> None:
    """Caches are copies of the examples; the network itself is no momentum encoder."""
    made = records.removed()
    purged = {"foreign.backbone": "unlearned (120 tensors)", "foreign.marker": "marked", "foreign.scale": "unlearned"}
    purged |= {
        "foreign.twin": "copied",
        "queue": "refilled",
        "decoded pictures in /c": "kept: it holds 27",
        "shard a": "kept",
    }
    subject = made.record.checkpoints["subject"].model_copy(update={"purged": purged})
    record = made.record.model_copy(update={"checkpoints": {**made.record.checkpoints, "subject": subject}})
    text = words_of(replace(made, record=record)).partition("What else must be deleted")[2]
    copies, encoders = (text.partition(start)[2].partition(end)[0] for start, end in CHECKS)
    assert copies.strip() == "(decoded pictures in /c kept: it holds 27; shard a kept)"
    assert encoders.strip() == "(in this checkpoint: momentum encoder copied; queue refilled)"


def test_commands_are_code_and_nothing_else_is_markup() -> None:
    assert mark_commands("run `efface <x>` & more") == "run <code>efface &lt;x&gt;</code> &amp; more"
    assert mark_commands("a ` alone <b>") == "a ` alone &lt;b&gt;"
