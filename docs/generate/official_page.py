"""The tables of ``docs/against_official_code.md``: our losses and steps beside those of official code."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS


def page() -> list[str]:
    """One row for each comparison, and the defaults side by side, as Markdown lines."""
    result = read_json(RESULTS / "against_official.json")
    lines = ["## Objectives", "", *table_head("objective", "against", "loss", "gradient", "")]
    lines += [
        table_row(row["name"], row["against"], shown(row, "loss"), shown(row, "gradient"), row["note"])
        for row in result["rows"]
        if row["kind"] == "objective"
    ]
    lines += ["", "## Methods", ""]
    lines += table_head("method", "official code", "what is compared", "loss", "gradient", "step", "")
    for row in result["rows"]:
        if row["kind"] == "method":
            what = row["what"]
            if "shares" in row:
                what += f": ours {row['shares']['ours']:.3f}, official {row['shares']['official']:.3f}"
            numbers = (shown(row, key) for key in ("loss", "gradient", "step"))
            lines.append(table_row(row["name"], row["against"], what.replace("|", "\\|"), *numbers,
                                   row["note"].replace("|", "\\|")))  # fmt: skip
    lines += ["", "## Defaults", "", *table_head("method", "setting", "ours", "official")]
    for name, table in result["defaults"].items():
        for row in table:
            ours = "by the original" if row["ours"] is None else f"{row['ours']:g}"
            official = MISSING if row["official"] is None else f"{row['official']:g}"
            lines.append(table_row(name, f"`{row['setting']}`", ours, official))
    if result["not there"]:
        lines += ["", f"Not compared, because the repository was not there: {', '.join(result['not there'])}."]
    return [*lines, "", made_by(result["machine"], "`python -m research.against_official --repos FOLDER`")]


def shown(row: dict[str, Any], key: str) -> str:
    """A difference with two digits."""
    value = row.get(key)
    return MISSING if value is None else "0" if value == 0 else f"{value:.1e}"
