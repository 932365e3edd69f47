"""Where margin matching ends: how far forgotten examples are from unseen ones, without the luck of one holdout.

    python -m research.unseen_gap [--families digits,simclr] [--seed 100] [--settings NAME] [--size 5 --count 16]

An AUC against a holdout says how well a method did and how V happens to differ from that holdout (with 300 of V, a
fiftieth either way). Here the margins of F are compared with those of V itself, as an audit computes them, in views
that no step saw: mean F - mean V over the standard deviation of never-trained margins. 0 is the goal; .1 is about .03
of an AUC. Originals and requests are those of ``research.step_rates``, whose seeds no other table reports.

Resumable: a row that is in research/results/unseen_gap.json is not measured again.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research.banked_worlds import BankedWorld
from research.paths import RESULTS
from research.request_sizes import WATCH
from research.step_rates import REQUESTS, SEED

from efface import api
from efface.auditing.observers.model_observer import ModelObserver
from efface.data.split import Split
from efface.training.checkpoint import Checkpoint
from efface.training.optim import Optim, OptimizerType

RESULT = RESULTS / "unseen_gap.json"


def earlier(backbone: float, output: float, multiplier: float) -> dict[str, Any]:
    """Settings of before the agreement of views was matched, weights averaged and a line searched."""
    weights = {"backbone": backbone, "output": output, "multiplier": multiplier}
    return weights | {"alignment": 0.0, "averaged": 0.0, "line_search": False}


GENTLE = Optim(rule=OptimizerType.ADAMW, lr=5e-4, warmup=0.25, momentum=0.5, clip=5.0)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "before": None,
    "default": {},
    "default, without averaged weights": {"averaged": 0.0},
    "default, compared with 460 of V": {"compared": 460},
    "rate .0005, warm-up, no line search": {"optim": GENTLE, "averaged": 0.0, "line_search": False},
    "weights 1 and 4, multiplier .04": earlier(1.0, 4.0, 0.04),
    "weights 2 and 3, multiplier .04": earlier(2.0, 3.0, 0.04),
    "weights 2 and 3, multiplier .08": earlier(2.0, 3.0, 0.08),
    "weights 2 and 3, multiplier .02": earlier(2.0, 3.0, 0.02),
    "weights 2 and 3, multiplier 0": earlier(2.0, 3.0, 0.0),
}
"""Rows of the result that are marked as earlier are of forms of the method that no settings give any more."""
VIEWS, DRAWS, COMPARED = 5, 3, 800
"""Views of an example, how often they are drawn, and never-trained examples that say what a standard deviation is."""


@torch.no_grad()
def measure_gaps(original: Checkpoint, model: Checkpoint, world: BankedWorld, split: Split) -> dict[str, float]:
    """Mean margin of F less that of V in each space, in standard deviations, averaged over draws of the views."""
    views, found = original.recipe.views, dict[str, list[float]]()
    model.model.eval()
    observer = ModelObserver(model.model, world.data, views, WATCH, None)
    observer.build_bank(split.valid)
    bank_rows = torch.arange(len(split.valid))

    def look(positions: np.ndarray, seed: int, own: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        images = observer.images(positions).repeat_interleave(VIEWS, 0)
        drawn = views(images, torch.Generator().manual_seed(seed))
        return observer.similarities(positions, drawn.view(len(positions), VIEWS, *drawn.shape[1:]), own)

    for draw in range(DRAWS):
        f, v = look(split.forget, draw), look(split.valid, 100 + draw, bank_rows)
        never = look(split.holdout[:COMPARED], 200 + draw)
        for space in observer.spaces:
            name = f"{space}.margin"
            found.setdefault(name, []).append(float((f[name].mean() - v[name].mean()) / never[name].std()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure(world: BankedWorld, settings: dict[str, Any] | None, count: int, size: int) -> dict[str, Any]:
    """Unlearn requests of a world with some settings; mean gap and its standard deviation over requests."""
    gaps = dict[str, list[float]]()
    requests = world.draw(count, size)
    for number, rows in enumerate(requests):
        split, model = world.request(rows), world.original
        if settings is not None:
            model = api.unlearn(
                world.original, world.data, split, "margin_matching", seed=7000 + number, device="cpu", **settings
            )
        for name, gap in measure_gaps(world.original, model, world, split).items():
            gaps.setdefault(name, []).append(gap)
    return {
        "requests": len(requests),
        "gap": {name: [round(float(np.mean(v)), 4), round(float(np.std(v, ddof=1)), 4)] for name, v in gaps.items()},
    }


def main(
    families: Annotated[str, typer.Option(help="Families, with commas.")] = "digits,simclr",
    seed: Annotated[int, typer.Option(help="Seed of the originals.")] = SEED,
    settings: Annotated[str, typer.Option(help="Only settings whose name contains this.")] = "",
    size: Annotated[int | None, typer.Option(help="Examples in a request; by default as in step_rates.")] = None,
    count: Annotated[int, typer.Option(help="Requests, where a size is given.")] = 16,
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for family in families.split(","):
        world = BankedWorld(family, seed, bank=False)
        asked = REQUESTS[family] if size is None else (count, size)
        for name in (name for name in SETTINGS if settings in name):
            about = {"family": family, "seed": seed, "size": asked[1], "settings": name}
            add_row(RESULT, about, partial(measure, world, SETTINGS[name], *asked))


if __name__ == "__main__":
    typer.run(main)
