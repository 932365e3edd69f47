"""The tables of ``docs/against_official_code.md``: our losses and steps beside those of official code."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

BY = ("original", "official", "ours", "retrained")
"""Who unlearned, in the order of the rows."""


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
    lines += ["", made_by(result["machine"], "`python -m research.against_official --repos FOLDER`")]
    return [*lines, *alignment()] if (RESULTS / "official_alignment.json").exists() else lines


def alignment() -> list[str]:
    """Alignment calibration on its own setting: what each of the two codes leaves, and its time."""
    result = read_json(RESULTS / "official_alignment.json")
    rows = sorted(result["rows"], key=lambda row: (BY.index(row["by"]), row["seed"]))
    columns = [(part, name) for part in ("forget", "retain") for name in rows[0]["forget"]]
    titles = [f"{part}, {name.split('.')[0]}" for part, name in columns]
    lines = ["", "## Alignment calibration in its own setting", "", *table_head("", "seed", *titles, "kNN", "a step")]
    for row in rows:
        shown_at = (f"{row[part][name]:.3f}" for part, name in columns)
        step = row["seconds of a step"]
        seconds = MISSING if step is None or row["by"] == "retrained" else f"{step['median']:.2f} s"
        lines.append(table_row(row["by"], row["seed"], *shown_at, f"{row['knn']:.3f}", seconds))
    about = (
        "AUC of the forgotten and of the retained against never-trained examples, by the margin in each space, not "
        "calibrated. The official setting as far as a CPU allows: SimCLR at temperature 0.5 on a ResNet-18 (width 16), "
        "2 000 images of Fashion-MNIST, a tenth of them to forget, ten epochs of SGD at rate 0.06, batches of 256, "
        "α = γ = 1, β = 10."
    )
    command = "`python -m research.official_alignment make --repos FOLDER`"
    return [*lines, "", f"{about} {made_by(result['machine'], command)}"]


def shown(row: dict[str, Any], key: str) -> str:
    """A difference with two digits."""
    value = row.get(key)
    return MISSING if value is None else "0" if value == 0 else f"{value:.1e}"
