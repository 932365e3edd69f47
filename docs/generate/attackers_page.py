"""The tables of ``docs/results/attackers.md``: verdicts, signals, and what a stronger attacker changes."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

DELTA = 0.05
"""How far U-LiRA's AUC must lie from 1/2 to count as distinguished; the same δ as for the verdict."""
NAMES = {"original": "untouched"}
"""Names of rows that differ from their label."""


def page() -> list[str]:
    """The verdicts at every level, a table for each signal, and what changes between the levels, as Markdown lines."""
    result = read_json(RESULTS / "attackers.json")
    rows, count, sizes = result["rows"], result["pairs"], result["world"]["examples"]
    ceilings = result["ceilings"]
    few = next(iter(rows.values()))["A1"]["references"]
    names = list(next(iter(rows.values()))["A0"]["signals"])
    lines = [
        f"One world of `{result['world']['grid']}`, seed {result['world']['seed']}: F {sizes['forget']}, H "
        f"{sizes['holdout']}, R {sizes['retain']} examples. A0: the model alone. A1: {few} retrained references. A2: "
        f"{count} originals of other seeds, each unlearned as the row says, against {count} retrained models.",
        "",
        "### The verdicts",
        "",
        *table_head(
            "", "A0", f"A1, {few} references", f"{count} references", "A2: unlearned from retrained", "kNN lost"
        ),
    ]
    for label, row in rows.items():
        lost = row["A0"]["utility_drop"]
        cells = [row[level]["word"] for level in ("A0", "A1", "all references")]
        cells += [distinguished(row["A2"], names) if "A2" in row else "–", "–" if lost is None else f"{lost:.3f}"]
        lines.append(table_row(NAMES.get(label, label), *cells))
    lines += [
        "",
        "A2 by U-LiRA's AUC with the verdict's δ: *distinguished* if the 95 % interval lies above 0.55 on a margin, "
        "*not distinguished* if it lies within 0.45 to 0.55 on all, else *undecided*. In brackets the margins.",
    ]
    for name in names:
        lines += ["", f"### `{name}`", "", *signal_table(rows, name, few, count)]
    lines += [
        "",
        f"*zero*: one half of the retrained models against the other, both ways, so {count // 2} on each side; *half*: "
        "the row's own with as few. "
        f"Ceilings: ε of all F together {ceilings['ceiling.epsilon']:.2f}; of one example with {count} pairs "
        f"{ceilings['example epsilon']:.2f}; KLoM {ceilings['klom']:.2f} nats. "
        "Intervals: 95 %, over examples at A0 and A1, by jackknife over pairs at A2. "
        "*sure*: share of F with an attack that makes no mistake on so many pairs. "
        "*beyond*: share of F that stands out example by example against all references; 5 % by chance.",
        "",
        *numbers(result.get("counts")),
        "### What changes",
        "",
        *changes(rows, names),
    ]
    commands = f"`{result['made by']}` and `{result['machine']['command']}`"
    return [*lines, "", made_by(result["machine"], commands, "one thread per model")]


def numbers(counts: dict[str, Any] | None) -> list[str]:
    """The calibrated attack by number of references."""
    if counts is None:
        return []
    columns = list(next(iter(next(iter(counts["signals"].values())).values())))
    lines = ["### How many references", "", *table_head("", *columns)]
    for name, rows in counts["signals"].items():
        for label, row in rows.items():
            cells = [f"{row[count]['mean']:.3f} ± {row[count]['sd']:.3f}" for count in columns]
            lines.append(table_row(f"{NAMES.get(label, label)}, `{name}`", *cells))
    said = f"Calibrated AUC of F, mean ± standard deviation over {counts['draws']} draws from the retrained models."
    return [*lines, "", said, ""]


def signal_table(rows: dict[str, Any], name: str, few: int, count: int) -> list[str]:
    """Two tables for one margin: the AUC of every attack, and the results from pairs of models."""
    head = ["A0", f"A1 calibrated, {few}", f"LiRA, {few}", f"Bayes, {few}", f"RMIA, {few}", f"calibrated, {count}"]
    lines = table_head("", *head, "beyond")
    for label, row in rows.items():
        found, best = row["A1"]["findings"], row["all references"]["findings"]
        keys = [f"membership.{name}.{attack}.auc" for attack in ("calibrated", "lira", "bayes", "rmia")]
        cells = [ranged(row["A0"]["findings"].get(f"membership.{name}.auc"))]
        cells += [ranged(found.get(keys[0])), *(plain(found.get(key)) for key in keys[1:])]
        cells += [ranged(best.get(keys[0])), share(best.get(f"per_example.{name}.beyond"))]
        lines.append(table_row(NAMES.get(label, label), *cells))
    head = ["U-LiRA, AUC on F", "accuracy on F", "AUC on R", "forgetting score", "KLoM of F, nats", "sure"]
    lines += ["", *table_head("", *head)]
    start, zero = f"populations.{name}.", None
    for label, row in rows.items():
        if "A2" not in row:
            continue
        seen = row["A2"]
        zero = seen
        cells = [ranged(seen[start + key]) for key in ("ulira.auc", "ulira.accuracy", "ulira.retain.auc")]
        cells += [halved(seen[start + key]) for key in ("forgetting_score", "klom.forget")]
        lines.append(table_row(NAMES.get(label, label), *cells, share(seen[start + "sure"])))
    if zero:
        keys = ("ulira.auc", "ulira.accuracy", "ulira.retain.auc", "forgetting_score", "klom.forget")
        lines.append(table_row("zero", *(zero_of(zero[start + key]) for key in keys), MISSING))
    return lines


def distinguished(row: dict[str, Any], names: list[str]) -> str:
    """Whether U-LiRA distinguishes a method from retraining, over all margins."""
    intervals = {name: row[f"populations.{name}.ulira.auc"]["interval"] for name in names}
    above = [name for name, found in intervals.items() if found and found[0] > 0.5 + DELTA]
    if above:
        return f"distinguished ({', '.join(name.split('.')[0] for name in above)})"
    within = all(found and found[0] > 0.5 - DELTA and found[1] < 0.5 + DELTA for found in intervals.values())
    return "not distinguished" if within else "undecided"


def changes(rows: dict[str, Any], names: list[str]) -> list[str]:
    """The order of the methods at each level, and whose verdict changes."""
    methods = [label for label in rows if "A2" in rows[label] and label != "original"]

    def extent(label: str, level: str) -> float:
        row = rows[label]
        if level == "A2":
            return max(row["A2"][f"populations.{name}.ulira.auc"]["value"] for name in names)
        return max(abs(row[level]["signals"][name]["value"] - 0.5) for name in names)

    lines = ["Methods from the least to the most visible, by the larger of the two margins:", ""]
    for level, what in (
        ("A0", "|AUC - 0.5| of the raw score"),
        ("A1", "|AUC - 0.5| of the calibrated score"),
        ("A2", "U-LiRA's AUC"),
    ):
        order = sorted(methods, key=lambda label: extent(label, level))
        said = ", ".join(f"{label} {extent(label, level):.3f}" for label in order)
        lines.append(f"* {level}, {what}: {said}.")
    lines.append("")
    for label in methods:
        words = [rows[label][level]["word"] for level in ("A0", "A1", "all references")]
        last = distinguished(rows[label]["A2"], names)
        kept = "the same verdict at A0 and A1" if len(set(words)) == 1 else "another verdict with references"
        lines.append(f"* {label}: {' → '.join(words)}, then {last}: {kept}.")
    return lines


def ranged(row: dict[str, Any] | None) -> str:
    """A value with its interval."""
    if row is None or row["value"] is None:
        return "–"
    between = row["interval"]
    return plain(row) + ("" if between is None else f" ({between[0]:.3f} to {between[1]:.3f})")


def plain(row: dict[str, Any] | None) -> str:
    """A value."""
    return "–" if row is None or row["value"] is None else f"{row['value']:.3f}"


def halved(row: dict[str, Any]) -> str:
    """A value with its interval, and the same with half the models."""
    return ranged(row) + (f"; half {row['half']:.3f}" if "half" in row else "")


def zero_of(row: dict[str, Any]) -> str:
    """The same statistic for retrained models: the baseline."""
    return "–" if row["oracle"] is None else f"{row['oracle']:.3f}"


def share(row: dict[str, Any] | None) -> str:
    """A share in percent."""
    return "–" if row is None or row["value"] is None else f"{100 * row['value']:.1f} %"
