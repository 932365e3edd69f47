"""Forget one class in less than one pass: contrastive unlearning against retraining, on the ResNet of a shipped grid.

    python -m research.one_class measure      make the missing cells, write research/results/one_class.json
    python -m research.one_class make --label retrain --seed 10      make one cell, on any core

The world is that of ``examples/fashion-resnet.yaml``, with its class to forget. Originals may be copied from a bench of
that grid into ``research/runs/one_class/originals``; missing ones are trained. Settings are compared on the selection
seeds by ``valid`` and the forget set alone; retrained models are made for the reporting seeds. One thread; times are
CPU seconds. Resumable.
"""

from __future__ import annotations

import argparse
from functools import cache
from time import process_time
from typing import Any

import numpy as np
import torch
from benchmarks.machine import machine, read_json, write_json
from research.paths import EXAMPLES, RESULTS, RUNS
from research.worlds import labels, spread

from efface import api, config
from efface.bench import grid
from efface.bench.plan import METHOD_CHOICES, Scenario, load_divided, plan_bench
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe
from efface.unlearning import methods
from efface.unlearning.predictions import measure_accuracy

HOME, RESULT = RUNS / "one_class", RESULTS / "one_class.json"
GRID, FAMILY, FORGET = EXAMPLES / "fashion-resnet.yaml", "resnet", "sandals"
GONE = 0.01
"""Accuracy on the class up to which it counts as forgotten."""
METHOD = "contrastive_unlearning"
DEFAULT = {"name": METHOD}
ONE_PASS = {"name": METHOD, "epochs": 1}
SWEEP: dict[str, dict[str, Any]] = {
    "defaults": DEFAULT,
    "one pass": ONE_PASS,
    **{
        f"one pass, weight {weight:g}, lr {lr:g}": {**ONE_PASS, "weight": weight, "optim": {"lr": lr}}
        for weight in (1.0, 3.0, 10.0)
        for lr in (0.003, 0.01, 0.03)
    },
}
SECOND: dict[str, dict[str, Any]] = {
    f"one pass, omega 8, weight {weight:g}, task {task:g}, lr {lr:g} to 0": {
        **ONE_PASS,
        "omega": 8,
        "weight": weight,
        "task_weight": task,
        "optim": {"lr": lr, "schedule": "cosine"},
    }
    for weight, task, lr in ((1, 1, 0.03), (1, 1, 0.1), (1, 3, 0.1), (3, 3, 0.03), (3, 10, 0.03))
}
"""A second search, designed after the first had forgotten the class at the expense of the others: twice the retained
batches (still less than one pass over R), more weight on the task, and a decaying learning rate."""
JOINT: dict[str, dict[str, Any]] = {
    f"omega {omega}, lr {lr:g}": {"name": METHOD, "omega": omega, "optim": {"lr": lr}}
    for omega, lr in ((8, 0.01), (16, 0.003), (16, 0.01))
}
"""More retained batches with the joint forward pass, up to ten passes."""
SWEEP |= SECOND | JOINT
OTHERS: dict[str, dict[str, Any]] = {"retrain": {"name": "retrain"}, "neggrad": {"name": "neggrad"}}
"""The oracle, and for comparison a baseline at its untuned defaults."""
ORIGINAL = "original"


@cache
def planned() -> Any:
    """The grid's plan for the class."""
    return plan_bench(grid.read_grid(GRID).select(forget=[FORGET]))


@cache
def world(seed: int) -> tuple[Data, Split]:
    """The data, and its split with the class to forget."""
    data, split = load_divided(planned().families[FAMILY], seed)
    return data, select_forget_set(split, data, planned().families[FAMILY].forget[FORGET], seed)


def original(seed: int) -> Checkpoint:
    """The original: from a bench, or trained now; refused if it belongs to another split."""
    task = planned().original(Scenario(FAMILY, FORGET, seed))
    folder = task.folder(HOME)
    data, split = load_divided(planned().families[FAMILY], seed)
    if not (folder / "checkpoint.safetensors").exists():
        recipe = config.build(Recipe, task.request["recipe"], CHOICES, "recipe.")
        api.pretrain(data, split, recipe=recipe, seed=seed, device="cpu").save(folder)
    start = Checkpoint.load(folder)
    if start.split != split.digest(data):
        raise EffaceError(f"{folder} was trained on another division of the data.", remedy="Move it away.")
    return start


def accuracies(made: Checkpoint, seed: int) -> dict[str, float]:
    """Accuracy on the class (training and unseen examples) and on the other classes (retained and unseen)."""
    data, split = world(seed)
    y = labels(data)
    classes = np.unique(y[split.forget])

    def share(part: str, inside: bool) -> float:
        positions = getattr(split, part)
        chosen = positions[np.isin(y[positions], classes) == inside]
        return measure_accuracy(made.model, Subset.of(data, chosen, made.recipe.views, part, torch.device("cpu")))[0]

    return {
        "forget": share("forget", True),
        "class, unseen": share("test", True),
        "class, valid": share("valid", True),
        "retain": share("retain", False),
        "others, unseen": share("test", False),
        "others, valid": share("valid", False),
    }


def cell(label: str, seed: int) -> dict[str, Any]:
    """Accuracies and cost of one model, which is made if it does not exist."""
    file = HOME / "cells" / f"{label}-{seed}.json"
    if file.exists():
        return read_json(file)
    torch.set_num_threads(1)
    start, (data, split) = original(seed), world(seed)
    log: list[dict[str, Any]] = []
    found: dict[str, Any] = {"seed": seed}
    if label == ORIGINAL:
        found |= accuracies(start, seed)
    else:
        fields = {**SWEEP, **OTHERS}[label]
        own_seed = 1000 + seed if fields["name"] == "retrain" else None
        method = config.parse_choice(methods.METHODS, fields, "method", METHOD_CHOICES)
        began = process_time()
        made = api.unlearn(
            start, data, split, method, device="cpu", log=lambda record: log.append(record), seed=own_seed
        )
        found["cpu seconds"] = process_time() - began
        found |= accuracies(made, seed) | {"steps": made.training_cost.steps, "examples": made.training_cost.examples}
        found["rules"] = [record for record in log if record["phase"] == "stop_rule"]
    write_json(file, found, indent=None)
    print(label, found, flush=True)
    return found


def chosen(sweep: dict[str, list[dict[str, Any]]]) -> str:
    """The chosen setting of one pass; no retrained model is used.

    Of the settings that leave at most 1 % accuracy on the class, in F and in valid, the best on the other classes'
    valid examples; if there are none, the setting that leaves the least.
    """
    left = {
        name: (
            np.mean([max(c["forget"], c["class, valid"]) for c in cells]),
            np.mean([c["others, valid"] for c in cells]),
        )
        for name, cells in sweep.items()
        if name != "defaults"
    }
    good = {name: kept for name, (gone, kept) in left.items() if gone <= GONE}
    return max(good, key=lambda name: good[name]) if good else min(left, key=lambda name: left[name][0])


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    kept = [key for key in cells[0] if key not in ("seed", "rules")]
    return {key: spread(c[key] for c in cells) for key in kept} | {"cells": cells}


def measure() -> None:
    seeds = planned().grid.seeds
    sweep = {name: [cell(name, seed) for seed in seeds.selection] for name in SWEEP}
    best = chosen(sweep)
    shown = dict.fromkeys((ORIGINAL, *OTHERS, "defaults", "one pass", best))
    sizes, data = world(seeds.reporting[0])[1].sizes(), planned().families[FAMILY]
    result = {
        "machine": machine(),
        "grid": {"file": f"examples/{GRID.name}", "family": FAMILY, "forget": data.forget[FORGET], "sizes": sizes},
        "selection_seeds": seeds.selection,
        "reporting_seeds": seeds.reporting,
        "settings": {**SWEEP, **OTHERS},
        "selection": {name: summary(cells) for name, cells in sweep.items()},
        "chosen": best,
        "reporting": {name: summary([cell(name, seed) for seed in seeds.reporting]) for name in shown},
    }
    write_json(RESULT, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("make", "measure"))
    parser.add_argument("--label", choices=(ORIGINAL, *SWEEP, *OTHERS))
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.part == "measure":
        measure()
    else:
        cell(arguments.label, arguments.seed)


if __name__ == "__main__":
    main()
