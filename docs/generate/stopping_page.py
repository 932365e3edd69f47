"""The tables of ``results/stopping.json``.

make docs
"""

from __future__ import annotations

import json
from typing import Any

from docs.generate.bench_pages import figure
from research.stopping import RESULT


def page() -> list[str]:
    """Every family, all of them together, and the regret of `auto`, as Markdown lines."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    lines: list[str] = []
    for family, rows in result["families"].items():
        head = ["n", "over", "residue", "lowest A1", "highest A1", "R fell", "distance", "kNN", "steps", "ended"]
        lines += [f"### {'all families' if family == 'all' else family}", "", "| | " + " | ".join(head) + " |"]
        lines.append("|---" * (len(head) + 1) + "|")
        for label, row in rows.items():
            ended = ", ".join(f"{count} {reason}" for reason, count in row["reasons"].items()) or "–"
            cells = [str(row["n"]), str(row["over"]), str(row["residue"])]
            cells += [figure(row[key]) for key in ("lowest", "highest", "fall", "distance", "knn")]
            lines.append(f"| {label} | " + " | ".join([*cells, figure(row["steps"], 0), ended]) + " |")
        if "auto" in rows:
            taken = ", ".join(f"{name} {count}" for name, count in rows["auto"]["chosen"].items())
            met = rows["auto"]["reached"]
            lines += ["", f"`auto` took: {taken}; by its own looks it met the bar in {met} of {rows['auto']['n']}."]
        lines.append("")
    return [*lines, *regret(result.get("regret")), made_by(result["machine"])]


def regret(found: dict[str, Any] | None) -> list[str]:
    """How much nearer the oracle's choice is than `auto`."""
    if not found:
        return []
    lines = ["### The regret of `auto`", "", f"Distance over the {found['worlds']} worlds where both were made:", ""]
    lines += ["| fixed for all worlds | distance |", "|---|---|"]
    for label, value in sorted(found["distance"].items(), key=lambda pair: pair[1]["mean"]):
        lines.append(f"| {label} | {figure(value)} |")
    to_fixed, to_each = found["to the best fixed"], found["to the best of each world"]
    return [
        *lines,
        "",
        f"`auto` minus the best fixed setting that the oracle would have picked for all ({found['best fixed']}): "
        f"{figure(to_fixed)}; minus the best in each world: {figure(to_each)}. Below 0: `auto` was nearer.",
        "",
    ]


def made_by(machine: dict[str, Any]) -> str:
    """The commands and the machine."""
    made = "`python -m research.stopping make` and `tables`"
    return f"Mean ± standard deviation over worlds. Made by {made}; {machine['cpu']}, torch {machine['torch']}."
