"""The tables of ``docs/results/request_sizes.md``: what remains of requests of one example to a fifth of the data."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from docs.generate.reference_bank_page import SIGNALS
from research.paths import RESULTS
from research.request_sizes import OTHERS

FAMILIES = {
    "simclr": "SimCLR", "moco": "MoCo", "byol": "BYOL", "resnet": "a supervised ResNet", "vit": "a supervised ViT",
    "clip": "CLIP on 1 000 emoji and their names",
    "simclr-500": "SimCLR on 500 images", "moco-500": "MoCo on 500 images",
}  # fmt: skip
METHODS = (
    "retrain", "original", "finetune", "alignment_calibration", *OTHERS, "margin_matching", "reference_matching",
)  # fmt: skip
"""In this order in every table."""
PLAIN = ("backbone.alignment", "projector.alignment", "backbone.norm", "projector.norm")
"""Signals that decide nothing, and are shown beside those that do."""
SAID = (
    "AUC of the forgotten against never-trained examples, pooled over the rehearsed requests, with its 90 % interval; "
    "calibrated by a reference bank. R: the same of the retained. Like them: whether the one real request looks like "
    "the rehearsed ones. Time: unlearning the real request, and its share of training the original, on one thread, "
    "while other processes ran; the share of the examples that were read is exact."
)


def order_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows by family, size and method."""
    families = list(FAMILIES)
    return sorted(
        rows, key=lambda row: (families.index(row["family"]), row["world"], row["size"], METHODS.index(row["method"]))
    )


def page() -> list[str]:
    """One person's pictures, and for each family requests of each size by each method, as Markdown lines."""
    made = {"people.json": people, "request_sizes.json": families}
    return [line for name, make in made.items() if (RESULTS / name).exists() for line in make()]


def families() -> list[str]:
    """Two tables for each family."""
    result, lines = read_json(RESULTS / "request_sizes.json"), list[str]()
    rows = order_rows(result["rows"])
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        lines += [f"### {FAMILIES[family]}: what the decision rests on", "", *decided(mine), ""]
        lines += [f"### {FAMILIES[family]}: the other signals, and the cost", "", *beside(mine), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.request_sizes`')}", ""]


def order_people() -> list[dict[str, Any]]:
    """All rows of one person's pictures by method and number of rehearsals."""
    rows = ({"size": 3, **row} for row in read_json(RESULTS / "people.json")["rows"])
    return sorted(rows, key=lambda row: (METHODS.index(row["method"]), row["asked"]))


def people() -> list[str]:
    """The same tables for one person's pictures."""
    result, rows = read_json(RESULTS / "people.json"), order_people()
    lines = ["### One person's three pictures: what the decision rests on", "", *decided(rows), ""]
    lines += ["### One person's three pictures: the other signals, and the cost", "", *beside(rows), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.people make`')}", ""]


def decided(rows: list[dict[str, Any]]) -> list[str]:
    """The pooled AUC of every signal that decides, of the forgotten and of the retained, and the words."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row.get("pooled", {})))
    titles = [SIGNALS[name] for name in names]
    lines = table_head(
        "forgotten", "method", "pooled", *titles, *(f"R, {title}" for title in titles), "like them", "verdict"
    )
    for row in rows:
        pooled, kept = row.get("pooled", {}), row["signals"] or {}
        shown = [interval(pooled.get(name)) for name in names]
        others = [number(kept.get(f"{name} of the retained")) for name in names]
        count = f"{row['requests']} requests, {row['examples']} examples" if pooled else MISSING
        alike = MISSING if row.get("like them") is None else "yes" if row["like them"] else "no"
        lines.append(table_row(row["size"], row["method"], count, *shown, *others, alike, row["word"]))
    return lines


def beside(rows: list[dict[str, Any]]) -> list[str]:
    """Signals that decide nothing, kNN accuracy, and what the real request took."""
    names = [name for name in PLAIN if any(name in (row["signals"] or {}) for row in rows)]
    lines = table_head(
        "forgotten", "method", *(SIGNALS[name] for name in names), "kNN", "time", "of training", "of its examples"
    )
    for row in rows:
        signals = row["signals"] or {}
        shown = [interval(signals.get(name)) for name in names]
        share = f"{100 * row['share of the time']:.1f} %"
        read = f"{100 * row['share of the examples']:.1f} %"
        lines.append(
            table_row(row["size"], row["method"], *shown, number(row["knn"]), f"{row['seconds']:.1f} s", share, read)
        )
    return lines


def interval(found: list[float] | None) -> str:
    """A pooled AUC with its interval."""
    return MISSING if found is None else "{:.3f} ({:.3f} to {:.3f})".format(*found)


def number(value: float | None) -> str:
    """A plain number, where there is one."""
    return MISSING if value is None else f"{value:.3f}"
