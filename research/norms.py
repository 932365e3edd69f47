"""Figure: gradient norms of forgotten, unseen and retained examples before and after the gradient constraint.

python -m research.norms        writes docs/figures/gradient_norms.svg and research/results/gradient_norms.json
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.machine import machine, write_json
from research.gradient_constraint import EPOCHS, HOME, REPORTING
from research.paths import DOCS, RESULTS
from research.worlds import World

import efface
from efface.reporting.figures import audit, svg
from efface.training import batch as training_batch
from efface.training.model import Model
from efface.unlearning.methods import GradientConstraint

SAID = "Gradient norms of forgotten, unseen and retained examples, before and after, and in a retrained model."
STYLE = (
    "text{font:11px sans-serif;fill:#222}.name{font-weight:600}.grid{stroke:#ddd}.axis,.tick{stroke:#222}"
    ".line{fill:none;stroke:#222;stroke-width:1.4}.forget{stroke:#0b57a4;stroke-width:2}.area{fill:#0b57a426;stroke:none}"
    ".paper{fill:#fff}.holdout{stroke-dasharray:5 3}.retain{stroke:#888;stroke-dasharray:1.5 2.5}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.paper{fill:#1b1d20}.line,.axis,.tick{stroke:#eee}"
    ".forget{stroke:#7db6f2}.grid{stroke:#444}}"
)


def norms(model: Model, world: World) -> dict[str, np.ndarray]:
    """log10 of the gradient norm of every example in three parts, at fixed views."""
    data, split = world.data()
    views, found = world.recipe(data).views, {}
    for part in ("forget", "holdout", "retain"):
        served = training_batch.Subset.of(data, getattr(split, part)[:400], views, part, torch.device("cpu"))
        method = GradientConstraint()
        found[part] = np.log10(
            np.concatenate([method.norms(model, batch).numpy() for batch in served.ordered_batches(64)])
        )
    return found


def main() -> None:
    """Unlearn again, measure the gradient norms, and draw."""
    world = World("simclr", REPORTING[0], HOME, epochs=EPOCHS["simclr"])
    data, split = world.data()
    original, oracle = world.model("original"), world.model("oracle-1")
    after = efface.unlearn(original, data, split, "gradient_constraint", device="cpu")
    seen = {
        "before": norms(original.model, world),
        "after": norms(after.model, world),
        "retrained": norms(oracle.model, world),
    }
    everything = np.concatenate([v for m in seen.values() for v in m.values()])
    edges = np.linspace(*(float(end) for end in np.quantile(everything, (0.005, 0.995))), num=25)
    panels = []
    for number, (when, parts) in enumerate(seen.items()):
        shares = {part: audit.counted(values, edges) for part, values in parts.items()}
        top = 1.08 * max(float(s.max()) for m in seen.values() for v in m.values() for s in [audit.counted(v, edges)])
        panel = svg.Panel.of((float(edges[0]), float(edges[-1])), (0.0, top))
        panel.axes(
            "log10 of the gradient norm",
            "share of examples, %",
            svg.nice_ticks(edges[0], edges[-1]),
            svg.nice_ticks(0, top, 4),
        )
        for part in ("retain", "holdout", "forget"):
            audit.outline(panel, edges, shares[part], part)
        panel.text(f"{when}", 8, 8, anchor="start", kind="name")
        panels.append(f'<g transform="translate(0 {10 + number * 212})">{"".join(panel.drawn)}</g>')
    drawn = f'<style>{STYLE}</style><rect class="paper" width="304" height="650" rx="6"/>{"".join(panels)}'
    whole = svg.wrap_svg("norms", "Gradient norms", SAID, drawn, 304, 650)
    (DOCS / "figures" / "gradient_norms.svg").write_text(str(whole) + "\n", encoding="utf-8")
    medians = {when: {part: float(np.median(v)) for part, v in parts.items()} for when, parts in seen.items()}
    result = {"machine": machine(), "world": "simclr", "seed": REPORTING[0], "median_log10": medians}
    write_json(RESULTS / "gradient_norms.json", result)
    print(medians)


if __name__ == "__main__":
    main()
