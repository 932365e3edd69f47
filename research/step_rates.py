"""How fast may methods that match margins go? The retained pay for few steps at a high rate, not the forgotten.

    python -m research.step_rates [--families digits,simclr,moco]     research/results/step_rates.json

One world of each family, with a seed that no table reports: 10 requests of 100 of 1 000 digits (the demo's original)
or 12 of 20 of 2 000 images of Fashion-MNIST (those of ``research/request_sizes.py``). Every request is unlearned
at each rate and length, without what came later (views, line search); forgotten and retained examples are pooled and
calibrated by the audit's half of a bank.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import process_time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research import request_sizes
from research.paths import RESULTS, RUNS
from research.request_sizes import COMMON

from efface import api
from efface.auditing.attacks.learned import attach_scores, fit_attack
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import observe_model, sample_by_key
from efface.auditing.pooled_placements import Rehearsal, pool_placements
from efface.data.selectors import Selection
from efface.data.split import Split, move_to_forget
from efface.runs.demo import DEMO_BANK, REGIMES
from efface.runs.rehearsal_kinds import draw_sets
from efface.runs.rehearsals import keep_scores
from efface.runs.run import open_run
from efface.training.checkpoint import Checkpoint
from efface.training.optim import Optim, OptimizerType

HOME, RESULT = RUNS / "step_rates", RESULTS / "step_rates.json"
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


class World:
    """An original, its bank, and the requests that are made of it."""

    def __init__(self, family: str, *, seed: int = SEED, bank: bool = True) -> None:
        self.family, self.seed, home = family, seed, HOME / f"{family}-{seed}"
        digits = family == "digits"
        settings = REGIMES["digits"] | COMMON | {"seed": seed} if digits else request_sizes.settings_of(family, seed)
        if bank:
            request_sizes.prepare(home, settings, DEMO_BANK if digits else request_sizes.BANK, 1)
            self.bank = load_bank(home / "bank")
            self.half = self.bank.part_for("audit")
            self.attack = fit_attack(self.half)
        else:
            request_sizes.train_original(home, settings)
        opened = open_run(home / "original")
        self.data, self.split = opened.data, opened.split
        self.original = Checkpoint.load(home / "original")
        count, size = REQUESTS[family]
        self.sets = draw_sets(self.data, self.split, "random", size, count, seed)

    def request(self, rows: np.ndarray) -> Split:
        """The split in which some examples are to be forgotten."""
        return move_to_forget(self.split, self.data, Selection(rows, random=True, by_group=False), self.seed)[0]

    def look(self, model: Checkpoint, split: Split) -> Rehearsal:
        """Observe a model on forgotten, retained and never-trained examples."""
        return self.calibrate(self.observe(model, split))

    def observe(self, model: Checkpoint, split: Split, *more: str) -> Observations:
        """Observe a model on forgotten, retained and never-trained examples, and on more parts."""
        few = replace(split, holdout=sample_by_key(self.data, split.holdout, 1500))
        watch = replace(request_sizes.WATCH, cap=500)
        parts = ("forget", "retain", "holdout", *more)
        return observe_model(model.model, self.data, few, self.original.recipe.views, watch, parts=parts)

    def calibrate(self, seen: Observations) -> Rehearsal:
        """The scores that an audit keeps, with those of models of its half of the bank that never saw an example."""
        observed = keep_scores(seen)
        references = self.half.calibrate(observed)
        if self.attack is not None:
            observed = attach_scores(self.attack, observed, references)
        return Rehearsal(observed, references)


def measure(world: World, method: str, pace: str) -> dict[str, Any]:
    """Pool the forgotten and the retained of all requests at one pace."""
    steps, rate, multiplier = PACES[pace]
    looked, seconds = list[Rehearsal](), 0.0
    for number, rows in enumerate(world.sets):
        split, model, began = world.request(rows), world.original, process_time()
        if steps:
            model = api.unlearn(
                world.original, world.data, split, method, seed=7000 + number, device="cpu",
                bank=world.bank if method == "reference_matching" else None, steps=steps + len(rows) // 8,
                multiplier=multiplier, alignment=0.0, line_search=False,
                optim=Optim(rule=OptimizerType.ADAMW, lr=rate, clip=5.0),
            )  # fmt: skip
        seconds += process_time() - began
        looked.append(world.look(model, split))
    return {
        "forgotten": {name: [round(one, 4) for one in pool_placements(looked, name).interval(0.9)] for name in SIGNALS},
        "retained": {name: round(pool_placements(looked, name, "retain").value, 4) for name in SIGNALS},
        "seconds": round(seconds / len(world.sets), 2),
    }


def main(families: Annotated[str, typer.Option(help="Families, with commas.")] = ",".join(REQUESTS)) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        world = World(family)
        for pace in PACES:
            for method in ("margin_matching", "reference_matching") if PACES[pace][0] else ("original",):
                add_row(
                    RESULT,
                    {"family": family, "method": method, "pace": pace},
                    partial(measure, world, method, pace),
                )


if __name__ == "__main__":
    typer.run(main)
