"""Time of one step of each method, in plain training steps: a cost that the number of steps does not show.

    OMP_NUM_THREADS=1 python -m research.step_cost [--rounds 5]      research/results/step_cost.json
    make docs                                                        docs/results/frontier_tables.md

400 of 2 000 images to forget. All methods alternate in one process, each for some steps from the same weights. The time
of a step is the median between two log records, so it includes making batches but not what happens before the first
step. Compare the ratios. Untrained weights are used, which cost as much as trained ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from benchmarks.machine import machine, summary, write_json
from research.gradient_constraint import HOME
from research.paths import RESULTS
from research.worlds import World

import efface
from efface.training.checkpoint import Checkpoint

RESULT = RESULTS / "step_cost.json"
PLAIN = "finetune"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    PLAIN: ("finetune", {}),
    "alignment_calibration": ("alignment_calibration", {}),
    "gradient_constraint": ("gradient_constraint", {}),
    "margin_matching": ("margin_matching", {}),
    "margin_matching, batches of 100": ("margin_matching", {"forget_batch_size": 100}),
}
BATCHES = {100: 1, 256: 2, 512: 4}
"""Retained examples per step, and the number of epochs that gives enough steps."""


def step_seconds(world: World, method: str, fields: dict[str, Any], size: int, epochs: int) -> float:
    """Median time between the ends of two steps."""
    data, split = world.data()
    recipe = world.recipe(data)
    stamps: list[float] = []
    efface.unlearn(
        Checkpoint(recipe.start(0), recipe, seed=0),
        data,
        split,
        method,
        device="cpu",
        batch_size=size,
        epochs=epochs,
        log=lambda record: stamps.append(perf_counter()),
        **fields,
    )
    return statistics.median(later - earlier for earlier, later in pairwise(stamps))


def measure_family(family: str, rounds: int) -> dict[str, Any]:
    """For each batch size and method, how many plain training steps one of its steps takes."""
    world, found = World(family, 10, HOME, 2000, epochs=250), dict[str, Any]()
    for size, epochs in BATCHES.items():
        ratios: dict[str, list[float]] = {label: [] for label in METHODS}
        for _ in range(rounds):
            seconds = {label: step_seconds(world, *method, size, epochs) for label, method in METHODS.items()}
            for label, one in seconds.items():
                ratios[label].append(one / seconds[PLAIN])
            print(family, size, {label: round(values[-1], 2) for label, values in ratios.items()}, flush=True)
        found[str(size)] = {label: summary(values) for label, values in ratios.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    families = {family: measure_family(family, arguments.rounds) for family in ("simclr", "moco")}
    result = {"machine": machine(), "plain": PLAIN, "families": families}
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
