"""What each process of tests/training/test_processes.py does: train, and write the weights of the first one.

python -m tests.training.process_work OUT            one process
torchrun --nproc-per-node 2 -m tests.training.process_work OUT
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.training.augment import Views
from efface.training.batch import Subset
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.objectives import OBJECTIVES
from efface.training.objectives.shared import ProjectorLayer
from efface.training.optim import Optim
from efface.training.processes import join_processes
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import MethodInputs, task_loss
from tests.tiny import CLASSES, SMALL, captions, images, recipe

STEPS = 20
G, N, P, L = ProjectorLayer.GELU, ProjectorLayer.NORM, ProjectorLayer.PLAIN, ProjectorLayer.LINEAR
SMOOTH: dict[str, dict[str, Any]] = {
    "barlow": {"layers": (P, N, G, P)},
    "byol": {"layers": (P, N, G, P)},
    "moco": {"layers": (L, G, L)},
    "simclr": {"layers": (L, G, L)},
    "simsiam": {"layers": (P, N, G, P, ProjectorLayer.BARE)},
    "vicreg": {"layers": (P, N, G, P)},
}
"""Projectors without a kink: where an activation is within a rounding of zero, a ReLU turns it into a step."""
RATES = {"barlow": 0.005, "vicreg": 0.001}
"""Learning rates of objectives whose loss is not of the size of 1; the others have 0.05."""
METHOD_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("simclr", {}),
    "margin_matching": ("simclr", {"forget_batch_size": 12, "steps": STEPS}),
    "salun": ("cross_entropy", {"forget_batch_size": 8}),
    "gradient_constraint": ("simclr", {"forget_batch_size": 8, "epochs": 1}),
    "influence": ("cross_entropy", {"iterations": 3, "hessian_batches": 2}),
}
"""Method to the objective of its checkpoint, and settings."""


def subsets() -> dict[str, Subset]:
    """The examples, with views that differ in every batch."""
    x, y = images(180)
    views, pixels, labels, text = Views(crop=(0.5, 1.0)), torch.from_numpy(x), torch.from_numpy(y), captions(y)
    cuts = {"retain": (0, 110), "forget": (110, 135), "valid": (135, 180)}
    return {name: Subset(pixels, torch.arange(a, b), views, labels, text, name=name) for name, (a, b) in cuts.items()}


def start(name: str) -> Model:
    """A small convolutional network with BatchNorm and without ReLU."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    objective = replace(SMALL[name], **SMOOTH.get(name, {}))
    return objective.build_model(backbone, 16, CLASSES, torch.full((1,), 0.3), torch.full((1,), 0.2))


def train_objective(name: str) -> tuple[Model, list[dict[str, Any]]]:
    """Train an objective for some steps on batches that do not divide evenly."""
    lines: list[dict[str, Any]] = []
    run, model, part = Run(seed=3, log=lines.append), start(name), subsets()["retain"]
    optimizer = Optim(lr=RATES.get(name, 0.05)).build(model, STEPS)
    train_steps(model, islice(part.cycle(15, run.rng("train")), STEPS), task_loss(model), optimizer, run)
    return model, lines


def unlearn(method: str) -> tuple[Model, list[dict[str, Any]]]:
    """Unlearn by a method for some steps."""
    objective, settings = METHOD_CASES[method]
    lines: list[dict[str, Any]] = []
    run, parts, model = Run(seed=4, log=lines.append), subsets(), start(objective)
    names = {one.name for one in fields(METHODS[method])}
    chosen = METHODS[method](**{k: v for k, v in ({"epochs": 3, "batch_size": 17} | settings).items() if k in names})
    model.world = run.world
    return chosen.unlearn(model, MethodInputs(chosen.needs, parts, recipe(objective, epochs=20)), run), lines


def main(out: Path) -> None:
    """Do the work, and write what the first process has."""
    torch.set_num_threads(1)
    world = join_processes("cpu")
    found: dict[str, Any] = {}
    for name in sorted(OBJECTIVES):
        model, lines = train_objective(name)
        found[f"objective/{name}"] = {"state": model.state_dict(), "log": lines}
    for name in METHOD_CASES:
        model, lines = unlearn(name)
        found[f"method/{name}"] = {"state": model.state_dict(), "log": lines}
    torch.save(found, out / f"rank{world.rank}of{world.size}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
