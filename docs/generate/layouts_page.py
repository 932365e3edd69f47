"""The tables of ``docs/results/layouts.md`` and ``docs/results/foreign.md``: checkpoints of other libraries."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import RESULTS as SPEED_RESULTS
from benchmarks.machine import read_json
from docs.generate.markdown import MISSING, made_by, table_head, table_row
from research.paths import RESULTS

SHOWN_FINDINGS = (
    *(f"membership.{space}.margin.{kind}" for space in ("backbone", "projector") for kind in ("auc", "calibrated.auc")),
    "utility.knn",
    "utility.linear",
)
"""Findings that the page of the foreign run shows."""


def page() -> list[str]:
    """Tables of ``results/layouts.json`` and ``results/memory.json``."""
    result = read_json(RESULTS / "layouts.json")
    lines = ["## Read and written back, nothing unlearned", ""]
    lines += table_head("layout", "file", "tensors", "identical keys", "byte-equal tensors", "whole file byte-equal")
    for row in result["round_trips"]:
        marks = (yes(row[key]) for key in ("keys", "bytes"))
        whole = "yes" if row["file_bytes"] else "–"
        lines.append(table_row(row["layout"], row["file"], row["tensors"], *marks, whole))
    lines += ["", "A torch file is written again, so its archive may differ where its tensors do not.", ""]
    lines += ["## Unlearned, and loaded by its own library", ""]
    lines += table_head(
        "checkpoint", "loaded by", "largest difference of features", "largest feature", "moved by unlearning"
    )
    for row in result["features"]:
        sizes = (f"{row[key]:.2g}" for key in ("difference", "size", "moved"))
        lines.append(table_row(row["name"], f"`{row['loader']}`", *sizes))
    lines += [
        "",
        "16 random images; efface's features of the run against the library's features of the file written back.",
        "",
    ]
    lines += ["## Malicious and broken files", ""]
    lines += [*table_head("file", "command", "exit code", "message", "anything run")]
    for row in result["hostile"]:
        said = row["says"].replace("|", "∣") or "–"
        ran = "YES" if row["ran"] else "no"
        lines.append(table_row(row["file"], f"`{row['command']}`", row["exit"], said, ran))
    lines += ["", "Exit code 0: read, or unlearned and written back in its own precision, without a message."]
    return [*lines, "", made_by(result["machine"]), *memory_lines()]


def memory_lines() -> list[str]:
    """The line of ``results/memory.json``."""
    path = SPEED_RESULTS / "memory.json"
    if not path.exists():
        return []
    result = read_json(path)
    sizes = {key: result[key]["peak"] / 2**30 for key in ("unlearn", "check", "libraries")}
    return [
        "",
        "## Memory",
        "",
        f"A ViT-L/16 of {result['parameters'] / 1e6:.0f} million parameters ({result['weights'] / 2**30:.2f} GiB in "
        f"float32), fine-tuned for {result['steps']} steps on 32x32 images: {sizes['unlearn']:.2f} GiB at the peak, "
        f"{result['unlearn']['times']:.2f} times the weights; with the check against random networks "
        f"{sizes['check']:.2f} GiB, {result['check']['times']:.2f} times. Interpreter and libraries are included "
        f"(alone: {sizes['libraries']:.2f} GiB).",
        "",
        made_by(result["machine"]),
    ]


def yes(value: bool) -> str:
    """A mark in a table."""
    return "yes" if value else "NO"


def foreign_page() -> list[str]:
    """Commands, verdicts and figures of ``results/foreign.json``."""
    result = read_json(RESULTS / "foreign.json")
    lines = ["## What lightly trained", "", *table_head("model", "steps", "last loss")]
    lines += [table_row(name, one["steps"], one["last_loss"]) for name, one in result["trained"].items()]
    lines += [
        "",
        "## What efface found in it",
        "",
        "```",
        *command(result["inspect"]),
        *shown(result["inspect"]),
        "```",
    ]
    for name in (key for key in result if isinstance(result[key], dict) and "verdict" in result[key]):
        lines += ["", f"## {name}", "", *outcome(result[name])]
    return [*lines, "", made_by(result["machine"])]


def command(done: dict[str, Any]) -> list[str]:
    """The command line, as Markdown lines."""
    words = [f"'{word}'" if " " in word or "{" in word else word for word in done["words"]]
    return [f"$ efface {' '.join(words)}"]


def shown(done: dict[str, Any]) -> list[str]:
    """The output of a command, as lines."""
    return done["out"].rstrip().splitlines()


def outcome(one: dict[str, Any]) -> list[str]:
    """Commands, verdict and figures of one method."""
    verdict = one["verdict"]
    lines = ["```", *command(one["unlearn"]), *command(one["audit"]), "```", ""]
    lines += [f"Exit code {one['audit']['exit']}, **{verdict['word']}** ({verdict['level']}):", verdict["sentence"], ""]
    lines += [*table_head("measure", "before", "after", "references")]
    for name, found in verdict["findings"].items():
        if not name.startswith(SHOWN_FINDINGS):
            continue
        values = (found[key] for key in ("original", "value", "oracle"))
        lines.append(table_row(name, *(MISSING if value is None else f"{value:.3f}" for value in values)))
    lines += ["", *(f"* {name}: {claim}." for name, claim in verdict["claims"].items())]
    return [*lines, *(f"* {part}: {done}." for part, done in verdict["purged"].items())]
