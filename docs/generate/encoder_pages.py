"""The tables of ``docs/results/gradient_constraint.md`` and ``docs/results/emoji.md``."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, figure, made_by, table_head, table_row
from research.paths import RESULTS

EMOJI = {
    "pair.margin.a1": "F, pair A1",
    "pair.margin.a0": "F, pair A0",
    "pair.similarity.a0": "F, cosine A0",
    "backbone.margin.a1": "F, backbone A1",
    "pair.margin.retained": "R, pair",
    "recall1.forget": "recall@1 F",
    "recall1.retain": "recall@1 R",
    "recall1.test": "recall@1 test",
    "zero_shot": "zero-shot",
    "knn": "kNN",
    "forget_score": "FS",
    "average_gap": "average gap",
    "examples": "examples",
}
"""Columns of the emoji tables."""


def constraint_page() -> list[str]:
    """Tables of ``results/gradient_constraint.json``."""
    result = read_json(RESULTS / "gradient_constraint.json")
    lines = []
    for family, stages in result["families"].items():
        for stage, rows in stages.items():
            if rows["original"]["n"]:
                seeds = ", ".join(map(str, result[f"{stage}_seeds"]))
                lines += [f"### {family}, {stage} seeds {seeds}", "", *constraint_table(rows), ""]
    return [*lines, made_by(result["machine"], note="one thread per model")]


def constraint_table(rows: dict[str, Any]) -> list[str]:
    """One family's table: membership of F at A1 (A0), of R, utility, gap, steps."""
    signals = [key for key in rows["original"] if "." in key]
    head = [f"F, {s} A1 (A0)" for s in signals] + [f"R, {s}" for s in signals]
    lines = table_head("", "n", *head, "kNN", "average gap", "steps")
    for label, row in rows.items():
        if not row["n"] or signals[0] not in row:
            lines.append(table_row(label, row["n"], *[MISSING] * (len(head) + 3)))
            continue
        cells = [f"{figure(row[s]['a1'])} ({figure(row[s]['a0'])})" for s in signals]
        cells += [figure(row[s]["retained"]) for s in signals]
        cells += [figure(row["knn"]), figure(row["average_gap"])]
        share = row["share_of_steps"]
        cells.append("–" if share is None else f"{100 * share['mean']:.1f} %")
        lines.append(table_row(label, row["n"], *cells))
    return lines


def emoji_page() -> list[str]:
    """Tables of ``results/emoji.json``."""
    result = read_json(RESULTS / "emoji.json")
    tables = {f"{kind}, reporting seeds": rows for kind, rows in result["reporting"].items()}
    tables |= {f"{kind}, selection seed": rows for kind, rows in result["selection"].items()}
    lines = []
    for title, rows in tables.items():
        seeds = result["selection_seeds" if "selection" in title else "reporting_seeds"]
        lines += [f"### {title} {', '.join(map(str, seeds))}", ""]
        lines += [*table_head("", "n", *EMOJI.values(), "verdicts")]
        for label, row in rows.items():
            cells = [figure(row.get(key)) for key in EMOJI]
            counted = {word: row["verdicts"].count(word) for word in dict.fromkeys(row["verdicts"])}
            said = ", ".join(f"{word} {count}" for word, count in counted.items()) or "; ".join(row["errors"]) or "–"
            lines.append(table_row(label, row["n"], *cells, said))
        lines.append("")
    return [*lines, made_by(result["machine"], note="one thread")]
