"""The tables of ``docs/results/speed.md``: pretraining, audit and command line, timed by ``benchmarks.throughput``."""

from __future__ import annotations

from typing import Any

from benchmarks.machine import RESULTS, read_json
from docs.generate.markdown import made_by, spread, table_head, table_row

SIDES = {
    "efface bfloat16": "efface, bfloat16 autocast",
    "efface float32": "efface, float32",
    "lightly bfloat16": "lightly, bfloat16 autocast",
    "lightly float32": "lightly, as its examples have it",
    "bare bfloat16": "the network's passes alone, bfloat16 autocast",
    "bare float32": "the network's passes alone, float32",
}


def page() -> list[str]:
    """Pretraining against lightly, the audit, and what is done in a moment, as Markdown lines."""
    result = read_json(RESULTS / "throughput.json")
    lines: list[str] = []
    for name in ("pretraining gray", "pretraining color"):
        found = result[name]
        lines += [f"### SimCLR pretraining, {found['images']}", ""]
        lines += table_head("", "images/s", "times lightly's float32")
        base = found["lightly float32"]["median"]
        for side, said in SIDES.items():
            if side in found:
                rate = found[side]["median"] / base
                chosen = " (the default here)" if side == found["default"] else ""
                lines.append(table_row(f"{said}{chosen}", spread(found[side], 0), f"{rate:.2f}"))
        share = {key: 100 * value for key, value in found["augmentation_share_of_step"].items() if key != "n"}
        of_bare = f"The default's rate is {100 * found['share of the bare network']:.0f} % of the network's own."
        lines += ["", f"{of_bare} Augmentation's share of its step: {spread(share | {'n': 0}, 1)} %.", ""]
    lines += _steps(result)
    lines += _method_steps()
    audit = result["audit"]
    lines += ["### The rest", "", *table_head("", "seconds")]
    observed = "observe one model: 1 000 forgotten, retained, unseen each"
    lines.append(table_row(observed, spread(audit["observe_one_model"])))
    lines.append(table_row("judge two models that were observed", spread(audit["judge"])))
    lines.append(table_row("every threshold of 20 000 scores", spread(result["threshold_sweep_20000"], 4)))
    lines.append(table_row("`efface --help`", spread(result["help"])))
    command = f"`OMP_PROC_BIND=true {result['machine']['command']}`"
    made = made_by(result["machine"], command, f"{result['threads']} threads")
    return [*lines, "", f"Median (minimum to maximum) of {result['help']['n']} rounds. {made}"]


def _steps(result: dict[str, Any]) -> list[str]:
    """A step at 224 pixels against the bare passes of the network, where it was measured."""
    found = {name.removeprefix("step "): one for name, one in result.items() if name.startswith("step ")}
    if not found:
        return []
    lines = ["### A SimCLR step at 224 pixels", ""]
    lines += table_head("network", "seconds of a step", "of forward and backward alone", "ratio")
    rows = ([f"`{name}`", *(spread(one[part]) for part in ("step", "bare", "ratio"))] for name, one in found.items())
    first = next(iter(found.values()))
    how = "bfloat16 autocast" if first["bf16"] else "float32"
    return [*lines, *(table_row(*row) for row in rows), "", f"{first['batch']} pictures, two views of each; {how}.", ""]


def _method_steps() -> list[str]:
    """A step of each unlearning method against the bare passes that it needs."""
    result = read_json(RESULTS / "method_steps.json")
    lines = ["### A step of an unlearning method", ""]
    lines += table_head(
        "method", "images with gradient", "without", "seconds of a step", "of its passes alone", "ratio"
    )
    for name, row in result["rows"].items():
        counts = (f"{row[kind]:.0f}" for kind in ("with gradient", "without"))
        lines.append(table_row(f"`{name}`", *counts, *(spread(row[part], 3) for part in ("step", "passes", "ratio"))))
    command = "`OMP_PROC_BIND=true python -m benchmarks.method_steps --rounds 5`"
    return [*lines, "", f"SimCLR, 28x28, {result['threads']} threads. {made_by(result['machine'], command)}", ""]
