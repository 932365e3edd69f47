"""Forget one class: methods for whole classes beside general ones, against retraining, over seeds.

    python -m research.whole_class [--families resnet,simclr] [--seeds 1,2,3,4,5]     research/results/whole_class.json

Originals are those of ``research.every_size``; the class is Fashion-MNIST's sandals, a tenth of the 2 000 images.
Two models are retrained without it; one of them is also judged as if it were an answer. All methods are at their
defaults, and all models are judged as ``efface audit`` does it with two retrained references.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from benchmarks.machine import add_row
from research.banked_worlds import BankedWorld
from research.paths import RESULTS, RUNS
from research.request_sizes import WATCH

from efface import api
from efface.auditing.observations import Observations
from efface.data.split import select_forget_set
from efface.training.checkpoint import META, Checkpoint

HOME, RESULT = RUNS / "whole_class", RESULTS / "whole_class.json"
FORGET = "@class:Sandal"
ENCODERS = ("margin_matching", "alignment_calibration", "finetune")
METHODS = {
    "resnet": ("margin_matching", "damp", "purge", "contrastive_unlearning", "salun", "scrub", "neggrad", "finetune"),
    "simclr": ENCODERS,
    "moco": ENCODERS,
}
SHOWN = ("neighbor_class.", "utility.accuracy.", "utility.knn20.", "utility.probe.", "oracle_gap.", "collateral.")
"""Beginnings of the names of findings that are kept, each with the value of the retrained models."""


class ClassWorld:
    """An original, two models retrained without the class, and what each shows."""

    def __init__(self, family: str, seed: int) -> None:
        world, home = BankedWorld(family, seed, bank=False), HOME / f"{family}-{seed}"
        self.data, self.original = world.data, world.original
        self.split = select_forget_set(world.split, self.data, FORGET, seed)
        self.oracles = [self.retrained(home / f"retrained-{number}", 1000 * number + seed) for number in (1, 2)]
        self.seen = [self.observe(model) for model in (self.original, *self.oracles)]

    def retrained(self, folder: Path, seed: int) -> Checkpoint:
        """A model that never saw the class, trained or read."""
        if not (folder / META).exists():
            self.unlearn("retrain", seed).save(folder)
        return Checkpoint.load(folder)

    def unlearn(self, method: str, seed: int) -> Checkpoint:
        """The original without the class, by one method at its defaults."""
        return api.unlearn(self.original, self.data, self.split, method, seed=seed, device="cpu")

    def observe(self, model: Checkpoint) -> Observations:
        """What an audit sees of a model."""
        return api.observe(model, self.data, self.split, WATCH, device="cpu")


def measure(world: ClassWorld, method: str) -> dict[str, Any]:
    """Forget the class by one method, and judge the result."""
    if method == "original":
        model, seen, oracles = world.original, world.seen[0], world.seen[1:]
    elif method == "retrain":
        model, seen, oracles = world.oracles[0], world.seen[1], world.seen[2:]
    else:
        model = world.unlearn(method, 7000)
        seen, oracles = world.observe(model), world.seen[1:]
    judged = api.judge_observations(world.seen[0], seen, oracles)
    whole, cost = world.original.training_cost, model.training_cost
    return {
        "word": judged.verdict.word,
        "signals": {one.signal: round(one.value, 4) for one in judged.verdict.signals},
        "found": {
            one.name: [None if x is None else round(x, 4) for x in (one.value, one.oracle)]
            for one in judged.findings
            if one.name.startswith(SHOWN)
        },
        "seconds": round(cost.seconds, 2),
        "share of the time": round(cost.seconds / whole.seconds, 4),
        "share of the examples": round(cost.examples / whole.examples, 4),
    }


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = "resnet,simclr",
    seeds: Annotated[str, typer.Option(help="Seeds of the originals, with commas.")] = "1,2,3,4,5",
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for seed in map(int, seeds.split(",")):
        for family in families.split(","):
            world = ClassWorld(family, seed)
            for method in ("original", "retrain", *METHODS[family]):
                about = {"family": family, "seed": seed, "method": method}
                add_row(RESULT, about, partial(measure, world, method))


if __name__ == "__main__":
    typer.run(main)
