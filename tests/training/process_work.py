"""What tests/training/test_processes.py compares between one process and several.

torchrun --nproc-per-node 2 -m tests.training.process_work OUT
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface import api
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.errors import EffaceError
from efface.runs.folder import create_run_folder
from efface.training.augment import Views
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.launch import explain_ended_process
from efface.training.loop import Run, fit, train_steps
from efface.training.model import Model
from efface.training.objectives import OBJECTIVES
from efface.training.objectives.shared import ProjectorLayer
from efface.training.optim import Optim
from efface.training.processes import current_world, join_processes
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
RATES = {"barlow": 0.002, "vicreg": 0.001}
"""Learning rates of objectives whose loss is not of the size of 1; the others have 0.05."""
METHOD_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("simclr", {}),
    "margin_matching": ("simclr", {"forget_batch_size": 12, "steps": STEPS, "compared": 30}),
    "salun": ("cross_entropy", {"forget_batch_size": 8}),
    "gradient_constraint": ("simclr", {"forget_batch_size": 8, "epochs": 1}),
    "influence": ("cross_entropy", {"iterations": 3, "hessian_batches": 2}),
    "damp": ("cross_entropy", {"examples": 40}),
    "purge": ("cross_entropy", {}),
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


def normalize(size: int) -> dict[str, Tensor]:
    """BatchNorm in training on rows with large means: outputs, gradients and running statistics."""
    torch.manual_seed(5)
    x = (torch.randn(size, 4, 3, 3) * torch.tensor([1.0, 0.1, 5, 1]).view(1, 4, 1, 1) + 3).requires_grad_()
    norm, weights = nn.BatchNorm2d(4), torch.randn(size, 4, 3, 3)
    nn.init.normal_(norm.weight)
    y = current_world().spread(norm, x)
    (y * weights).sum().backward()
    of_weight, of_bias = (current_world().average(norm.get_parameter(name).grad) for name in ("weight", "bias"))
    return {"y": y.detach(), "x": x.grad, "weight": of_weight, "bias": of_bias, **norm.state_dict()}


class Killed(Exception):
    """Stands for the end of a process."""


def resume(path: Path) -> tuple[Model, Model, bool]:
    """Train three epochs at once, and with an interruption; whether this process wrote the file of the epochs."""

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 8:
            raise Killed

    settings, part = recipe("moco", epochs=3, batch_size=5), subsets()["forget"]
    whole = fit(settings.start(2), part, settings, Run(seed=2))
    with contextlib.suppress(Killed):
        fit(settings.start(2), part, settings, Run(seed=2, log=interrupt, resume_store=EpochStore(path)))
    return whole, fit(settings.start(2), part, settings, Run(seed=2, resume_store=EpochStore(path))), path.exists()


def write_folder(out: Path) -> list[str]:
    """Write a run folder, as every process does; then what happens if it exists already."""
    with create_run_folder(out, "verb: none\n") as folder:
        (folder / "log.jsonl").write_text(f"{current_world().rank}\n")
        said = [folder.parent.name, (folder / "config.yaml").read_text()]
    try:
        with create_run_folder(out, "verb: none\n"):
            said.append("written twice")
    except EffaceError as error:
        said.append(error.what)
    return said


def observe() -> dict[str, Any]:
    """Observe a model on the parts of a split."""
    x, y = images(120)
    data = Data.from_arrays(x, y)
    split = partition(data, train=40, valid=20, holdout=20, test=20, seed=0)
    split = select_forget_set(split, data, "@random:9", 0)
    model = recipe("simclr").start(0)
    return dict(api.observe(Checkpoint(model, recipe("simclr")), data, split, device="cpu").arrays)


def work(out: Path) -> dict[str, Any]:
    """Everything that is compared between one process and several."""
    found: dict[str, Any] = {}
    for name in sorted(OBJECTIVES):
        model, lines = train_objective(name)
        found[f"objective/{name}"] = {"state": model.state_dict(), "log": lines}
    for name in METHOD_CASES:
        model, lines = unlearn(name)
        found[f"method/{name}"] = {"state": model.state_dict(), "log": lines}
    world = current_world()
    whole, resumed, wrote = resume(out / f"epoch{world.rank}of{world.size}.pt")
    found["resume"] = {"whole": whole.state_dict(), "resumed": resumed.state_dict(), "wrote": wrote}
    found["norm"] = {size: normalize(size) for size in (8, 7, 3, 1)}
    found["folder"] = write_folder(out / f"run{world.size}")
    found["observed"] = observe()
    return found


def main(out: Path) -> None:
    """Do the work as one of several processes, and write what this one found."""
    torch.set_num_threads(1)
    world = join_processes("cpu")
    torch.save(work(out), out / f"rank{world.rank}.pt")
    world.lead(lambda: None)
    die(out)


def die(out: Path) -> None:
    """Kill the second process; the first one writes what it says of that."""
    world = current_world()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(100_000):
            world.average(torch.zeros(1))
    except (EffaceError, RuntimeError) as error:
        ended = error if isinstance(error, EffaceError) else explain_ended_process(error)
        (out / "ended.txt").write_text(str(ended))
        raise SystemExit(2) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
