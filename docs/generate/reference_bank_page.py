"""The table of ``docs/reference_bank.md``: what rehearsals show of several procedures, on every signal."""

from __future__ import annotations

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

SIGNALS = {
    "backbone.margin": "margin, backbone",
    "projector.margin": "margin, projector",
    "backbone.alignment": "alignment, backbone",
    "projector.alignment": "alignment, projector",
    "backbone.norm": "norm, backbone",
    "projector.norm": "norm, projector",
    "learned": "learned",
}


def page() -> list[str]:
    """One row for each method, as Markdown lines."""
    result = read_json(RESULTS / "procedures.json")
    lines = ["### Procedures compared by their rehearsals", "", *table_head("method", "requests", *SIGNALS.values())]
    for row in result["rows"]:
        shown = (MISSING if name not in row else "{:.3f} ({:.3f} to {:.3f})".format(*row[name]) for name in SIGNALS)
        lines.append(table_row(row["method"], f"{row['requests']} × {row['kind'].split()[0]}", *shown))
    said = "AUC of the rehearsed examples against never-trained ones, 90 % interval; calibrated by a reference bank."
    return [*lines, "", f"{said} {made_by(result, '`python -m research.procedures`')}"]
