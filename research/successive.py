"""Twenty requests of one percent each, one after the other.

    python -m research.successive [--families digits,simclr] [--seeds 0,1,2,3,4]     research/results/successive.json

Does what is left of each add up, and does the model decay? Originals are those of the demo (1 000 digits) and of
``research.request_sizes`` (2 000 images of Fashion-MNIST, SimCLR). Each request is unlearned from what the one before
it left, by ``margin_matching`` at its defaults. After every fifth one all that were forgotten so far are judged
together, calibrated by the audit's half of a bank, and the retained and the accuracy of nearest neighbors beside them.
For comparison: the same examples in one request, and a model retrained without them.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research.banked_worlds import BankedWorld
from research.paths import RESULTS
from research.step_rates import SIGNALS

from efface import api
from efface.auditing import representations
from efface.auditing.pooled_placements import pool_placements
from efface.data.split import Split
from efface.training.checkpoint import Checkpoint

RESULT = RESULTS / "successive.json"
SIZES = {"digits": 10, "simclr": 20}
"""Examples in a request: one percent of those trained on."""
REQUESTS, LOOKS = 20, (5, 10, 15, 20)
"""How many requests come, and after how many the model is looked at."""
METHOD = "margin_matching"


def split_after(base: Split, sets: list[np.ndarray], first: int, last: int) -> Split:
    """The split in which the requests ``first`` to ``last`` are to be forgotten and those before them are gone."""
    gone = np.concatenate([np.empty(0, dtype=np.int64), *sets[:last]])
    now = np.concatenate([np.empty(0, dtype=np.int64), *sets[first:last]])
    return replace(base, forget=np.sort(now), retain=np.setdiff1d(base.retain, gone))


def look(world: BankedWorld, model: Checkpoint, split: Split) -> dict[str, Any]:
    """What is left of F, with its 90 % interval, where the retained are, and the accuracy of nearest neighbors."""
    seen = world.observe(model, split, "test")
    judged = [world.calibrate(seen)]
    (near,) = representations.knn_accuracy(seen, "test") or [(0, 0)]
    return {
        "forgotten": {name: [round(one, 4) for one in pool_placements(judged, name).interval(0.9)] for name in SIGNALS},
        "retained": {name: round(pool_placements(judged, name, "retain").value, 4) for name in SIGNALS},
        "knn": round(near[0] / near[1], 4),
    }


def measure(world: BankedWorld, family: str) -> dict[str, Any]:
    """Take all requests one after the other, look in between, and make what they are compared with."""
    sets = world.draw(REQUESTS, SIZES[family])
    whole = split_after(world.split, sets, 0, REQUESTS)
    began = process_time()
    after = list(follow(world, sets))
    seconds = process_time() - began
    at_once = api.unlearn(world.original, world.data, whole, METHOD, seed=7000, device="cpu")
    oracle = api.unlearn(world.original, world.data, whole, "retrain", seed=world.seed + 1, device="cpu")
    return {
        "before": look(world, world.original, whole),
        "after": after,
        "at once": look(world, at_once, whole),
        "retrained": look(world, oracle, whole),
        "seconds": round(seconds, 1),
    }


def follow(world: BankedWorld, sets: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Unlearn one request after the other, and look at all that were forgotten after every few."""
    model = world.original
    for number in range(1, len(sets) + 1):
        split = split_after(world.split, sets, number - 1, number)
        model = api.unlearn(model, world.data, split, METHOD, seed=7000 + number, device="cpu")
        if number in LOOKS:
            yield {"requests": number} | look(world, model, split_after(world.split, sets, 0, number))


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = ",".join(SIZES),
    seeds: Annotated[str, typer.Option(help="Seeds of the originals, with commas.")] = "0,1,2,3,4",
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        for seed in map(int, seeds.split(",")):
            world = BankedWorld(family, seed)
            add_row(RESULT, {"family": family, "seed": seed}, partial(measure, world, family))


if __name__ == "__main__":
    typer.run(main)
