"""Requests of one example to a fifth of the data, over seeds: what is left, of whom, for what, and beside an oracle.

    python -m research.every_size [--families simclr,moco] [--worlds 1,2,3,4,5] [--only margin_matching]

Worlds are originals of ``research.request_sizes`` with seeds that no choice had a look at, each with a bank of eight
half-data models. Every request is unlearned from the original and looked at; forgotten and retained examples are pooled
within a world and calibrated by the audit's half of the bank. Beside them stands a model that was retrained without a
hundred, and one without a fifth of the data. A family with ``-500`` at its end was trained on 500 images; ``clip`` was
trained on 1 000 emoji with their names. How V lies by luck beside the audit's never-trained examples is in
research/results/luck_of_the_unseen.json.

Resumable: a row that is in research/results/every_size.json is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research.banked_worlds import BankedWorld
from research.paths import RESULTS
from research.request_sizes import FEW

from efface import api
from efface.auditing import representations, signals
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal, all_have_signal, pool_placements
from efface.training.checkpoint import Checkpoint

RESULT, LUCK = RESULTS / "every_size.json", RESULTS / "luck_of_the_unseen.json"
SIZES = {20: 8, 100: 4, 400: 2, 5: 16, 200: 2, 1: 20}
"""Examples in a request, and how many requests are pooled in each world, in the order in which they are made."""
WITH_BANK = {20: 8, 100: 4, 400: 1, 5: 16}
"""The same for the method that takes its targets from the bank."""
RETRAINED = {100: 1, 400: 1}
"""The same for retrained models."""
PUBLISHED = {20: 4, 100: 2, 400: 1}
"""The same for published methods, whose requests take two to three times as long."""
OF_500 = {20: 8, 100: 2, 5: 16, 1: 20}
"""The same for every method in worlds of 500 images."""
METHODS = {
    "original": SIZES,
    "retrain": RETRAINED,
    "margin_matching": SIZES,
    "reference_matching": WITH_BANK,
    "finetune": PUBLISHED,
    "alignment_calibration": PUBLISHED,
    "scrub": PUBLISHED,
    "salun": PUBLISHED,
}
FOR_CLASSIFIERS, FOR_ENCODERS = ("scrub", "salun"), ("alignment_calibration",)
CLASSIFIERS = ("resnet", "vit")
KINDS = ("margin", "alignment", "norm")


def fits(method: str, family: str) -> bool:
    """Whether a method is for a family's models."""
    return method not in (FOR_ENCODERS if family.removesuffix(FEW) in CLASSIFIERS else FOR_CLASSIFIERS)


def list_requests(method: str, family: str) -> dict[int, int]:
    """Examples in a request to the number of requests that are pooled in a world."""
    return {
        size: min(count, OF_500.get(size, 0) if family.endswith(FEW) else count)
        for size, count in METHODS[method].items()
    }


def unlearn(world: BankedWorld, method: str, rows: np.ndarray, number: int) -> Checkpoint:
    """Unlearn one request."""
    if method == "original":
        return world.original
    bank = world.bank if method == "reference_matching" else None
    # A retrained model is independent of the original: it has a seed of its own.
    seed = world.seed + 1000 if method == "retrain" else 7000 + number
    return api.unlearn(world.original, world.data, world.request(rows), method, seed=seed, device="cpu", bank=bank)


def measure(world: BankedWorld, method: str, size: int, count: int) -> dict[str, Any]:
    """Pool requests of one size by one method in one world."""
    looked, costs, useful = list[Rehearsal](), [], dict[str, float]()
    for number, rows in enumerate(world.draw(count, size)):
        model, first = unlearn(world, method, rows, number), number == 0
        seen = world.observe(model, world.request(rows), *(("test", "valid") if first else ()))
        useful = rate(seen) if first else useful
        looked.append(world.calibrate(seen))
        costs.append(model.training_cost)
    whole = world.original.training_cost
    return {
        **where_they_are(looked),
        "useful": useful,
        "seconds": round(float(np.median([cost.seconds for cost in costs])), 2),
        "share of the time": round(float(np.median([cost.seconds for cost in costs])) / whole.seconds, 4),
        "share of the examples": round(float(np.median([cost.examples for cost in costs])) / whole.examples, 4),
    }


def where_they_are(looked: Sequence[Rehearsal]) -> dict[str, Any]:
    """AUC of the forgotten with its 90 % interval, and of the retained, pooled over requests, by every signal."""
    spaces, decide = looked[0].observed.spaces, signals.prespecified_signals(looked[0].observed)
    names = dict.fromkeys([*(f"{space}.{kind}" for space in spaces for kind in KINDS), *decide, signals.LEARNED])
    names = [name for name in names if all_have_signal(looked, name, "forget")]
    return {
        "requests": len(looked),
        "forgotten": {name: [round(one, 4) for one in pool_placements(looked, name).interval(0.9)] for name in names},
        "retained": {name: round(pool_placements(looked, name, "retain").value, 4) for name in names},
    }


def rate(seen: Observations) -> dict[str, float]:
    """Accuracy on test examples of the model's own classes, of neighbors and of a linear probe; recall of captions."""
    hits = {"accuracy": representations.accuracy(seen, "test")}
    hits["knn"] = (representations.knn_accuracy(seen, "test", (20,)) or [None])[0]
    probe = representations.linear_probe(seen)
    hits["probe"] = probe and (probe.right, probe.of)
    recall = representations.mean_retrieval_recall(seen, "test", 1)
    shares = {name: hit[0] / hit[1] for name, hit in hits.items() if hit}
    return {name: round(share, 4) for name, share in (shares | ({} if recall is None else {"recall": recall})).items()}


def measure_luck(world: BankedWorld) -> dict[str, Any]:
    """How far V, which a method compares with, lies above H, which an audit compares with, where neither was seen.

    Mean margin of V less that of H, in standard deviations of H, averaged over all models of the bank.
    """
    v, h = (world.bank.positions(world.data.keys[part]) for part in (world.split.valid, world.split.holdout))

    def lift(scores: np.ndarray) -> float:
        return float(np.mean([(row[v].mean() - row[h].mean()) / row[h].std() for row in scores]))

    margins = {name: scores for name, scores in world.bank.scores.items() if name.endswith(".margin")}
    return {"unseen": {name: round(lift(scores), 4) for name, scores in margins.items()}}


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = "simclr,moco",
    worlds: Annotated[str, typer.Option(help="Seeds of the originals, with commas.")] = "1,2,3,4,5",
    only: Annotated[str, typer.Option(help="Methods, with commas; by default all that fit.")] = "",
    sizes: Annotated[str, typer.Option(help="Sizes of requests, with commas; by default all.")] = "",
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    chosen = [int(size) for size in sizes.split(",")] if sizes else list(SIZES)
    for seed, family in product(map(int, worlds.split(",")), families.split(",")):
        world = BankedWorld(family, seed)
        add_row(LUCK, {"family": family, "world": seed}, partial(measure_luck, world))
        for method in only.split(",") if only else METHODS:
            for size, count in list_requests(method, family).items():
                if count and size in chosen and fits(method, family):
                    about = {"family": family, "world": seed, "method": method, "size": size}
                    add_row(RESULT, about, partial(measure, world, method, size, count))


if __name__ == "__main__":
    typer.run(main)
