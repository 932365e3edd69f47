"""How long a request of every size takes, as a share of training its original: processor time, alternating.

    python -m research.request_times [--families simclr,moco,resnet,vit,clip] [--repeats 3]

Rows of ``research.every_size`` were measured while other processes ran, so that their wall times are no measure. Here
each repeat trains an original of the family for a few epochs and answers one request of each size with each method, one
after the other in one process on one thread, and counts the processor's seconds. Worlds are those of that experiment.

Resumable: a row that is in research/results/request_times.json is not measured again.
"""

from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Annotated, Any

import torch
import typer
from benchmarks.machine import add_row, summary
from research.banked_worlds import BankedWorld
from research.every_size import METHODS, SIZES, fits, list_requests, unlearn
from research.paths import RESULTS

from efface import api

RESULT = RESULTS / "request_times.json"
EPOCHS_TIMED = 3
"""Epochs of training in each repeat; an original's time is that of one of them times its number of epochs."""
TRAINED = ("original", "retrain")


def measure(world: BankedWorld, repeats: int) -> dict[str, Any]:
    """Processor seconds of the whole training, and of a request by method and size."""
    recipe, asked = world.original.recipe, sorted(SIZES)
    short = replace(recipe, epochs=EPOCHS_TIMED)
    methods = [name for name in METHODS if name not in TRAINED and fits(name, world.family)]
    wanted = [(name, size) for name in methods for size in asked if list_requests(name, world.family).get(size)]
    training, spent = list[float](), {one: list[float]() for one in wanted}
    for repeat in range(repeats):
        began = process_time()
        api.pretrain(world.data, world.split, recipe=short, seed=repeat, device="cpu")
        training.append((process_time() - began) / EPOCHS_TIMED * recipe.epochs)
        for name, size in wanted:
            rows = world.draw(1, size)[0]
            began = process_time()
            unlearn(world, name, rows, repeat)
            spent[name, size].append(process_time() - began)
    whole = summary(training)
    return {
        "training": whole,
        "requests": [
            {"method": name, "size": size, **summary(times), "share": summary(times)["median"] / whole["median"]}
            for (name, size), times in spent.items()
        ],
    }


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = "simclr,moco",
    worlds: Annotated[str, typer.Option(help="Seeds of their originals, with commas; one of each family.")] = "1",
    repeats: Annotated[int, typer.Option(help="How often each is timed.")] = 3,
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        for world in map(int, worlds.split(",")):
            about = {"family": family, "world": world}
            add_row(RESULT, about, lambda about=about: measure(BankedWorld(about["family"], about["world"]), repeats))


if __name__ == "__main__":
    typer.run(main)
