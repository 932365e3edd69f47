"""What each part of margin matching and of reference matching is for: one left out or changed at a time.

    python -m research.ablation [--families digits,simclr] [--seeds 0,1,2,3,4]     research/results/ablation.json

Requests of twenty examples, as in ``research.successive`` and ``research.every_size``. Each is unlearned from the
original with every variant and the same seed; forgotten and retained examples are pooled within an original and
calibrated by the audit's half of its bank. One variant has for its targets the models that judge it: an audit refuses
that, and here stands what it would have said.

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
from research.every_size import where_they_are
from research.paths import RESULTS

from efface import api
from efface.auditing.pooled_placements import Rehearsal

RESULT = RESULTS / "ablation.json"
REQUESTS, SIZE = 8, 20
"""Requests of each original, and the examples in each."""
MARGIN, REFERENCE = "margin_matching", "reference_matching"
PAIRS = {"targets of two models": (0, 1), "targets of the audit's half": (1, 0, 3, 2)}
"""Variants that are given a bank with its pairs in another order: a method gets the first of every two."""
VARIANTS: dict[tuple[str, str], dict[str, Any] | None] = {
    ("original", "as it is"): None,
    (MARGIN, "default"): {},
    (REFERENCE, "default"): {},
    (REFERENCE, "targets of two models"): {},
    (REFERENCE, "targets of the audit's half"): {},
    (REFERENCE, "only the mean is matched"): {"individual": 0.0},
    (REFERENCE, "each example as much as the mean"): {"individual": 1.0},
    (MARGIN, "in the backbone alone"): {"output": 0.0},
    (MARGIN, "in the output alone"): {"backbone": 0.0},
    (MARGIN, "no hold"): {"hold": 0.0},
    (MARGIN, "four times the hold"): {"hold": 4.0},
    (MARGIN, "views not matched"): {"alignment": 0.0},
    (MARGIN, "no multiplier"): {"multiplier": 0.0},
    (MARGIN, "no averaged weights"): {"averaged": 0.0},
    (MARGIN, "no line search"): {"line_search": False},
    (MARGIN, "the last step as it is"): {"averaged": 0.0, "line_search": False},
    (MARGIN, "compared with 300 of V"): {"compared": 300},
    (MARGIN, "hinge"): {"penalty": "hinge"},
}
"""Method and what is changed in it; None: nothing is unlearned."""


def measure(world: BankedWorld, method: str, variant: str) -> dict[str, Any]:
    """Unlearn all requests of an original in one way; where the forgotten and the retained are."""
    settings, looked, seconds = VARIANTS[method, variant], list[Rehearsal](), 0.0
    bank = world.bank.select_pairs(PAIRS[variant]) if variant in PAIRS else world.bank
    requests = world.draw(REQUESTS, SIZE)
    for number, rows in enumerate(requests):
        split, model, began = world.request(rows), world.original, process_time()
        if settings is not None:
            model = api.unlearn(
                world.original, world.data, split, method, seed=7000 + number, device="cpu",
                bank=bank if method == REFERENCE else None, **settings,
            )  # fmt: skip
        seconds += process_time() - began
        looked.append(world.look(model, split))
    return where_they_are(looked) | {"seconds": round(seconds / len(looked), 2)}


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = "digits,simclr",
    seeds: Annotated[str, typer.Option(help="Seeds of the originals, with commas.")] = "0,1,2,3,4",
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        for seed in map(int, seeds.split(",")):
            world = BankedWorld(family, seed)
            for method, variant in VARIANTS:
                about = {"family": family, "seed": seed, "method": method, "variant": variant}
                add_row(RESULT, about, partial(measure, world, method, variant))


if __name__ == "__main__":
    typer.run(main)
