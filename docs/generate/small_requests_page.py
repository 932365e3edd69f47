"""The table of ``docs/small_requests.md``: what can be told of the few forgotten examples, pooled over requests."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS


def page() -> list[str]:
    """One row for each size of request and method, as Markdown lines."""
    result = read_json(RESULTS / "small_requests.json")
    parts = ["backbone.margin.forget", "projector.margin.forget", "backbone.margin.retain", "projector.margin.retain"]
    titles = ["F, backbone", "F, projector", "R, backbone", "R, projector"]
    lines = table_head("examples per request", "method", "requests", *titles)
    for row in result["rows"]:
        lines.append(table_row(row["k"], row["name"], row["requests"], *(estimate(row[part]) for part in parts)))
    made = made_by(result, "`python -m research.small_requests make` and `table`")
    return [*lines, "", f"Mean placement ± standard error over requests. {made}"]


def estimate(value: dict[str, Any]) -> str:
    """Mean ± standard error over requests."""
    if value["mean"] is None:
        return MISSING
    return f"{value['mean']:.3f}" + ("" if value["error"] is None else f" ± {value['error']:.3f}")
