"""Speed of SimCLR pretraining in one process and in several: images per second of all processes together.

    python -m benchmarks.processes [--processes 2] [--rounds 3] [--batches 4] [--device cpu]

The same network, batch and views in each; N processes have N times the threads of one (``--threads`` each). One process
and several take turns, each in processes of its own. Quote the ratio, the number of cores or GPUs, and the load: on a
busy machine the ratio says little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.machine import RESULTS, machine, summary, write_json
from efface.training.augment import Views
from efface.training.batch import Subset
from efface.training.devices import resolve_device
from efface.training.loop import Run, train_steps
from efface.training.networks.backbones import Backbone
from efface.training.objectives import SimClr
from efface.training.processes import join_processes
from efface.training.recipe import Recipe
from efface.unlearning.protocol import task_loss

BATCH = 128


def measure(device_name: str, threads: int, rounds: int, batches: int, out: Path) -> None:
    """Train as one of the processes of a launcher; the first one writes the images per second of each round."""
    torch.set_num_threads(threads)
    world, device = join_processes(device_name), resolve_device(device_name)
    x = np.random.default_rng(0).integers(0, 256, (4 * BATCH, 3, 32, 32), np.uint8)
    recipe = Recipe(
        objective=SimClr(), backbone=Backbone(name="resnet18", width=32), channels=3, size=(32, 32), classes=0,
        views=Views(), batch_size=BATCH,
    )  # fmt: skip
    model, run = recipe.start(0).to(device), Run(device=device)
    subset = Subset(torch.from_numpy(x), torch.arange(len(x)), recipe.views, device=device)
    served, optimizer = subset.cycle(BATCH, run.rng("train")), recipe.optim.build(model, (rounds + 1) * batches)
    rates: list[float] = []
    for number in range(rounds + 1):  # the first round is not counted
        began = perf_counter()
        train_steps(model, islice(served, batches), task_loss(model), optimizer, run)
        if number:
            rates.append(batches * BATCH / (perf_counter() - began))
    if world.leads:
        out.write_text(json.dumps(rates))


def turn(count: int, asked: argparse.Namespace) -> list[float]:
    """Start ``count`` processes and return what they measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rates.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        words = ["--measure", str(out), "--device", asked.device, "--threads", str(asked.threads)]
        words += ["--rounds", str(asked.rounds), "--batches", str(asked.batches)]
        environment = os.environ | {"OMP_NUM_THREADS": str(asked.threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        subprocess.run([sys.executable, *launcher, "-m", "benchmarks.processes", *words], check=True, env=environment)
        return json.loads(out.read_text())


def main() -> None:
    """Measure one process and several in turn, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.device, asked.threads, asked.rounds, asked.batches, asked.measure)
        return
    rates: dict[int, list[float]] = {1: [], asked.processes: []}
    for _ in range(2):
        for count in rates:
            rates[count] += turn(count, asked)
    result: dict[str, Any] = {
        "machine": machine() | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "images": f"batch {BATCH}, 32 x 32 in color, ResNet-18 of width 32, {asked.device}, float32",
        "threads": asked.threads,
        "processes": asked.processes,
        "one": summary(rates[1]),
        "several": summary(rates[asked.processes]),
        "ratio": statistics.median(rates[asked.processes]) / statistics.median(rates[1]),
    }
    write_json(RESULTS / "processes.json", result)
    print(json.dumps(result["ratio"]))


if __name__ == "__main__":
    main()
