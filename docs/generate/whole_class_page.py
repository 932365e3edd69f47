"""The tables of ``docs/results/whole_class.md``: one class forgotten by methods for classes and by general ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.machine import read_json
from docs.generate.every_size_page import TITLES
from docs.generate.markdown import MISSING, made_by, mean_and_range, table_head, table_row
from docs.generate.request_sizes_page import FAMILIES
from research.paths import RESULTS

Row = dict[str, Any]

METHODS = (
    "original", "retrain", "finetune", "neggrad", "scrub", "salun", "contrastive_unlearning", "damp", "purge",
    "alignment_calibration", "margin_matching",
)  # fmt: skip
"""In this order in every table."""
MEASURES = {
    "neighbor_class.detection": "neighbors, AUC",
    "neighbor_class.divergence": "neighbors, divergence",
    "oracle_gap.average": "average gap",
}
USEFUL = {"utility.accuracy.test": "accuracy", "utility.knn20.test": "kNN", "utility.probe.test": "probe"}
SAID = (
    "Means over seeds, with the smallest and the largest. F: AUC of the class's trained examples against never-trained "
    "ones of the same class, calibrated by two retrained models (for the row *retrain* by the other one). Neighbors: "
    "AUC of telling the audited model from a retrained one by where each picture of the class goes (.5: it cannot be "
    "told), and how far the two models' shares over the other classes lie apart. Average gap: to the retrained models. "
    "Accuracy, kNN and probe: on test examples, in points above a retrained model. Time and examples: share of "
    "retraining the original."
)


def page() -> list[str]:
    """One table for each family, as Markdown lines."""
    result, lines = read_json(RESULTS / "whole_class.json"), list[str]()
    for family, title in FAMILIES.items():
        rows = [row for row in result["rows"] if row["family"] == family]
        if rows:
            lines += [f"### {title[0].upper()}{title[1:]}", "", *table(rows), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.whole_class`')}", ""]


def table(rows: Sequence[Row]) -> list[str]:
    """One row for each method."""
    names = list(rows[0]["signals"])
    useful = {name: title for name, title in USEFUL.items() if any(name in row["found"] for row in rows)}
    titles = (f"F, {TITLES[name]}" for name in names)
    lines = table_head("method", "seeds", *titles, *MEASURES.values(), *useful.values(), "time", "examples", "verdicts")
    for method in METHODS:
        found = [row for row in rows if row["method"] == method]
        if found:
            lines.append(describe(method, found, names, list(useful)))
    return lines


def describe(method: str, found: Sequence[Row], names: Sequence[str], useful: Sequence[str]) -> str:
    """One line of a table."""

    def over(measure: Callable[[Row], float | None], digits: int = 3, factor: float = 1.0) -> str:
        return mean_and_range([factor * value for row in found if (value := measure(row)) is not None], digits)

    said = Counter(row["word"] for row in found)
    spent = method not in {"original", "retrain"}
    return table_row(
        method, len(found), *(over(lambda row, name=name: row["signals"].get(name)) for name in names),
        *(over(lambda row, name=name: value_of(row, name)) for name in MEASURES),
        *(over(lambda row, name=name: behind(row, name), 1, 100) for name in useful),
        over(lambda row: row["share of the time"], 1, 100) + " %" if spent else MISSING,
        over(lambda row: row["share of the examples"], 1, 100) + " %" if spent else MISSING,
        ", ".join(f"{word} {count}" for word, count in said.most_common()),
    )  # fmt: skip


def value_of(row: Row, name: str) -> float | None:
    """One finding of a row."""
    return row["found"].get(name, [None])[0]


def behind(row: Row, name: str) -> float | None:
    """How much better than the retrained models a measure of usefulness is; below 0: worse."""
    value, oracle = row["found"].get(name, (None, None))
    return None if value is None or oracle is None else value - oracle
