"""The tables of ``docs/results/small_requests.md``: what can be told of few examples, and what a request costs."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS


def page() -> list[str]:
    """What can be told, one row for each size of request and method, and what a request costs, as Markdown lines."""
    result = read_json(RESULTS / "small_requests.json")
    parts = ["backbone.margin.forget", "projector.margin.forget", "backbone.margin.retain", "projector.margin.retain"]
    titles = ["F, backbone", "F, projector", "R, backbone", "R, projector", "steps", "examples"]
    lines = ["### What can be told", "", *table_head("examples per request", "method", "requests", *titles)]
    for row in result["rows"]:
        counted = row["name"] != "original" and "steps" in row
        cost = [f"{row[key]:,.0f}".replace(",", " ") if counted else MISSING for key in ("steps", "examples")]
        told = (estimate(row[part]) for part in parts)
        lines.append(table_row(row["k"], row["name"], row["requests"], *told, *cost))
    made = made_by(result, "`python -m research.small_requests make` and `table`")
    lines += ["", f"Mean placement ± standard error over requests; steps and examples are means. {made}", ""]
    return [*lines, *paces(), *gaps(), *costs()]


def paces() -> list[str]:
    """What the forgotten and the retained are at each pace, one row for each family and method."""
    result, names = read_json(RESULTS / "step_rates.json"), ("backbone.margin", "projector.margin", "learned")
    shown = ("backbone", "projector", "learned")
    titles = (*(f"F, {name}" for name in shown), *(f"R, {name}" for name in shown), "seconds")
    lines = ["### How fast", "", *table_head("original", "method", "pace", *titles)]
    for row in result["rows"]:
        forgotten = ("{:.3f} ({:.3f} to {:.3f})".format(*row["forgotten"][name]) for name in names)
        retained = (f"{row['retained'][name]:.3f}" for name in names)
        pace = MISSING if row["pace"] == "before" else row["pace"]
        lines.append(table_row(row["family"], row["method"], pace, *forgotten, *retained, f"{row['seconds']:.1f}"))
    said = (
        "One world of each family: ten requests of 100 of 1 000 digits, twelve of 20 of 2 000 images of Fashion-MNIST. "
        "AUC against never-trained examples, pooled, with its 90 % interval, calibrated by a reference bank. One more "
        "step for every 8 examples. Seconds of one request, one thread."
    )
    return [*lines, "", f"{said} {made_by(result['machine'], '`python -m research.step_rates`')}", ""]


def gaps() -> list[str]:
    """How far from unseen examples the forgotten ones end, one row for each original and settings."""
    result, names = read_json(RESULTS / "unseen_gap.json"), ("backbone.margin", "projector.margin")
    titles = ("backbone", "projector")
    lines = ["### Where it ends", "", *table_head("original", "seed", "forgotten", "settings", "requests", *titles)]
    for row in sorted(result["rows"], key=lambda row: (row["family"], row["seed"], row["size"], row["settings"])):
        ends = ("{:.3f} ± {:.3f}".format(*row["gap"][name]) for name in names)
        setting = MISSING if row["settings"] == "before" else row["settings"] + " *" * ("earlier" in row)
        lines.append(table_row(row["family"], row["seed"], row["size"], setting, row["requests"], *ends))
    said = (
        "Mean margin of the forgotten less that of the unseen examples V, in standard deviations of never-trained "
        "examples, in views that no step saw: mean over requests and their standard deviation. –: the original; *: an "
        "earlier form of the method, which no settings give any more. A tenth is about .03 of an AUC. Of V there are "
        "500 pictures of Fashion-MNIST, and 300 digits at seed 100, 1 000 at the others."
    )
    return [*lines, "", f"{said} {made_by(result['machine'], '`python -m research.unseen_gap`')}", ""]


def costs() -> list[str]:
    """What a request costs by its size and that of the data, counted."""
    result = read_json(SPEED / "request_cost.json")
    titles = ["steps", "images with gradient", "without", "examples of R read", "of V", "plain steps", "of retraining"]
    lines = ["### What a request costs", "", *table_head("forgotten", "other examples", *titles)]
    for row in result["rows"]:
        counts = [row["forget"], row["others"], row["steps"], row["images with gradient"], row["images without"]]
        counts += [row["read"]["retain"], row["read"]["valid"]]
        share = f"{100 * row['share of retraining']:.2g} %"
        shown = (f"{count:,}".replace(",", " ") for count in counts)
        lines.append(table_row(*shown, f"{row['plain passes']:.1f}", share))
    said = (
        "*plain steps*: the work in plain training steps on 256 images, a backward pass counting as two forward ones."
    )
    return [*lines, "", f"{said} {made_by(result['machine'])}"]


def estimate(value: dict[str, Any]) -> str:
    """Mean ± standard error over requests."""
    if value["mean"] is None:
        return MISSING
    return f"{value['mean']:.3f}" + ("" if value["error"] is None else f" ± {value['error']:.3f}")
