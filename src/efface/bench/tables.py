"""Turn judgments into rows, rank the methods, and write CSV and JSON files. numpy only."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.files import write_text

RESULTS, CELLS, HEADLINE_FINDINGS, RANKING = "results.json", "cells.csv", "findings.csv", "ranking.csv"
USEFUL = ("utility.accuracy.test", "utility.knn20.test", "utility.effective_rank")
"""Utility measures in order of preference; the first one that was measured is used."""
ROUNDING = 1e-12
"""Relative standard deviation below which values count as equal up to rounding."""
VERDICT_ORDER = (
    "removed", "validated", "residue", "over-forgotten", "procedure leaves residue", "procedure over-forgets",
    "removed, utility lost", "validated, utility lost", "inconclusive",
)  # fmt: skip
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell starts that a spreadsheet takes for a formula."""
Row = Mapping[str, Any]


def headline_numbers(judged: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one model for the tables and the page.

    Args:
        judged: Outcome of the judgment: ``findings``, ``verdict``, ``cost`` and ``choice``.

    """
    by_name = {one["name"]: one for one in judged["findings"]}
    verdict, cost = judged["verdict"], judged["cost"]
    gap = by_name.get("oracle_gap.average", {})
    useful = next((name for name in USEFUL if name in by_name), None)
    measured = by_name.get(useful, {}) if useful else {}
    share = {what: by_name.get(f"oracle_gap.cost.{what}", {}).get("value") for what in ("steps", "examples", "seconds")}
    return {
        "verdict": verdict["word"],
        "level": verdict["level"],
        "gap": gap.get("value"),
        "gap_original": gap.get("original"),
        "gap_floor": gap.get("oracle"),
        "utility_of": useful,
        "utility": measured.get("value"),
        "utility_original": measured.get("original"),
        "utility_oracle": measured.get("oracle"),
        "signals": {one["signal"]: _signal(one, by_name) for one in verdict["signals"]},
        "counts": next((one["n"] for one in judged["findings"] if one["name"].startswith("membership.")), None),
        "leak": judged["choice"]["leak"],
        "drop": judged["choice"]["drop"],
        "utility_valid": judged["choice"]["utility"],
        "steps": cost["steps"],
        "examples": cost["examples"],
        "seconds": cost["seconds"],
        "share": share,
    }


def _signal(one: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of one prespecified signal: the verdict on it, the raw AUC, and the AUC of retained examples."""
    raw = by_name.get(f"membership.{one['signal']}.auc", {})
    retained = by_name.get(f"collateral.{one['signal']}.auc", {})
    return {
        "auc": one["value"],
        "low": one["low"],
        "high": one["high"],
        "word": one["word"],
        "power": one["power"][0],
        "powered": one["powered"],
        "raw": raw.get("value"),
        "raw_oracle": raw.get("oracle"),
        "retained": retained.get("value"),
        "retained_original": retained.get("original"),
        "retained_oracle": retained.get("oracle"),
    }


def mean_and_spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (None for one value) and number of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    if deviation is not None and deviation < ROUNDING * max(abs(value) for value in known):
        deviation = 0.0
    return {"mean": float(np.mean(known)), "sd": deviation, "n": len(known)}


def rank_methods(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rank the methods of each family and forget set by mean average gap on the reporting seeds.

    Args:
        results: ``families``, ``rows`` and ``picks`` of the results.

    Returns:
        One entry per family and forget set, with the reference models and the methods, best first. Methods without
        a gap come last.

    """
    made: list[dict[str, Any]] = []
    for family, facts in results["families"].items():
        for forget in facts["forget"]:
            rows = [
                row
                for row in results["rows"]
                if (row["family"], row["forget"], row["role"]) == (family, forget, "reporting")
            ]
            picks = [p for p in results["picks"] if (p["family"], p["forget"]) == (family, forget)]
            lines = [_line(rows, pick, facts["methods"][pick["label"]]) for pick in picks]
            lines.sort(key=lambda line: (line["gap"] is None, line["gap"] and line["gap"]["mean"], line["label"]))
            oracles = [row for row in rows if row["kind"] == "oracle"]
            made.append(
                {
                    "family": family,
                    "forget": forget,
                    "floor": mean_and_spread(row.get("gap") for row in oracles),
                    "original": _summary([row for row in rows if row["kind"] == "original"]),
                    "oracle": _summary(oracles),
                    "powered": _powered(rows),
                    "methods": lines,
                }
            )
    return made


def _line(rows: Sequence[Row], pick: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """One method: the setting selected without the oracle, and the one that the oracle would select."""
    mine = [row for row in rows if row["kind"] == "method" and row["label"] == pick["label"]]
    chosen = [row for row in mine if row["chosen"]]
    line = {"label": pick["label"], "method": entry["method"], "compared": len(entry["settings"])}
    line |= {"setting": pick["chosen"], "by_oracle": pick["by_oracle"]}
    picked = _summary([row for row in mine if row["by_oracle"]]) if pick["by_oracle"] is not None else None
    return line | _summary(chosen) | {"oracle_picked": picked}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and spread over seeds of every number, and the count of each verdict."""
    finished = [row for row in rows if row["status"] == "done"]
    names = list(dict.fromkeys(name for row in finished for name in row["signals"]))
    keys = ("auc", "raw", "retained", "retained_oracle", "power")
    return {
        "n": len(rows),
        "errors": [{"seed": row["seed"], "error": row["error"]} for row in rows if row["status"] != "done"],
        "verdicts": {
            word: count for word in VERDICT_ORDER if (count := sum(row["verdict"] == word for row in finished))
        },
        "levels": sorted({row["level"] for row in finished}),
        "gap": mean_and_spread(row["gap"] for row in finished),
        "utility_of": next((row["utility_of"] for row in finished), None),
        "utility": mean_and_spread(row["utility"] for row in finished),
        "seconds": mean_and_spread(row["seconds"] for row in finished),
        "steps": mean_and_spread(row["steps"] for row in finished),
        "share": {
            what: mean_and_spread(row["share"][what] for row in finished) for what in ("steps", "examples", "seconds")
        },
        "signals": {
            name: {
                key: mean_and_spread(row["signals"][name][key] for row in finished if name in row["signals"])
                for key in keys
            }
            for name in names
        },
    }


def _powered(rows: Sequence[Row]) -> dict[str, tuple[int, int]]:
    """For each signal, the number of originals in which it detects the forget set, and the number of originals."""
    counts: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row["kind"] == "original" and row["status"] == "done":
            for name, one in row["signals"].items():
                powered, total = counts.get(name, (0, 0))
                counts[name] = (powered + bool(one["powered"]), total + 1)
    return counts


# ---- files ----


def write_tables(home: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json`` (everything), ``cells.csv``, ``findings.csv`` and ``ranking.csv``."""
    write_text(home / RESULTS, json.dumps(results, ensure_ascii=False) + "\n")
    write_text(home / CELLS, _csv([_flat(row) for row in results["rows"]]))
    write_text(home / HEADLINE_FINDINGS, _csv(_findings(results["rows"])))
    lines = [
        {"family": world["family"], "forget": world["forget"], **_flat(line)}
        for world in results["ranking"]
        for line in (
            {"label": "original", **world["original"]},
            {"label": "oracle", **world["oracle"]},
            *world["methods"],
        )
    ]
    write_text(home / RANKING, _csv(lines))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted columns; lists and settings become JSON."""
    flat: dict[str, Any] = {}
    for key, one in value.items():
        if key in ("findings", "curves"):
            continue
        if isinstance(one, Mapping) and key != "settings":
            flat |= _flat(one, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(one, ensure_ascii=False) if isinstance(one, (list, dict)) else one
    return flat


def _findings(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One line per model and finding."""
    identity = ("family", "forget", "seed", "role", "kind", "label", "setting")
    return [
        {key: row[key] for key in identity}
        | {key: one[key] for key in ("name", "value", "original", "oracle", "better", "unit")}
        | {"low": (one["interval"] or (None, None))[0], "high": (one["interval"] or (None, None))[1]}
        | {"n": " ".join(str(number) for number in one["n"])}
        for row in rows
        for one in row.get("findings", ())
    ]


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Write lines as CSV with the union of their columns, in order of first appearance."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _quote_formula(value) for key, value in line.items()} for line in lines)
    return text.getvalue()


def _quote_formula(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula, with an apostrophe before it; numbers stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
