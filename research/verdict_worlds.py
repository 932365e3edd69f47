"""Small real encoders for which it is known whether they forgot: over-fitted SimCLR on digits, and altered copies.

    python -m research.verdict_worlds --seed 0

makes every model of one seed, each in a folder; complete folders are not made again. Used by ``research.verdicts``.

* ``oracle-1``, ``oracle-2``: retrained without F. True answer: removed.
* ``original``, ``batchnorm`` (statistics estimated again on R), ``head`` (a new random projector), ``noise-S``
  (Gaussian noise on the features, S times their standard deviation): weights trained on F. True answer: residue.
* ``half``: retrained without one half of F. True answer: residue (half of it).
* ``pushed``: oracle-1, then driven away from F (NegGrad). True answer: over-forgotten. ``overdone``: the same from the
  original.
* ``collapsed``: one embedding for every image; ``destroyed``: gradient ascent on F until no signal is left. True
  answer: anything but removed, because the model is useless.
* ``finetune``, ``gradient_constraint``: methods; the true answer is unknown.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from benchmarks.machine import write_json
from research.paths import RUNS
from research.small_digits import DIGITS
from torch import Tensor, nn

import efface
from efface import config
from efface.auditing.observations import Observations
from efface.auditing.observers.relearn import RelearnPart, RelearnSettings, relearn_model
from efface.auditing.observers.settings import ObservationSettings
from efface.data.split import Split
from efface.training import batch as training_batch
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import build_recipe
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives import CHOICES
from efface.training.optim import Optim, Schedule
from efface.unlearning.methods import GradientAscent, NegGrad

HOME = RUNS / "verdicts"
SIZES: dict[str, Any] = {"train": 650, "valid": 150, "holdout": 850, "test": 147}
FORGET = "@random:300"
WATCH = ObservationSettings(gradient=False)
NOISE = (0.5, 1.0, 2.0)
RELEARN = RelearnSettings(steps=80, every=16)
RELEARNED = ("original", "finetune", "gradient_constraint", "oracle-1", "oracle-2", "head", "overdone")


@cache
def divided(seed: int) -> tuple[Any, Split]:
    """Digits, split with nearly half of the training examples to forget; each seed gives another split."""
    data = efface.load("digits")
    return data, efface.split(data, forget=FORGET, seed=seed, **SIZES)


def folder(seed: int, name: str) -> Path:
    return HOME / f"seed-{seed}" / name


def load(seed: int, name: str) -> Checkpoint:
    return Checkpoint.load(folder(seed, name))


def seen(seed: int, name: str) -> Observations:
    return Observations.load(folder(seed, name) / "observations.npz")


class Noisy(nn.Module):
    """A backbone with Gaussian noise on its output, drawn anew at each call."""

    scale: Tensor

    def __init__(self, backbone: nn.Module, scale: Tensor, seed: int) -> None:
        super().__init__()
        self.backbone, self.draw = backbone, torch.Generator().manual_seed(seed)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Features with fresh noise."""
        features = self.backbone(x)
        return features + self.scale * torch.randn(features.shape, generator=self.draw)


class Constant(nn.Module):
    """A backbone that gives every image the same embedding."""

    answer: Tensor

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.register_buffer("answer", answer)

    def forward(self, x: Tensor) -> Tensor:
        """The same embedding for each image."""
        return self.answer.expand(len(x), -1)


# ---- one function per model: seed to checkpoint ----


def original(seed: int) -> Checkpoint:
    data, split = divided(seed)
    regime = DIGITS["recipe"]
    recipe = build_recipe(data, regime["objective"]["name"], regime)
    return efface.pretrain(data, split, recipe=recipe, seed=seed, device="cpu")


def oracle(seed: int, turn: int) -> Checkpoint:
    data, split = divided(seed)
    return efface.unlearn(load(seed, "original"), data, split, "retrain", seed=1000 * turn + seed, device="cpu")


def half(seed: int) -> Checkpoint:
    data, split = divided(seed)
    kept, gone = split.forget[::2], split.forget[1::2]
    other = replace(split, forget=gone, retain=np.sort(np.concatenate([split.retain, kept])))
    return efface.unlearn(load(seed, "original"), data, other, "retrain", seed=9000 + seed, device="cpu")


def pushed(seed: int, start: str) -> Checkpoint:
    data, split = divided(seed)
    away = NegGrad(beta=0.5, epochs=40, optim=Optim(lr=0.02, clip=5.0))
    return efface.unlearn(load(seed, start), data, split, away, device="cpu")


def destroyed(seed: int) -> Checkpoint:
    data, split = divided(seed)
    optim = Optim(lr=0.02, weight_decay=0.0, schedule=Schedule.CONSTANT)
    return efface.unlearn(load(seed, "original"), data, split, GradientAscent(epochs=10, optim=optim), device="cpu")


def method(seed: int, name: str) -> Checkpoint:
    data, split = divided(seed)
    return efface.unlearn(load(seed, "original"), data, split, name, device="cpu")


def changed(seed: int, change: Callable[[Model, int], None]) -> Checkpoint:
    """The original with its model changed in place, on a copy."""
    start = load(seed, "original")
    model = copy.deepcopy(start.model).eval()
    with torch.no_grad():
        change(model, seed)
    return replace(start, model=model)


def views_of_retained(seed: int, model: Model, passes: int = 5) -> list[Tensor]:
    data, split = divided(seed)
    part = training_batch.Subset.of(
        data, split.retain, load(seed, "original").recipe.views, "retain", model.mean.device
    )
    rng = Run(seed=seed).rng("statistics")
    return [batch.view(0) for _ in range(passes) for batch in part.batches(128, rng)]


def estimate_batchnorm(seed: int, model: Model, *parts: nn.Module) -> None:
    """Set the BatchNorm statistics of ``parts`` to averages over views of R alone."""
    norms = [m for part in parts for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for view in views_of_retained(seed, model):
        model(view)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def batchnorm(model: Model, seed: int) -> None:
    estimate_batchnorm(seed, model, model.backbone, model.head)


def head(model: Model, seed: int) -> None:
    model.head = load(seed, "original").recipe.start(seed + 500).head.eval()
    estimate_batchnorm(seed, model, model.head)


def noisy(size: float) -> Callable[[Model, int], None]:
    def change(model: Model, seed: int) -> None:
        features = torch.cat([model.features(view) for view in views_of_retained(seed, model, 1)])
        model.backbone = Noisy(model.backbone, size * features.std(0), seed)

    return change


def collapsed(model: Model, seed: int) -> None:
    features = torch.cat([model.features(view) for view in views_of_retained(seed, model, 1)])
    model.backbone = Constant(features.mean(0))


MODELS: dict[str, Callable[[int], Checkpoint]] = {
    "original": original,
    "oracle-1": lambda seed: oracle(seed, 1),
    "oracle-2": lambda seed: oracle(seed, 2),
    "half": half,
    "finetune": lambda seed: method(seed, "finetune"),
    "gradient_constraint": lambda seed: method(seed, "gradient_constraint"),
    "overdone": lambda seed: pushed(seed, "original"),
    "pushed": lambda seed: pushed(seed, "oracle-1"),
    "destroyed": destroyed,
    "batchnorm": lambda seed: changed(seed, batchnorm),
    "head": lambda seed: changed(seed, head),
    **{f"noise-{size:g}": lambda seed, size=size: changed(seed, noisy(size)) for size in NOISE},
    "collapsed": lambda seed: changed(seed, collapsed),
}
"""In the order in which they are made."""
STORED = ("original", "oracle-1", "oracle-2", "finetune", "gradient_constraint", "overdone", "head")


def make(seed: int, name: str) -> None:
    """Make and observe one model, unless its folder is complete."""
    home = folder(seed, name)
    if (home / "cell.json").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    began = monotonic()
    data, split = divided(seed)
    made = MODELS[name](seed)
    efface.observe(made, data, split, WATCH, device="cpu").save(home / "observations.npz")
    if name in STORED:
        made.save(home)
    cell = {"seed": seed, "name": name, "cost": vars(made.training_cost), "seconds": round(monotonic() - began, 1)}
    if name == "original":
        cell["recipe"] = config.dump(made.recipe, CHOICES)
    write_json(home / "cell.json", cell)
    print(f"seed {seed}  {name:20} {cell['seconds']:6.1f} s", flush=True)


def relearn(seed: int, name: str, on: RelearnPart) -> None:
    """Continue training a copy of one model, and save its observations along the way."""
    home = folder(seed, name) / f"relearn-{on.value}"
    if (home / "done").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    began = monotonic()
    data, split = divided(seed)
    settings = replace(RELEARN, on=on)
    for step, look in relearn_model(load(seed, name), data, split, settings, replace(WATCH, views=6), seed=seed):
        look.save(home / f"{step:05d}.npz")
    (home / "done").touch()
    print(f"seed {seed}  {name:20} relearn on {on.value} {monotonic() - began:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--relearn", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in MODELS:
        if name in arguments.only:
            make(arguments.seed, name)
    if arguments.relearn:
        for on in RelearnPart:
            for name in RELEARNED:
                relearn(arguments.seed, name, on)


if __name__ == "__main__":
    main()
