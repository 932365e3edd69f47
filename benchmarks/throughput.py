"""Speed of SimCLR pretraining (against lightly's pipeline and bare networks), of the audit, and of --help.

    OMP_PROC_BIND=true python -m benchmarks.throughput [--rounds 5] [--batches 4] [--only audit]

Both pipelines train the same network on the same images with the same batch size, alternating in one process. The
standard pipeline is lightly's transform in a DataLoader with two workers and lightly's loss, in float32 as in its
examples. Quote the ratio. Batches that its workers prepared during efface's turn are not counted, and efface's turn
starts when the workers are idle. Each part runs in its own process: threads left behind by another part made the
verdict eight times slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import efface
from benchmarks.machine import RESULTS, machine, read_json, summary, write_json
from efface import api
from efface.stats import sweep
from efface.training import batch as training_batch
from efface.training import defaults, devices
from efface.training.augment import Views
from efface.training.loop import Run, train_step
from efface.training.model import Model
from efface.training.networks.backbones import Backbone
from efface.training.optim import Optim
from efface.training.recipe import Recipe
from efface.unlearning.protocol import task_loss

BATCH = 256
WORKERS = 2
QUEUED = 2 * WORKERS + 1
"""Batches that lightly's workers prepare ahead during efface's turn."""
IDLE = 4.0
"""Seconds after which they have prepared them."""
LARGE, LARGE_BATCH = ("vit_tiny_patch16_224", "resnet50"), 16
"""Networks of timm that take a step at 224 pixels, and its batch size."""
IMAGES = 20 * BATCH
"""A multiple of the batch size, so that every batch is full."""


class Stock(Dataset[Any]):
    """Images through lightly's SimCLR transform, as in its examples."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self.transform = SimCLRTransform(input_size=x.shape[-1], gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        image = Image.fromarray(self.x[row].transpose(1, 2, 0).squeeze()).convert("RGB")
        return self.transform(image)


def stock(model: Model, recipe: Recipe, x: np.ndarray) -> Iterator[int]:
    """Train with lightly's pipeline; yields the number of images in each step."""
    loss, optimizer = NTXentLoss(temperature=0.5), recipe.optim.build(model, 10_000)
    while True:
        loader = DataLoader(
            Stock(x), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, worker_init_fn=use_all_cores
        )
        for views in loader:
            a, b = (view[:, : recipe.channels] for view in views)
            loss(model(_raw(a)), model(_raw(b))).backward()
            optimizer.update()
            yield len(a)


def use_all_cores(number: int) -> None:
    """Let a worker run on every core: under OMP_PROC_BIND it would inherit the one core of the process that trains."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _raw(x: torch.Tensor) -> torch.Tensor:
    """Roughly undo lightly's normalization, so that both networks see numbers of the same scale."""
    return x * 0.25 + 0.5


def ours(model: Model, recipe: Recipe, x: np.ndarray, size: int = BATCH) -> Iterator[int]:
    """Train with efface's pipeline; yields the number of images in each step."""
    data = efface.Data.from_arrays(x, name="speed")
    part = training_batch.Subset.of(data, np.arange(len(x)), recipe.views, "train", torch.device("cpu"))
    run, optimizer = Run(bf16=model.bf16), recipe.optim.build(model, 10_000)
    for batch in part.cycle(size, run.rng("speed")):
        train_step(model, batch, task_loss(model), optimizer, run)
        yield len(batch)


def bare(model: Model, recipe: Recipe, x: np.ndarray, size: int = BATCH) -> Iterator[int]:
    """Forward and backward passes alone, on as many images as a step's two views: what no pipeline can exceed."""
    views = torch.from_numpy(x[: 2 * size]).float() / 255
    while True:
        model.zero_grad()
        model(views).square().mean().backward()
        yield size


def speed(steps: Iterator[int], count: int) -> float:
    """Images per second over ``count`` steps."""
    began = perf_counter()
    images = sum(next(steps) for _ in range(count))
    return images / (perf_counter() - began)


def settle(name: str, steps: Iterator[int]) -> None:
    """Before a turn: wait until lightly's workers have filled their queues, or discard the batches they prepared."""
    by_lightly = name.startswith("lightly")
    if not by_lightly:
        sleep(IDLE)
    for _ in range(QUEUED if by_lightly else 1):
        next(steps)


def pretraining(x: np.ndarray, rounds: int, batches: int) -> dict[str, Any]:
    """Images per second of both pipelines and of the bare network, and augmentation's share.

    In float32, and where it is faster in bfloat16.
    """
    channels, height, width = x.shape[1:]
    recipe = defaults.default_recipe(
        efface.Data.from_arrays(x[:16], name="speed"),
        "simclr",
        backbone=Backbone(name="resnet8", width=32, stride=2),
        batch_size=BATCH,
        optim=Optim(lr=0.06),
        views=Views(),
    )
    pays, sides = devices.prefers_bfloat16(torch.device("cpu")), dict[str, Iterator[int]]()
    for name, pipeline in (("efface", ours), ("lightly", stock), ("bare", bare)):
        for precision in ("float32", "bfloat16") if pays else ("float32",):
            model = recipe.start(0).train()
            model.bf16 = precision == "bfloat16"
            sides[f"{name} {precision}"] = pipeline(model, recipe, x)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, steps in sides.items():
            settle(name, steps)
            rates[name].append(speed(steps, batches))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    default = f"efface {'bfloat16' if pays else 'float32'}"
    return {
        "images": f"{channels}x{height}x{width}",
        "default": default,
        **{name: summary(values) for name, values in rates.items()},
        "ratio": middle[default] / middle["lightly float32"],
        "share of the bare network": middle[default] / middle[default.replace("efface", "bare")],
        "ratio in float32": middle["efface float32"] / middle["lightly float32"],
        **({"ratio in bfloat16": middle["efface bfloat16"] / middle["lightly bfloat16"]} if pays else {}),
        "augmentation_share_of_step": summary(augmentation_shares(x, recipe, rounds, batches, middle[default])),
    }


def augmentation_shares(x: np.ndarray, recipe: Recipe, rounds: int, batches: int, rate: float) -> list[float]:
    """Time to make two views of a batch, as a share of the time of a step at ``rate`` images per second."""
    clean = torch.from_numpy(x[:BATCH]).float() / 255
    generator, shares = torch.Generator().manual_seed(0), list[float]()
    for _ in range(rounds):
        began = perf_counter()
        for _ in range(2 * batches):
            recipe.views(clean, generator)
        shares.append((perf_counter() - began) / batches * rate / BATCH)
    return shares


def large_steps(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of a SimCLR step of a network of timm at 224 pixels, and of its bare forward and backward passes.

    A step also reads the pictures, makes the views, computes the loss and updates the weights.
    """
    x = np.random.default_rng(0).integers(0, 256, (4 * LARGE_BATCH, 3, 224, 224), dtype=np.uint8)
    backbone = Backbone(name=f"timm:{name}")
    data = efface.Data.from_arrays(x, name="speed")
    recipe = defaults.default_recipe(data, "simclr", backbone=backbone, batch_size=LARGE_BATCH)
    model = recipe.start(0).train()
    model.bf16 = devices.prefers_bfloat16(torch.device("cpu"))
    sides = {"step": ours(model, recipe, x, LARGE_BATCH), "bare": bare(model, recipe, x, LARGE_BATCH)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):  # the first round is not counted
        for side, passes in sides.items():
            began = perf_counter()
            next(passes)
            if number:
                seconds[side].append(perf_counter() - began)
    ratios = [step / alone for step, alone in zip(seconds["step"], seconds["bare"], strict=True)]
    found = {side: summary(values) for side, values in seconds.items()}
    return {"batch": LARGE_BATCH, "bf16": model.bf16, **found, "ratio": summary(ratios)}


def timed(job: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Seconds of a job, after one warm-up."""
    job()
    values = []
    for _ in range(rounds):
        began = perf_counter()
        job()
        values.append(perf_counter() - began)
    return summary(values)


def auditing(rounds: int) -> dict[str, Any]:
    """Observe 1 000 + 1 000 + 1 000 examples of one model, and judge two (A0)."""
    data = efface.load("fashion-mnist", limit=6000)
    split = efface.split(data, forget="@random:1000", train=2000, valid=500, holdout=1000, test=1000)
    recipe = defaults.default_recipe(data, "simclr", backbone=Backbone(name="resnet8", width=32, stride=2), epochs=1)
    original = efface.pretrain(data, split, recipe=recipe, device="cpu")
    after = efface.unlearn(original, data, split, "finetune", epochs=1, device="cpu")
    before, seen = (efface.observe(one, data, split, device="cpu") for one in (original, after))
    return {
        "observe_one_model": timed(lambda: efface.observe(after, data, split, device="cpu"), rounds),
        "judge": timed(lambda: api.judge_observations(before, seen), rounds),
    }


def parts(asked: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Each measurement by name."""
    scores = np.random.default_rng(0).normal(size=20_000)
    helped = [sys.executable, "-m", "efface", "--help"]
    color = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)

    def gray() -> np.ndarray:
        return efface.load("fashion-mnist", limit=IMAGES).x[:IMAGES]

    return {
        "help": lambda: timed(lambda: subprocess.run(helped, stdout=subprocess.DEVNULL, check=True), asked.rounds),
        "threshold_sweep_20000": lambda: timed(lambda: sweep(scores[:10_000] + 1, scores[10_000:]), asked.rounds),
        "pretraining gray": lambda: pretraining(gray(), asked.rounds, asked.batches),
        "pretraining color": lambda: pretraining(color, asked.rounds, asked.batches),
        "audit": lambda: auditing(asked.rounds),
        **{f"step {name}": partial(large_steps, name, asked.rounds) for name in LARGE},
    }


def main() -> None:
    """Measure, and write each result to ``benchmarks/results/throughput.json`` as soon as it is available."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="names of parts; the others keep their earlier results")
    asked = parser.parse_args()
    path = RESULTS / "throughput.json"
    result = read_json(path) if path.exists() else {}
    measures = parts(asked)
    if not asked.only:
        for name in measures:
            alone = [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:], "--only", name]
            # Under OMP_PROC_BIND this process sits on one core, and its children would inherit that.
            subprocess.run(alone, check=True, preexec_fn=lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)))
        return
    for name in asked.only:
        machine_of = machine() | {"command": "python -m benchmarks.throughput"}
        kept = {key: value for key, value in result.items() if key in measures}
        result = {"machine": machine_of, "threads": torch.get_num_threads(), **kept, name: measures[name]()}
        write_json(path, result)
        print(name, json.dumps(result[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
