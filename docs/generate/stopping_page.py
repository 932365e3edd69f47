"""The tables of ``docs/results/stopping.md``: with and without early stopping, and the regret of `auto`."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import figure, made_by, table_head, table_row
from research.stopping import RESULT


def page() -> list[str]:
    """Every family, all of them together, and the regret of `auto`, as Markdown lines."""
    result = read_json(RESULT)
    lines: list[str] = []
    for family, rows in result["families"].items():
        head = ["n", "over", "residue", "lowest A1", "highest A1", "R fell", "distance", "kNN", "steps", "ended"]
        lines += [f"### {'all families' if family == 'all' else family}", "", *table_head("", *head)]
        for label, row in rows.items():
            ended = ", ".join(f"{count} {reason}" for reason, count in row["reasons"].items()) or "–"
            cells = [str(row["n"]), str(row["over"]), str(row["residue"])]
            cells += [figure(row[key]) for key in ("lowest", "highest", "fall", "distance", "knn")]
            lines.append(table_row(label, *cells, figure(row["steps"], 0), ended))
        if "auto" in rows:
            taken = ", ".join(f"{name} {count}" for name, count in rows["auto"]["chosen"].items())
            met = rows["auto"]["reached"]
            lines += [
                "",
                f"`auto` chose: {taken}; by its own checks it reached the goal in {met} of {rows['auto']['n']}.",
            ]
        lines.append("")
    commands = "`python -m research.stopping make` and `tables`"
    made = f"Mean ± standard deviation over worlds. {made_by(result['machine'], commands)}"
    return [*lines, *regret(result.get("regret")), made]


def regret(found: dict[str, Any] | None) -> list[str]:
    """How much nearer the oracle's choice is than `auto`."""
    if not found:
        return []
    lines = ["### The regret of `auto`", "", f"Distance over the {found['worlds']} worlds that have both:", ""]
    lines += [*table_head("fixed for all worlds", "distance")]
    for label, value in sorted(found["distance"].items(), key=lambda pair: pair[1]["mean"]):
        lines.append(table_row(label, figure(value)))
    to_fixed, to_each = found["to the best fixed"], found["to the best of each world"]
    return [
        *lines,
        "",
        f"`auto` minus the best fixed setting that the oracle would have picked for all ({found['best fixed']}): "
        f"{figure(to_fixed)}; minus the best in each world: {figure(to_each)}. Below 0: `auto` was closer.",
        "",
    ]
