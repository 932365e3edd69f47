"""A step of each unlearning method against the bare passes of the network that it needs: the ratio of their times.

    OMP_PROC_BIND=true python -m benchmarks.method_steps [--rounds 5]      benchmarks/results/method_steps.json

SimCLR on Fashion-MNIST, 400 of 2 000 images to forget, 256 retained examples a step, on two threads. A hook notes every
call of the backbone in a stretch of steps: how many images, and whether a gradient was kept. The bare passes are the
same calls on random images, in the same order, each with a gradient followed by its backward pass. What a step does
beside them is making views, the head, the loss and the update. ``gradient_constraint`` is missing: its passes are not
those of the network alone, because it takes derivatives of derivatives.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import efface
from benchmarks.machine import RESULTS, machine, summary, write_json
from efface.training import defaults, devices
from efface.training.checkpoint import Checkpoint
from efface.training.model import Model
from efface.training.networks.backbones import Backbone

RESULT = RESULTS / "method_steps.json"
METHODS = ("finetune", "neggrad", "scrub", "alignment_calibration", "margin_matching")
EPOCHS, SKIPPED, STEPS = 5, 4, 16
"""Epochs of a run, the first steps that are not counted, and the steps that are."""


PAYS = devices.prefers_bfloat16(torch.device("cpu"))
"""Whether bfloat16 is faster here: then both sides use it, as `efface unlearn` does."""


@dataclass
class Watcher:
    """Notes the calls of a backbone and the ends of steps."""

    calls: list[tuple[torch.Size, bool]] = field(default_factory=list)
    ends: list[tuple[float, int]] = field(default_factory=list)

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Note one call: the shape of the images, and whether a gradient is kept."""
        self.calls.append((inputs[0].shape, output.requires_grad))

    def __deepcopy__(self, _memo: dict[int, Any]) -> Watcher:
        return self

    def end_step(self, record: dict[str, Any]) -> None:
        """Note the end of a step."""
        self.ends.append((perf_counter(), len(self.calls)))


def watch_method(data: efface.Data, split: efface.Split, start: Checkpoint, name: str) -> tuple[float, list[Any]]:
    """Seconds of a stretch of steps, and the calls of the backbone in them."""
    model, watcher = start.recipe.start(0), Watcher()
    model.backbone.register_forward_hook(watcher)
    efface.unlearn(
        Checkpoint(model, start.recipe, seed=0), data, split, name, device="cpu", epochs=EPOCHS, batch_size=256,
        bf16=PAYS, log=watcher.end_step,
    )  # fmt: skip
    (began, first), (ended, last) = watcher.ends[SKIPPED], watcher.ends[SKIPPED + STEPS]
    return ended - began, watcher.calls[first:last]


def replay(model: Model, calls: list[tuple[torch.Size, bool]]) -> float:
    """Seconds of the same calls of the bare network, with a backward pass where a gradient was kept."""
    images = {shape: torch.rand(shape).contiguous(memory_format=torch.channels_last) for shape, _ in calls}
    began = perf_counter()
    for shape, kept in calls:
        with torch.set_grad_enabled(kept), torch.autocast("cpu", torch.bfloat16, enabled=model.bf16):
            output = model.backbone(images[shape])
        if kept:
            output.float().square().mean().backward()
    return perf_counter() - began


def main() -> None:
    """Measure every method in turns with its bare passes, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    data = efface.load("fashion-mnist", limit=4000)
    split = efface.split(data, forget="@random:400", train=2000, valid=500, holdout=1000, test=500)
    recipe = defaults.default_recipe(data, "simclr", backbone=Backbone(name="resnet8", width=32, stride=2))
    start, rows = Checkpoint(recipe.start(0), recipe, seed=0), dict[str, Any]()
    for name in METHODS:
        bare = recipe.start(0).train()
        bare.bf16 = PAYS
        seconds: dict[str, list[float]] = {"step": [], "passes": []}
        calls = list[Any]()
        for number in range(rounds + 1):  # the first round is not counted
            whole, calls = watch_method(data, split, start, name)
            alone = replay(bare, calls)
            if number:
                seconds["step"].append(whole / STEPS)
                seconds["passes"].append(alone / STEPS)
        kept, plain = (sum(shape[0] for shape, grad in calls if grad is flag) / STEPS for flag in (True, False))
        ratios = [step / passes for step, passes in zip(*seconds.values(), strict=True)]
        rows[name] = {"with gradient": kept, "without": plain, "bf16": bare.bf16, "ratio": summary(ratios)}
        rows[name] |= {part: summary(values) for part, values in seconds.items()}
        print(name, round(statistics.median(ratios), 3), rows[name], flush=True)
        write_json(RESULT, {"machine": machine(), "threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
