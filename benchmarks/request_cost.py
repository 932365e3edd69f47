"""What one request costs: exact counts, for requests of 1 to 100 among 1 000 to 1 000 000 examples.

    python -m benchmarks.request_cost [--largest 1000000]      benchmarks/results/request_cost.json
    make docs                                                  docs/results/small_requests.md

``margin_matching`` at its defaults on noise images of 8x8 pixels and a small network, as if the original had been
trained for 100 epochs in batches of 256. Counted are optimizer steps, the images that go through the backbone with and
without gradient, and the different examples of each set whose pixels are read. ``plain passes`` is the work in plain
SimCLR steps: both views of 256 images, forward and backward, a backward pass counting as two forward ones. No training
comes before: the cost does not depend on the weights. Seconds of a process on this machine are given for orientation.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import RESULTS, machine, write_json
from efface.training.augment import Views
from efface.training.batch import Batch, Subset
from efface.training.loop import Run
from efface.training.networks.backbones import Backbone
from efface.training.objectives import SimClr
from efface.training.recipe import Recipe
from efface.unlearning.methods import MarginMatching
from efface.unlearning.protocol import MethodInputs

RESULT = RESULTS / "request_cost.json"
SIDE, EPOCHS, BATCH, UNSEEN = 8, 100, 256, 500
FORGET, OTHERS = (1, 10, 100), (1_000, 100_000, 1_000_000)
RECIPE = Recipe(
    objective=SimClr(dim=8),
    backbone=Backbone(name="resnet8", width=8, stride=1),
    channels=1,
    size=(SIDE, SIDE),
    classes=10,
    epochs=EPOCHS,
    batch_size=BATCH,
    views=Views(crop=(0.6, 1.0)),
)
Row = dict[str, Any]


@dataclass
class Counter:
    """Images through a network, with and without gradient."""

    trained: int = 0
    shown: int = 0

    def watch(self, module: nn.Module) -> None:
        """Count the images of every call of a module, also of its copies."""
        module.register_forward_hook(self)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count one call."""
        if output.requires_grad:
            self.trained += len(inputs[0])
        else:
            self.shown += len(inputs[0])

    def __deepcopy__(self, _memo: dict[int, Any]) -> Counter:
        return self


@dataclass(frozen=True, eq=False)
class WatchedSubset(Subset):
    """A subset that remembers which of its rows were read."""

    read: set[int] = None  # pyright: ignore[reportAssignmentType]

    def batch(self, rows: Tensor, rng: torch.Generator) -> Batch:
        """Make a batch, and remember its rows."""
        self.read.update(rows.tolist())
        return super().batch(rows, rng)


def measure(forgotten: int, others: int) -> Row:
    """Unlearn once, and count."""
    total = forgotten + others + UNSEEN
    x = torch.randint(0, 256, (total, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    order = torch.arange(total)
    cuts = {"forget": order[:forgotten], "valid": order[forgotten : forgotten + UNSEEN], "retain": order[-others:]}
    parts = {name: WatchedSubset(x, ids, RECIPE.views, name=name, read=set()) for name, ids in cuts.items()}
    model, counter, run, method = RECIPE.start(0), Counter(), Run(seed=0), MarginMatching()
    counter.watch(model.backbone)
    began = process_time()
    method.unlearn(model, MethodInputs(method.needs, dict(parts), RECIPE), run)
    seconds = process_time() - began
    retraining = EPOCHS * -(-others // BATCH)
    work = 3 * counter.trained + counter.shown
    return {
        "forget": forgotten,
        "others": others,
        "steps": run.training_cost.steps,
        "images with gradient": counter.trained,
        "images without": counter.shown,
        "read": {name: len(part.read) for name, part in parts.items()},
        "plain passes": round(work / (6 * BATCH), 2),
        "plain passes a step": round(work / (6 * BATCH) / run.training_cost.steps, 3),
        "share of retraining": work / (6 * others * EPOCHS),
        "retraining steps": retraining,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Count for all sizes, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="Largest number of other examples.")
    largest = parser.parse_args().largest
    torch.set_num_threads(1)
    rows = []
    for others in OTHERS:
        for forgotten in FORGET if others <= largest else ():
            rows.append(measure(forgotten, others))
            print(rows[-1], flush=True)
            write_json(RESULT, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
