"""The tables of ``docs/new_audits.md``: what the audits that decide no verdict say of models whose story is known."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

ENCODER = {
    "nonmember_share.signals": "non-member share",
    "relative_distance.position": "position",
    "oracle_direction.signals.residual": "residual",
    "before_after.forget.auc": "F, both models",
    "before_after.requested.auc": "who asked",
    "before_after.retain.gain": "gain on R",
}
CLASSIFIER = {
    "relative_distance.position": "position",
    "neighbor_class.detection": "neighbor detection",
    "neighbor_class.divergence": "divergence",
    "neighbor_class.members": "members",
    "before_after.requested.auc": "who asked",
}
TITLES = {
    "encoder": "SimCLR on digits, 100 of 600 examples, drawn at random",
    "memorized": "The same originals, the 60 examples that are memorized most",
    "classifier": "A classifier of digits, one class",
}


def page() -> list[str]:
    """One table for each world, and one of distances, as Markdown lines."""
    result = read_json(RESULTS / "new_audits.json")
    lines: list[str] = []
    for world, title in TITLES.items():
        rows = [row for row in result["rows"] if row["world"] == world]
        if rows:
            shown = CLASSIFIER if world == "classifier" else ENCODER
            lines += [f"### {title}", "", *audits_table(rows, shown), ""]
    if result["units"]:
        lines += [
            "### Scaled units, and margins that do not depend on the scale",
            "",
            *units_table(result["units"]),
            "",
        ]
    lines += ["### How far a model is from the original", "", *distances_table(result["rows"]), ""]
    return [*lines, made_by(result, "`python -m research.new_audits make` and `table`")]


def by_model(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by model; the retrained ones together."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found["retrained" if row["model"].startswith("retrained") else row["model"]].append(row)
    first = [name for name in ("original", "retrained") if name in found]
    return {name: found[name] for name in (*first, *sorted(set(found) - set(first)))}


def audits_table(rows: list[dict[str, Any]], shown: dict[str, str]) -> list[str]:
    """One row for each model: the word of the verdict, and each number, with its range where there are several."""
    lines = table_head("model", "n", "verdict", *shown.values())
    for name, found in by_model(rows).items():
        words = ", ".join(sorted({row["verdict"] for row in found}))
        cells = [ranged([row["findings"].get(key, {}).get("value") for row in found]) for key in shown]
        lines.append(table_row(name, len(found), words, *cells))
    return lines


def ranged(values: list[float | None]) -> str:
    """Mean (least to most), or the single value."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    mean = sum(known) / len(known)
    missing = f", {len(values) - len(known)} without" if len(known) < len(values) else ""
    return f"{mean:.2f}" + (f" ({min(known):.2f} to {max(known):.2f}{missing})" if len(values) > 1 else "")


def units_table(rows: list[dict[str, Any]]) -> list[str]:
    """AUC of F against the holdout, by space and by what the units were divided by."""
    lines = table_head("space", "units", "model", "A0", "A1")
    for space, units in sorted({(row["space"], row["units"]) for row in rows}):
        found = [row for row in rows if (row["space"], row["units"]) == (space, units)]
        for name, same in by_model(found).items():
            lines.append(
                table_row(space, units, name, *(ranged([row[level] for row in same]) for level in ("A0", "A1")))
            )
    return lines


def distances_table(rows: list[dict[str, Any]]) -> list[str]:
    """Distance of weights, and of features up to order, rotation and scale, of each kind of model to its original."""
    lines = table_head("world", "model", "weights", "features")
    for world in TITLES:
        for name, found in by_model([row for row in rows if row["world"] == world]).items():
            if name != "original":
                cells = [ranged([row["distance"][key] for row in found]) for key in ("weights", "features")]
                lines.append(table_row(world, name, *cells))
    return lines
