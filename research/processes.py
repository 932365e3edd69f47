"""One model over two processes against one process: the largest difference of any weight or statistic.

    python -m research.processes

Every objective is trained for 20 steps and every method runs for about as many, on batches that do not divide evenly
among processes. Networks: a small one with BatchNorm and smooth activations, and for objectives also a ResNet-8 with
ReLU. There the control says what rounding alone does: one process, in which the last bits of the weights are changed
at random after each step, ten times. Planted bugs show what the comparison would find. Processes talk by gloo, on the
CPU, in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from benchmarks.machine import machine, write_json
from research.paths import RESULTS
from tests.tiny import VIT, given, recipe
from tests.training.process_work import STEPS, start, subsets, train_objective

from efface.training import collectives
from efface.training.loop import Run, train_steps
from efface.training.model import Model
from efface.training.objectives import OBJECTIVES
from efface.training.optim import Optim, ScheduledOptimizer
from efface.training.processes import World, current_world, join_processes
from efface.unlearning.methods import METHODS
from efface.unlearning.protocol import Needs, task_loss

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 17, "steps": STEPS, "forget_batch_size": 12, "forget_epochs": 3, "retain_epochs": 2,
    "iterations": 3, "hessian_batches": 2, "slices": 8,
}  # fmt: skip
"""Settings of methods, for those that have them: about 20 steps."""
RESNET_RATES = {"barlow": 0.005, "vicreg": 0.001}
"""Learning rates of the ResNet-8; the others have 0.05."""
CONTROLS = 10
"""Runs with other last bits."""
PLANTED = ("simclr", "moco", "byol", "barlow")

State = dict[str, torch.Tensor]


def unlearn(name: str) -> Model:
    """Run a method at its default rate, from the small network where it does not train a fresh one."""
    known = set(inspect.signature(METHODS[name]).parameters)
    method = METHODS[name](**{key: value for key, value in SETTINGS.items() if key in known})
    labels = Needs.LABELS in method.needs
    made = recipe("cross_entropy" if labels else "simclr", epochs=3, batch_size=17)
    model = start("cross_entropy" if labels else "simclr")
    if Needs.ATTENTION in method.needs:
        model = recipe("cross_entropy", backbone=VIT).start(0)
    run = Run(seed=4)
    model.world = run.world
    return method.unlearn(model, given(method, subsets(), made), run)


class LastBits:
    """Changes the last bit of weights at random after each step, as another order of sums would."""

    def __init__(self, number: int) -> None:
        self.rng = torch.Generator().manual_seed(number)

    @torch.no_grad()
    def on_step_end(self, model: Model, optimizer: ScheduledOptimizer) -> None:
        """Change them."""
        for weight in model.trainable_parameters():
            weight.mul_(1 + 2.0**-23 * torch.randint(-1, 2, weight.shape, generator=self.rng))


def train_resnet(name: str, nudge: int = 0) -> Model:
    """Train a ResNet-8 by an objective; ``nudge``: the number of a run whose weights get other last bits."""
    run, part, model = Run(seed=3), subsets()["retain"], recipe(name).start(0)
    if nudge:
        run.callbacks.append(LastBits(nudge))
    optimizer = Optim(lr=RESNET_RATES.get(name, 0.05)).build(model, STEPS)
    train_steps(model, islice(part.cycle(15, run.rng("train")), STEPS), task_loss(model), optimizer, run)
    return model


def keep(model: Model) -> State:
    """Copy all weights and statistics."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def work() -> dict[str, State]:
    """What is compared between one process and two."""
    found = {f"objective/{name}": keep(train_objective(name)[0]) for name in sorted(OBJECTIVES)}
    found |= {f"method/{name}": keep(unlearn(name)) for name in sorted(METHODS) if name != "shards"}
    found |= {f"resnet/{name}": keep(train_resnet(name)) for name in sorted(OBJECTIVES)}
    return found


@contextlib.contextmanager
def planted(bug: str) -> Iterator[None]:
    """Plant a bug that such code may have."""

    def keep_own_gradient(own: torch.Tensor, parts: collectives.Parts) -> torch.Tensor:
        full = collectives.all_gather_rows(own.detach(), parts)
        full[parts[current_world().rank]] = own
        return full

    if bug == "local BatchNorm":
        with mock.patch.object(collectives, "batch_statistics_together", contextlib.nullcontext):
            yield
    elif bug == "negatives without gradient":
        with mock.patch.object(collectives, "gather_rows", keep_own_gradient):
            yield
    else:
        with (
            mock.patch.object(World, "compute_terms", lambda self, model, terms, batch: terms(batch)),
            mock.patch.object(World, "backward", lambda self, total: total.backward()),
        ):
            yield


BUGS = ("local BatchNorm", "negatives without gradient", "gradients not averaged")


def two(out: Path) -> None:
    """Do the work as one of two processes; the first one writes."""
    torch.set_num_threads(1)
    world = join_processes("cpu")
    found: dict[str, Any] = {"work": work(), "planted": {}}
    for bug in BUGS:
        with planted(bug):
            found["planted"][bug] = {name: keep(train_objective(name)[0]) for name in PLANTED}
    if world.leads:
        torch.save(found, out)


def difference(a: State, b: State) -> float:
    """Largest difference of any number."""
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def main() -> None:
    """Run one process and two, and write the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--two", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.two:
        two(asked.two)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "two.pt"
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        subprocess.run([*words, "-m", "research.processes", "--two", str(out)], check=True, env=environment)
        shared = torch.load(out, weights_only=False)
    alone = work()
    rows = {name: {"difference": difference(alone[name], shared["work"][name])} for name in alone}
    for name in sorted(OBJECTIVES):
        nudged = [keep(train_resnet(name, number)) for number in range(1, CONTROLS + 1)]
        found = sorted(difference(alone[f"resnet/{name}"], one) for one in nudged)
        rows[f"resnet/{name}"] |= {"least": found[0], "median": statistics.median(found), "most": found[-1]}
    bugs = {
        bug: {name: difference(alone[f"objective/{name}"], state) for name, state in states.items()}
        for bug, states in shared["planted"].items()
    }
    write_json(RESULTS / "processes.json", {"machine": machine(), "steps": STEPS, "rows": rows, "planted": bugs})


if __name__ == "__main__":
    main()
