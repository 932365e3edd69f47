"""The table of ``docs/results/successive.md``: twenty requests, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import made_by, mean_and_range, table_head, table_row
from docs.generate.reference_bank_page import SIGNALS
from research.paths import RESULTS

Look = dict[str, Any]

FAMILIES = {"digits": "Digits, SimCLR, ten each", "simclr": "Fashion-MNIST, SimCLR, twenty each"}
SAID = (
    "Means over originals, with the smallest and the largest. F: AUC of all that were forgotten so far against "
    "never-trained examples, calibrated by the audit's half of a bank; before: the original, at once: all in one "
    "request, retrained: without them. R: the same of the retained. kNN: accuracy on test examples, in percent."
)


def page() -> list[str]:
    """One table for each family, as Markdown lines."""
    result, lines = read_json(RESULTS / "successive.json"), list[str]()
    for family, title in FAMILIES.items():
        rows = [row for row in result["rows"] if row["family"] == family]
        if rows:
            lines += [f"### {title}", "", *table(rows), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.successive`')}", ""]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is seen before, in between, at the end, and beside it."""
    names = list(rows[0]["before"]["forgotten"])
    titles = [f"F, {SIGNALS[name]}" for name in names] + [f"R, {SIGNALS[name]}" for name in names]
    lines = table_head("after", "originals", *titles, "kNN")
    for title, looks in looked_at(rows):

        def over(measure: Callable[[Look], float], digits: int = 3, looks: Sequence[Look] = looks) -> str:
            return mean_and_range([measure(look) for look in looks], digits)

        gone = [over(lambda look, name=name: look["forgotten"][name][0]) for name in names]
        kept = [over(lambda look, name=name: look["retained"][name]) for name in names]
        lines.append(table_row(title, len(looks), *gone, *kept, over(lambda look: 100 * look["knn"], 1)))
    return lines


def looked_at(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[Look]]]:
    """Each look by its name, one for each original."""
    yield "before", [row["before"] for row in rows]
    for number, first in enumerate(rows[0]["after"]):
        yield f"{first['requests']} requests", [row["after"][number] for row in rows]
    for name in ("at once", "retrained"):
        yield name, [row[name] for row in rows]
