"""The tables of ``docs/results/every_size.md``: requests of every size over seeds, beside retrained models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, mean_and_range, table_head, table_row
from docs.generate.reference_bank_page import SIGNALS
from docs.generate.request_sizes_page import FAMILIES
from research.paths import RESULTS

Row = dict[str, Any]

METHODS = (
    "original", "retrain", "finetune", "alignment_calibration", "scrub", "salun", "margin_matching",
    "reference_matching",
)  # fmt: skip
"""In this order in every table."""
DECIDING = ("backbone.margin", "projector.margin", "logits.margin", "pair.margin", "learned")
TITLES = {**SIGNALS, "logits.margin": "margin, logits", "pair.margin": "margin, pair"}
"""Signals of every kind of model, each with its title."""
USEFUL = {"accuracy": "accuracy", "knn": "kNN", "probe": "probe", "recall": "recall"}
"""Measures of usefulness, each with its title; those that no model of a family has are left out."""
BOX = {"forgotten": 0.05, "retained": 0.03, "useful": 0.01, "time": 0.05}
"""The goal: how far F may be from 1/2 by any signal, how much R and usefulness may lose, and the share of the time."""
ROUNDING = 1e-9
LEAST_POOLED = 100
"""Of fewer forgotten examples in a world chance alone leaves the goal."""
SAID = (
    "Means over worlds, with the smallest and the largest. F: AUC of the forgotten against never-trained examples, "
    "pooled over the requests of a world and calibrated by the audit's half of a bank. Farthest: of the means of all "
    "signals, the one farthest from .5. R: what the retained lose by the signal in which they lose most, against the "
    "original. Accuracy, kNN, probe and recall (of a picture by its caption and the reverse): against a retrained "
    "model of the same world, in points. In the goal: worlds in which F is within .05 of .5 by every signal, R within"
    " .03 of the original, and the time at most 5 % of retraining's; all: in which usefulness is within a point of "
    "the retrained model as well, which is within chance for a thousand test examples. Time: processor seconds of a "
    "request over those of the original's training, alternating in one process (`python -m research.request_times`); "
    "of retrained models, and of families that are not timed yet, as it was while other processes ran. –: with fewer "
    "than a hundred forgotten examples in a world, chance alone would leave the goal."
)


def page() -> list[str]:
    """One table for each family, as Markdown lines."""
    result, lines = read_json(RESULTS / "every_size.json"), list[str]()
    luck = read_json(RESULTS / "luck_of_the_unseen.json")["rows"]
    for family, title in FAMILIES.items():
        rows = [row for row in result["rows"] if row["family"] == family]
        if rows:
            lines += [f"### {title[0].upper()}{title[1:]}", "", *table(rows), ""]
            lines += [unseen([row for row in luck if row["family"] == family]), ""]
    return [*lines, f"{SAID} {made_by(result['machine'], '`python -m research.every_size`')}", ""]


def table(rows: Sequence[Row]) -> list[str]:
    """One row for each size and method."""
    names = [name for name in DECIDING if any(name in row["forgotten"] for row in rows)]
    useful = [name for name in USEFUL if any(name in row["useful"] for row in rows)]
    lines = table_head(
        "forgotten", "method", "worlds", *(f"F, {TITLES[name]}" for name in names),
        "F, farthest", "R", *(title for name, title in USEFUL.items() if name in useful), "time", "examples",
        "F, R and time in the goal", "all",
    )  # fmt: skip
    for size in sorted({row["size"] for row in rows}):
        for method in METHODS:
            found = [row for row in rows if (row["size"], row["method"]) == (size, method)]
            if found:
                lines.append(describe(size, method, found, rows, names, useful))
    return lines


def unseen(rows: Sequence[Row]) -> str:
    """How V lies beside the audit's never-trained examples, world by world."""
    shown = (f"world {row['world']}: {', '.join(f'{value:+.2f}' for value in row['unseen'].values())}" for row in rows)
    spaces = ", ".join(name.removesuffix(".margin") for name in rows[0]["unseen"])
    return (
        "Luck of V, the 500 examples that methods compare with: how far its mean margin lies above that of the audit's "
        "never-trained examples in models of the bank, which saw neither, in standard deviations; a tenth is about .03 "
        f"of an AUC ({spaces}). {'; '.join(shown)}."
    )


def describe(
    size: int, method: str, found: Sequence[Row], rows: Sequence[Row], names: Sequence[str], useful: Sequence[str]
) -> str:
    """One line of a table."""

    def over(measure: Callable[[Row], float | None], digits: int = 3, factor: float = 1.0) -> str:
        known = [factor * value for row in found if (value := measure(row)) is not None]
        return mean_and_range(known, digits)

    tried = method not in {"original", "retrain"}
    inside = [holds for row in found if (holds := is_inside(row, rows)) is not None]
    return table_row(
        size, method, len(found), *(over(lambda row, name=name: gone(row, name)) for name in names),
        f"{farthest(found):.3f}", over(lambda row: lost(row, rows)),
        *(over(lambda row, name=name: behind(row, rows, name), 1, 100) for name in useful),
        over(share_of_time, 1, 100) + " %",
        over(lambda row: row["share of the examples"], 1, 100) + " %",
        *(f"{sum(held)} of {len(held)}" for held in zip(*inside, strict=True)) if inside and tried else (MISSING,) * 2,
    )  # fmt: skip


def gone(row: Row, name: str) -> float | None:
    """The AUC of the forgotten by one signal."""
    return row["forgotten"][name][0] if name in row["forgotten"] else None


def farthest(found: Sequence[Row]) -> float:
    """The mean AUC of the forgotten over some rows that is farthest from a half, of all signals."""
    means = (sum(row["forgotten"][name][0] for row in found) / len(found) for name in found[0]["forgotten"])
    return max(means, key=lambda mean: abs(mean - 0.5))


@cache
def time_shares() -> dict[tuple[str, str, int], float]:
    """Share of the original's processor time by family, method and size, where that was measured by itself."""
    path = RESULTS / "request_times.json"
    found = read_json(path)["rows"] if path.exists() else []
    return {(row["family"], one["method"], one["size"]): one["share"] for row in found for one in row["requests"]}


def share_of_time(row: Row) -> float:
    """The share of the original's time that a request takes; of a retrained model as it was while others ran."""
    known = time_shares().get((row["family"], row["method"], row["size"]))
    return float(row["share of the time"]) if known is None else known


def find(rows: Sequence[Row], world: int, method: str, size: int) -> Row | None:
    """One row of a world; a retrained model stands for the sizes next to its own."""
    wanted = (world, method, size if method != "retrain" else 100 if size <= 100 else 400)
    return next((row for row in rows if (row["world"], row["method"], row["size"]) == wanted), None)


def lost(row: Row, rows: Sequence[Row]) -> float | None:
    """How far the AUC of the retained has fallen, by the signal by which it fell most."""
    before = find(rows, row["world"], "original", row["size"])
    return None if before is None else largest_loss(before, row)


def largest_loss(before: Row, after: Row) -> float:
    """How far the AUC of the retained has fallen between two rows, by the signal by which it fell most."""
    return max(before["retained"][name] - value for name, value in after["retained"].items())


def behind(row: Row, rows: Sequence[Row], measure: str) -> float | None:
    """How much better than a retrained model's a measure of usefulness is; below 0: worse."""
    oracle = find(rows, row["world"], "retrain", row["size"])
    if oracle is None or measure not in row["useful"]:
        return None
    return row["useful"][measure] - oracle["useful"][measure]


def is_inside(row: Row, rows: Sequence[Row]) -> tuple[bool, bool] | None:
    """Whether F, R and the time of a row reach the goal, and whether all does; None if that cannot be told."""
    fallen, useful = lost(row, rows), [behind(row, rows, measure) for measure in row["useful"]]
    if fallen is None or any(value is None for value in useful) or row["size"] * row["requests"] < LEAST_POOLED:
        return None
    near = abs(farthest([row]) - 0.5) <= BOX["forgotten"] + ROUNDING
    first = near and fallen <= BOX["retained"] + ROUNDING and share_of_time(row) <= BOX["time"] + ROUNDING
    return first, first and all(value is not None and value >= -BOX["useful"] - ROUNDING for value in useful)
