"""Margin matching with a small or shifted V, with a class, a group or fewer examples as F, and on more images.

    python -m research.unseen make [--only CASE ...]     every case on its worlds
    python -m research.unseen tables                     research/results/unseen.json
    make docs                                            docs/results/frontier_tables.md

Defaults throughout. Worlds with a fifth of 500 images to forget are those of :mod:`research.frontier`. Resumable:
a model whose folder is complete is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import machine, write_json
from research.frontier import EPOCHS, REPORTING, SETTINGS, TWICE, rows
from research.gradient_constraint import HOME
from research.paths import RESULTS
from research.worlds import World, make, together

RESULT = RESULTS / "unseen.json"
MATCHING: dict[str, Any] = {"name": "margin_matching"}
FOREIGN = {name: SETTINGS[name] for name in ("alignment_calibration", "finetune lr .1")}
"""Methods to compare with where F is a class or a group."""
AS_MANY = {"alignment_calibration": 67, "gradient_constraint": 53, "finetune lr .1": 84}
"""Epochs on 2 000 images in which a method sees as many examples as margin matching at its defaults."""
LARGER = {
    **{name: SETTINGS[name] for name in TWICE},
    **{f"{name}, as many examples": SETTINGS[name] | {"epochs": epochs} for name, epochs in AS_MANY.items()},
    "batches of 100": MATCHING | {"forget_batch_size": 100},
}
"""Methods on more images, all with the same number of steps; beyond 100 examples in F its batch size matters."""

LATER = (15, 16, 17, 18, 19)
"""Seeds that were not used until the batch size was final."""
RIVALS = {name: SETTINGS[name] for name in ("alignment_calibration", "gradient_constraint", "finetune lr .1")}
"""The closest competitors on more images."""


@dataclass(frozen=True)
class Case:
    """Some worlds, and the settings that run in each of them."""

    families: tuple[str, ...]
    forget: str = "@random:0.2"
    train: int = 500
    epochs: int | None = None
    seeds: tuple[int, ...] = REPORTING
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def worlds(self, family: str) -> list[World]:
        """The worlds of one family."""
        epochs = self.epochs or EPOCHS[family]
        return [World(family, seed, HOME, self.train, self.forget, epochs) for seed in self.seeds]


def with_unseen(*kinds: str) -> dict[str, dict[str, Any]]:
    """Settings of margin matching with each kind of V."""
    return {f"V {kind}": MATCHING | {"unseen": kind} for kind in kinds}


CASES = {
    "V": Case(("simclr", "moco"), settings={"margin_matching": MATCHING} | with_unseen("fifty", "half the classes")),
    "class": Case(("simclr", "moco"), "@class:Sandal", settings=with_unseen("whole", "kind") | FOREIGN),
    "group": Case(("simclr", "moco"), "@group:light-4", settings=with_unseen("whole", "kind") | FOREIGN),
    "2000": Case(("simclr", "moco"), train=2000, epochs=250, settings={"margin_matching": MATCHING} | LARGER),
    "2000, later": Case(
        ("simclr", "moco"), train=2000, epochs=250, seeds=LATER, settings={"margin_matching": MATCHING} | RIVALS
    ),
    "10000": Case(
        ("simclr", "moco"), train=10_000, epochs=100, seeds=LATER[:1], settings={"margin_matching": MATCHING} | RIVALS
    ),
    "tenth": Case(("simclr", "moco"), "@random:0.1", 2000, 250, settings={"margin_matching": MATCHING} | FOREIGN),
}


def make_all(cases: list[str], families: list[str], jobs: int) -> None:
    """Make originals, then oracles and unlearned models, world after world."""
    tasks = []
    chosen = [(case, family) for case in cases for family in CASES[case].families if family in families]
    for case, family in chosen:
        for world in CASES[case].worlds(family):
            tasks.append([(make, (world, "original"))])
            tasks.append([(make, (world, f"oracle-{k}")) for k in (1, 2)])
            tasks[-1] += [(make, (world, label, recipe)) for label, recipe in CASES[case].settings.items()]
    if jobs == 1:
        together([task for some in tasks for task in some], 1)
        return
    for some in tasks:
        together(some, jobs)


def tables() -> None:
    """Write the results of every case that has models."""
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        for family in case.families:
            table = rows(case.worlds(family), case.settings)
            if table:
                about = {"forget": case.forget, "train": case.train, "epochs": case.epochs or EPOCHS[family]}
                found[f"{name}, {family}"] = about | {"seeds": list(case.seeds), "rows": table}
    write_json(RESULT, {"machine": machine(), "cases": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("make", "tables"))
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--families", nargs="+", default=["simclr", "moco"])
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.part == "tables":
        tables()
    else:
        make_all(arguments.only, arguments.families, arguments.jobs)


if __name__ == "__main__":
    main()
