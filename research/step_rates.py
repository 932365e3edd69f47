"""How fast may methods that match margins go? The retained pay for few steps at a high rate, not the forgotten.

    python -m research.step_rates [--families digits,simclr,moco]     research/results/step_rates.json

One world of each family, with a seed that no table reports: 10 requests of 100 of 1 000 digits (the demo's original)
or 12 of 20 of 2 000 images of Fashion-MNIST (those of ``research/request_sizes.py``). Every request is unlearned
at each rate and length, without what came later (views, line search); forgotten and retained examples are pooled and
calibrated by the audit's half of a bank.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

from functools import partial
from time import process_time
from typing import Annotated, Any

import torch
import typer
from benchmarks.machine import add_row
from research.banked_worlds import BankedWorld
from research.paths import RESULTS

from efface import api
from efface.auditing.pooled_placements import Rehearsal, pool_placements
from efface.training.optim import Optim, OptimizerType

RESULT = RESULTS / "step_rates.json"
SIGNALS = ("backbone.margin", "projector.margin", "learned")
REQUESTS = {"digits": (10, 100), "simclr": (12, 20), "moco": (12, 20)}
"""Family to the number of requests and the examples in each."""
PACES = {
    "24 steps at .004": (24, 4e-3, 0.08),
    "48 steps at .001, multiplier .08": (48, 1e-3, 0.08),
    "48 steps at .001, multiplier .04": (48, 1e-3, 0.04),
    "before": (0, 0.0, 0.0),
}
"""Steps for a few examples, the rate, and the multiplier; one more step for every 8 examples."""
SEED = 100


def measure(world: BankedWorld, method: str, pace: str) -> dict[str, Any]:
    """Pool the forgotten and the retained of all requests at one pace."""
    steps, rate, multiplier = PACES[pace]
    looked, seconds = list[Rehearsal](), 0.0
    requests = world.draw(*REQUESTS[world.family])
    for number, rows in enumerate(requests):
        split, model, began = world.request(rows), world.original, process_time()
        if steps:
            model = api.unlearn(
                world.original, world.data, split, method, seed=7000 + number, device="cpu",
                bank=world.bank if method == "reference_matching" else None, steps=steps + len(rows) // 8,
                multiplier=multiplier, alignment=0.0, averaged=0.0, line_search=False,
                optim=Optim(rule=OptimizerType.ADAMW, lr=rate, clip=5.0),
            )  # fmt: skip
        seconds += process_time() - began
        looked.append(world.look(model, split))
    return {
        "forgotten": {name: [round(one, 4) for one in pool_placements(looked, name).interval(0.9)] for name in SIGNALS},
        "retained": {name: round(pool_placements(looked, name, "retain").value, 4) for name in SIGNALS},
        "seconds": round(seconds / len(requests), 2),
    }


def main(families: Annotated[str, typer.Option(help="Families, with commas.")] = ",".join(REQUESTS)) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        world = BankedWorld(family, SEED)
        for pace in PACES:
            for method in ("margin_matching", "reference_matching") if PACES[pace][0] else ("original",):
                add_row(
                    RESULT,
                    {"family": family, "method": method, "pace": pace},
                    partial(measure, world, method, pace),
                )


if __name__ == "__main__":
    typer.run(main)
