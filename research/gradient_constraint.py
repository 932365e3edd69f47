"""Does the gradient constraint work? Four families on over-fitted Fashion-MNIST, against baselines and the oracle.

    python -m research.gradient_constraint train      originals and oracles of every family and seed
    python -m research.gradient_constraint select     the ablation, on the selection seeds
    python -m research.gradient_constraint report     the chosen settings, on the reporting seeds
    python -m research.gradient_constraint tables     research/results/gradient_constraint.json

Resumable: a model whose folder is complete is not made again. Two one-thread processes by default (--jobs).
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.machine import machine, write_json
from research.paths import RESULTS, ROOT, RUNS
from research.worlds import World, make, measure, spread, together

from efface.unlearning.methods.gradient_constraint import WGAN_GP

HOME, RESULT = RUNS / "gradient_constraint", RESULTS / "gradient_constraint.json"
EPOCHS = {"simclr": 400, "moco": 250, "byol": 120, "cross_entropy": 100}
"""Enough for the attack to detect the forgotten examples in the original."""
FAMILIES = tuple(EPOCHS)
SELECTION, REPORTING = (0, 1, 2), (10, 11, 12)


def gc(**fields: Any) -> dict[str, Any]:
    return {"name": "gradient_constraint", **fields}


def at(lr: float) -> dict[str, Any]:
    return {"optim": {"lr": lr, "clip": 5.0}}


BASELINES: dict[str, dict[str, Any]] = {
    "finetune": {"name": "finetune"},
    "finetune lr .1": {"name": "finetune", **at(0.1)},
    "gradient_ascent": {"name": "gradient_ascent"},
    "neggrad": {"name": "neggrad"},
    "neggrad lr .1": {"name": "neggrad", **at(0.1)},
    "scrub": {"name": "scrub"},
}
FAST = at(0.1)
TARGETS: dict[str, dict[str, Any]] = {
    "quantile": {},
    "log_mean": {"match": "log_mean"},
    "square": {"match": "square"},
    "square c=0": {"match": "square", "target": 0.0},
    "square c=1": {"match": "square", "target": 1.0},
}
ABLATION = {
    f"{wrt}, {label}": gc(wrt=wrt, weight=0.3, **fields, **FAST)
    for wrt in ("input", "embedding", "parameters")
    for label, fields in TARGETS.items()
}
LITERAL: dict[str, dict[str, Any]] = {
    "WGAN-GP, weight .03": gc(weight=0.03, **WGAN_GP, **FAST),
    "WGAN-GP": gc(weight=0.3, **WGAN_GP, **FAST),
    "WGAN-GP, weight 3": gc(weight=3.0, **WGAN_GP, **FAST),
    "WGAN-GP of the loss": gc(weight=0.3, **WGAN_GP | {"of": "loss"}, **FAST),
    "WGAN-GP at examples": gc(weight=0.3, **WGAN_GP | {"at": "example"}, **FAST),
}
"""The literal reading of the paper, which comes from summaries, at three strengths and without each of its parts."""
AROUND: dict[str, dict[str, Any]] = {
    "train_on members": gc(weight=0.3, train_on="members", **FAST),
    "train_on forget": gc(weight=0.3, train_on="forget", **FAST),
    "weight .1": gc(weight=0.1, **FAST),
    "weight .5": gc(weight=0.5, **FAST),
    "weight .7": gc(weight=0.7, **FAST),
    "weight 1": gc(weight=1.0, **FAST),
    "weight 1, lr .03": gc(weight=1.0, **at(0.03)),
    "stay 5": gc(weight=0.5, stay=5.0, **FAST),
    "third_party 1": gc(weight=0.3, third_party=1.0, **FAST),
}
GENTLE: dict[str, dict[str, Any]] = {
    "weight .003": gc(weight=0.003, **FAST),
    "weight .01": gc(weight=0.01, **FAST),
    "weight .03": gc(weight=0.03, **FAST),
    "weight .1, lr .03": gc(weight=0.1, **at(0.03)),
}
"""For the classifier, where members have gradients smaller than others by orders of magnitude."""
WHOLE = {**BASELINES, **ABLATION, **LITERAL, **AROUND, **GENTLE}
"""The whole ablation, on SimCLR."""
AXES = ("finetune lr .1", "input, quantile", "input, square c=1", "WGAN-GP", "weight .5", "weight .7", "weight 1")
SETTINGS = {
    "simclr": {**BASELINES, **ABLATION, **LITERAL, **AROUND},
    "moco": {key: WHOLE[key] for key in AXES},
    "byol": {key: WHOLE[key] for key in AXES},
    "cross_entropy": {key: WHOLE[key] for key in (*AXES, *GENTLE, "neggrad lr .1", "scrub")},
}
"""Settings by family; the other families vary only the strength, which matters most."""
CHOSEN: dict[str, dict[str, Any]] = {
    **{key: WHOLE[key] for key in ("finetune", "finetune lr .1", "gradient_ascent", "neggrad lr .1")},
    "input, square c=1": WHOLE["input, square c=1"],
    "gradient_constraint": {"name": "gradient_constraint"},
}
"""Settings reported on other seeds: the defaults, baselines at their best rate, and the target of WGAN-GP."""
REPORTED = dict.fromkeys(FAMILIES, CHOSEN) | {"cross_entropy": CHOSEN | {"weight .03": WHOLE["weight .03"]}}


def worlds(seeds: tuple[int, ...], families: list[str]) -> list[World]:
    return [World(family, seed, HOME, epochs=EPOCHS[family]) for family in families for seed in seeds]


def train(families: list[str], jobs: int) -> None:
    tasks = []
    for world in worlds(SELECTION + REPORTING, families):
        oracles = 1 if world.seed in SELECTION or world.family in ("moco", "byol") else 2
        tasks += [(world, "original"), *((world, f"oracle-{k}") for k in range(1, oracles + 1))]
    originals = [(make, task) for task in tasks if task[1] == "original"]
    together(originals, jobs)
    together([(make, task) for task in tasks if task[1] != "original"], jobs)


def unlearn(seeds: tuple[int, ...], settings: dict[str, dict[str, dict[str, Any]]], jobs: int) -> None:
    tasks = [
        (make, (world, label, recipe))
        for world in worlds(seeds, list(settings))
        for label, recipe in settings[world.family].items()
    ]
    together(tasks, jobs)


def rows(seeds: tuple[int, ...], family: str, labels: list[str]) -> dict[str, Any]:
    """Mean and spread over the seeds of every model that was made for each of them."""
    table: dict[str, Any] = {}
    for label in ["original", "oracle-1", *labels]:
        made = [w for w in worlds(seeds, [family]) if (w.folder / label / "cell.json").exists()]
        cells = [measure(world, label) for world in made]
        good = [cell for cell in cells if "error" not in cell]
        row: dict[str, Any] = {"n": len(cells), "errors": [cell["error"] for cell in cells if "error" in cell]}
        for signal in good[0]["signals"] if good else ():
            row[signal] = {key: spread(c["signals"][signal][key] for c in good) for key in ("a0", "a1", "retained")}
        for key in ("knn", "accuracy", "average_gap", "share_of_steps"):
            row[key] = spread(cell.get(key) for cell in good)
        table[label] = row
    return table


def tables() -> None:
    result = {"machine": machine(), "selection_seeds": SELECTION, "reporting_seeds": REPORTING, "families": {}}
    for family in FAMILIES:
        result["families"][family] = {
            "selection": rows(SELECTION, family, list(SETTINGS[family])),
            "reporting": rows(REPORTING, family, list(REPORTED[family])),
        }
    write_json(RESULT, result)
    print(f"Written: {RESULT.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "select", "report", "tables"))
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.stage == "train":
        train(arguments.families, arguments.jobs)
    elif arguments.stage == "select":
        unlearn(SELECTION, {family: SETTINGS[family] for family in arguments.families}, arguments.jobs)
    elif arguments.stage == "report":
        unlearn(REPORTING, {family: REPORTED[family] for family in arguments.families}, arguments.jobs)
    else:
        tables()


if __name__ == "__main__":
    main()
