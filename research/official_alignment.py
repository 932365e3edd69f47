"""Alignment calibration by its official training step and by ours, from the same original: what is left, and the time.

    python -m research.official_alignment make --repos FOLDER [--seeds 3]     research/results/official_alignment.json

The official setting as far as a CPU allows: SimCLR with temperature 0.5 and a ResNet-18, a tenth to forget, ten epochs
of SGD at their default rate 0.06, alpha = gamma = 1, beta 10. Smaller are the network (width 16), the data
(Fashion-MNIST, 2 000 trained on) and the batch (256). The official code makes a loss of three passes of the network,
ours of one; each draws its own batches. FOLDER is that of ``research.against_official``.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row, summary
from research.official_code import Part, load, official
from research.paths import RESULTS, RUNS

import efface
from efface import api
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.data.split import Split
from efface.stats import placements
from efface.training import defaults
from efface.training.batch import Subset
from efface.training.checkpoint import Checkpoint
from efface.training.loop import Run
from efface.training.networks.backbones import Backbone
from efface.training.optim import Optim, Schedule
from efface.unlearning.methods.alignment_calibration import AlignmentCalibration, mix_batches
from efface.unlearning.protocol import MethodInputs

HOME, RESULT = RUNS / "official_alignment", RESULTS / "official_alignment.json"
EPOCHS, BATCH, BETA, RATE = 10, 256, 10.0, 0.06
OURS = AlignmentCalibration(
    epochs=EPOCHS, batch_size=BATCH, beta=BETA,
    optim=Optim(lr=RATE, momentum=0.9, weight_decay=5e-4, schedule=Schedule.CONSTANT),
)  # fmt: skip
SHOWN = ("backbone.margin", "projector.margin")
WATCH = ObservationSettings(views=5, gradient=False)
app = typer.Typer(add_completion=False)


@app.callback()
def main() -> None:
    """Compare with the official training step."""


@app.command()
def make(
    repos: Annotated[Path, typer.Option(help="Folder of the clones.")],
    seeds: Annotated[int, typer.Option(help="Originals.")] = 3,
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    data = efface.load("fashion-mnist", limit=5000)
    for seed in range(seeds):
        split = efface.split(data, forget="@random:200", train=2000, valid=500, holdout=1500, test=1000, seed=seed)
        original = make_original(data, split, seed)
        for by in ("original", "ours", "official", "retrained"):
            add_row(RESULT, {"seed": seed, "by": by}, partial(measure, by, repos, original, data, split, seed))


def make_original(data: Data, split: Split, seed: int) -> Checkpoint:
    """Train the original of a seed, or load it."""
    folder = HOME / f"original-{seed}"
    if not (folder / "meta.json").exists():
        objective = efface.training.objectives.SimClr(temperature=0.5)
        recipe = defaults.default_recipe(
            data, objective, backbone=Backbone(name="resnet18", width=16, stride=2), epochs=80, batch_size=BATCH,
            optim=Optim(lr=RATE, momentum=0.9, weight_decay=5e-4),
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        api.pretrain(data, split, recipe=recipe, seed=seed, device="cpu").save(folder)
    return Checkpoint.load(folder)


def measure(by: str, repos: Path, original: Checkpoint, data: Data, split: Split, seed: int) -> dict[str, Any]:
    """Unlearn with one of the two, and observe: AUC of F and of R against unseen examples, kNN, seconds of a step."""
    seconds = list[float]()
    if by == "original":
        model = original.model
    elif by == "official":
        model = copy.deepcopy(original.model)
        inputs = inputs_of(original, data, split)
        load("lightly.models.modules")  # with all that it imports, before that is replaced by empty modules
        with official(repos / "EhanW+Alignment-Calibration"):
            for _ in train_officially(model, inputs, seed):
                seconds.append(perf_counter())
    else:
        method: Any = OURS if by == "ours" else "retrain"

        def note(record: dict[str, Any]) -> None:
            seconds.append(perf_counter())

        model = efface.unlearn(original, data, split, method, seed=seed + 1, device="cpu", log=note).model
    observed = efface.observe(Checkpoint(model, original.recipe, seed=seed), data, split, watch=WATCH, device="cpu")
    judged = api.judge_observations(efface.observe(original, data, split, watch=WATCH, device="cpu"), observed)
    values, steps = {one.name: one.value for one in judged.findings}, np.diff(seconds).tolist()
    return {
        **{part: {name: told(observed, part, name) for name in SHOWN} for part in ("forget", "retain")},
        "knn": values.get("utility.knn20.test"),
        "seconds of a step": summary(steps) if steps else None,
    }


def told(observed: Observations, part: str, signal: str) -> float:
    """AUC of a part against never-trained examples."""
    both = (observed.of(part, signal), observed.of("holdout", signal))
    return round(float(placements(*both)[0].mean()), 4)


def inputs_of(original: Checkpoint, data: Data, split: Split) -> MethodInputs:
    """The sets that the method is given, as in an unlearning of ours."""
    device, views = torch.device("cpu"), original.recipe.views
    parts = {name: Subset.of(data, getattr(split, name), views, name, device) for name in ("forget", "retain")}
    return MethodInputs(OURS.needs, parts, original.recipe)


def train_officially(model: Any, inputs: MethodInputs, seed: int) -> Iterator[None]:
    """Train with the official ``training_step`` on our network; yields after each step.

    Its batches are drawn as theirs are: R and F shuffled as one set, an example of F with another one of F as its
    positive.
    """
    algs = load("algs")
    total, gone = len(inputs.retain) + len(inputs.forget), len(inputs.forget)
    algs.get_indices = lambda **_: (None, list(range(total - gone)), list(range(total - gone, total)))
    args = Namespace(dataset="cifar10", backbone="resnet18", unlearn_mode="ft", alpha=1.0, beta=BETA, seed=seed,
                     num_total_samples=total, num_unlearn_samples=gone, l1_reg=None)  # fmt: skip
    theirs = algs.SimCLRModel(EPOCHS, RATE, 0.9, 5e-4, args)
    theirs.log = lambda *_, **__: None
    model.train()
    theirs.backbone, theirs.projection_head = Part(model.features), Part(model.project)
    theirs.parameters = model.parameters
    theirs.enable_scheduler = False
    (optimizer,) = theirs.configure_optimizers()
    run = Run(seed=seed)
    for epoch in range(EPOCHS):
        for kept, lost, partners in mix_batches(inputs, inputs.retain.count_batches(BATCH), run.rng("mixed", epoch)):
            views = [
                torch.cat([kept.view(0), lost.view(0)]),
                torch.cat([kept.view(1), partners.view(1)]),
                torch.cat([kept.view(2), lost.view(2)]),
            ]
            theirs.unlearn_indices = list(range(len(kept), len(kept) + len(lost)))
            loss = theirs.training_step((views, None, torch.arange(len(kept) + len(lost))), 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


if __name__ == "__main__":
    app()
