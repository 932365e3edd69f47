"""The table of ``docs/attacks_on_us.md``: what is said of procedures that cheat, where rehearsals judge them."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import made_by, table_head, table_row
from docs.generate.request_sizes_page import interval
from research.paths import RESULTS

from efface.auditing.validation import BLOCKING

ORDER = (
    "retrain", "margin_matching", "untouched", "trained on the holdout", "one model that knows everything",
    "lowers the margin alone", "shakes all weights",
)  # fmt: skip
HONEST = ORDER[:2]


def page() -> list[str]:
    """One row for each procedure and world, as Markdown lines; nothing before it was measured."""
    if not (RESULTS / "cheats.json").exists():
        return []
    result = read_json(RESULTS / "cheats.json")
    rows: list[dict[str, Any]] = sorted(result["rows"], key=lambda row: (ORDER.index(row["by"]), row["world"]))
    names = list(rows[0]["pooled"])
    lines = [
        "### Procedures that cheat, rehearsed",
        "",
        *table_head("procedure", "world", *names, "verdict", "because"),
    ]
    for row in rows:
        shown = [interval(row["pooled"].get(name)) for name in names]
        own = [one for one in row["controls"] if one.split()[0] in BLOCKING]
        failed = [one for one in (*own, *row["controls of the rehearsals"]) if "(failed)" in one]
        why = ", ".join(dict.fromkeys(one.removesuffix(" (failed)") for one in failed))
        title = f"{row['by']}{' (no cheat)' if row['by'] in HONEST else ''}"
        lines.append(table_row(title, row["world"], *shown, row["word"], why))
    about = (
        "Each cheat answers one request of 50 examples and 16 rehearsed ones, under the name of a fine-tuning, on the "
        "demo's kind of original. AUC of the rehearsed examples with its 90 % interval, calibrated by a bank of eight. "
        "Because: failed controls of the rehearsals, and those of the request itself that do not depend on its size."
    )
    return [*lines, "", f"{about} {made_by(result['machine'], '`python -m research.cheats`')}"]
