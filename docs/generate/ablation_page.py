"""The tables of ``docs/results/ablation.md``: what each part of the matching methods is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.machine import read_json
from docs.generate.every_size_page import largest_loss
from docs.generate.markdown import made_by, mean_and_range, table_head, table_row
from docs.generate.reference_bank_page import SIGNALS
from research.ablation import VARIANTS
from research.paths import RESULTS

Row = dict[str, Any]

FAMILIES = {"digits": "Digits, SimCLR", "simclr": "Fashion-MNIST, SimCLR"}
SHOWN = ("backbone.margin", "projector.margin", "learned", "projector.alignment")
SAID = (
    "Means over originals, with the smallest and the largest. F: AUC of the forgotten against never-trained examples, "
    "pooled over eight requests of twenty and calibrated by the audit's half of a bank. R: what the retained lose by "
    "the signal in which they lose most. Seconds of one request, one thread."
)


def page() -> list[str]:
    """One table for each family, as Markdown lines."""
    result, lines = read_json(RESULTS / "ablation.json"), list[str]()
    for family, title in FAMILIES.items():
        rows = [row for row in result["rows"] if row["family"] == family]
        if rows:
            lines += [f"### {title}", "", *table(rows), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.ablation`')}", ""]


def table(rows: Sequence[Row]) -> list[str]:
    """One row for each variant."""
    lines = table_head(
        "method", "what is changed", "originals", *(f"F, {SIGNALS[name]}" for name in SHOWN), "R", "seconds"
    )
    for method, variant in VARIANTS:
        found = [row for row in rows if (row["method"], row["variant"]) == (method, variant)]
        if found:
            lines.append(describe(method, variant, found, rows))
    return lines


def describe(method: str, variant: str, found: Sequence[Row], rows: Sequence[Row]) -> str:
    """One line of a table."""

    def over(measure: Callable[[Row], float], digits: int = 3) -> str:
        return mean_and_range([measure(row) for row in found], digits)

    return table_row(
        method, variant, len(found), *(over(lambda row, name=name: row["forgotten"][name][0]) for name in SHOWN),
        over(lambda row: lost(row, rows)), over(lambda row: row["seconds"], 1),
    )  # fmt: skip


def lost(row: Row, rows: Sequence[Row]) -> float:
    """How far the retained fell against the original of the same seed."""
    return largest_loss(next(one for one in rows if one["method"] == "original" and one["seed"] == row["seed"]), row)
