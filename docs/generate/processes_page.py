"""The tables of ``docs/guides/several_processes.md``: one process against two, and images per second of both."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import RESULTS as SPEED
from benchmarks.machine import read_json
from docs.generate.markdown import made_by, spread, table_head, table_row
from research.paths import RESULTS

BUGS = {
    "local BatchNorm": "BatchNorm over own rows only",
    "negatives without gradient": "rows of others gathered without gradient",
    "gradients not averaged": "gradients not averaged",
}


def page() -> list[str]:
    """All tables, as Markdown lines."""
    return [*_differences(), "", *_speed()]


def _differences() -> list[str]:
    result = read_json(RESULTS / "processes.json")
    rows: dict[str, dict[str, float]] = result["rows"]
    lines = ["", "## Measured: two processes against one", ""]
    lines.append(
        f"The largest difference of any weight or statistic after {result['steps']} steps (methods: about as many), in "
        "float32, on batches that do not divide evenly. A small network with BatchNorm and smooth activations:"
    )
    for kind, title in (("objective", "objective"), ("method", "method, at its default rate")):
        lines += ["", *table_head(title, "largest difference")]
        lines += [table_row(f"`{name}`", _power(rows[f"{kind}/{name}"]["difference"])) for name in _names(rows, kind)]
    lines += [
        "",
        "`retrain` trains the ResNet-8 of its recipe. Where a network has a kink (ReLU) and a large rate, rounding "
        "grows from step to step, in one process as well. The same with a ResNet-8, and beside it what rounding alone "
        "does: ten times one process whose weights get other last bits after each step.",
        "",
        *table_head("objective", "two processes", "other last bits: median", "most"),
    ]
    for name in _names(rows, "resnet"):
        found = rows[f"resnet/{name}"]
        lines.append(table_row(f"`{name}`", *(_power(found[key]) for key in ("difference", "median", "most"))))
    planted: dict[str, dict[str, float]] = result["planted"]
    names = list(next(iter(planted.values())))
    lines += ["", "With a bug planted, the first table has:", "", *table_head("bug", *(f"`{name}`" for name in names))]
    lines += [table_row(BUGS[bug], *(_power(found[name]) for name in names)) for bug, found in planted.items()]
    return [*lines, "", made_by(result["machine"])]


def _speed() -> list[str]:
    result = read_json(SPEED / "processes.json")
    lines = [
        "## Measured: images per second",
        "",
        f"SimCLR, {result['images']}; {result['threads']} thread per process.",
        "",
    ]
    lines += table_head("processes", "images/s of all together")
    lines.append(table_row(1, spread(result["one"], 0)))
    lines.append(table_row(result["processes"], spread(result["several"], 0)))
    note = (
        f"Median (minimum to maximum) of {result['one']['n']} rounds; ratio {result['ratio']:.2f} on "
        f"{result['machine']['cores']} cores, at a load of {result['machine']['load']:g} by this and other work: on a "
        "busy machine, processes wait for cores and for each other."
    )
    return [*lines, "", f"{note} {made_by(result['machine'])}"]


def _names(rows: dict[str, Any], kind: str) -> list[str]:
    return sorted(name.split("/", 1)[1] for name in rows if name.startswith(f"{kind}/"))


def _power(value: float) -> str:
    """A number with one digit and its power of ten."""
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}·10<sup>{int(power)}</sup>" if value else "0"
