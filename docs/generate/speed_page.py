"""The tables of docs/speed.md, from ``results/throughput.json``.

make docs
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "throughput.json"
SIDES = {
    "efface bfloat16": "efface, bfloat16 autocast",
    "efface float32": "efface, float32",
    "lightly bfloat16": "lightly, bfloat16 autocast",
    "lightly float32": "lightly, as its examples have it",
}


def page() -> list[str]:
    """Pretraining against lightly, the audit, and what is done in a moment, as Markdown lines."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    lines: list[str] = []
    for name in ("pretraining gray", "pretraining color"):
        found = result[name]
        lines += [f"### SimCLR pretraining, {found['images']}", "", "| | images/s | times lightly's float32 |"]
        lines += ["|---|---|---|"]
        base = found["lightly float32"]["median"]
        for side, said in SIDES.items():
            if side in found:
                chosen = " (the default here)" if side == found["default"] else ""
                lines.append(f"| {said}{chosen} | {spread(found[side], 0)} | {found[side]['median'] / base:.2f} |")
        share = {key: 100 * value for key, value in found["augmentation_share_of_step"].items() if key != "n"}
        lines += ["", f"Augmentation's share of efface's step: {spread(share | {'n': 0}, 1)} %.", ""]
    audit = result["audit"]
    lines += ["### The rest", "", "| | seconds |", "|---|---|"]
    lines.append(
        f"| look at one model: 1 000 forgotten, retained, unseen each | {spread(audit['observe_one_model'])} |"
    )
    lines.append(f"| judge two models that were looked at | {spread(audit['judge'])} |")
    lines.append(f"| every threshold of 20 000 scores | {spread(result['threshold_sweep_20000'], 4)} |")
    lines.append(f"| `efface --help` | {spread(result['help'])} |")
    machine, n = result["machine"], result["help"]["n"]
    made = f"Made by `OMP_PROC_BIND=true {machine['command']}`; {machine['cpu']}, torch {machine['torch']}"
    return [*lines, "", f"Median (least to most) of {n} rounds. {made}, {result['threads']} threads."]


def spread(found: dict[str, Any], digits: int = 2) -> str:
    """Median, least and most."""
    middle, least, most = (f"{found[key]:,.{digits}f}".replace(",", " ") for key in ("median", "least", "most"))
    return f"{middle} ({least} to {most})"
