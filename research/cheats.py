"""Procedures that cheat, rehearsed and audited with a reference bank: what is said about them.

    python -m research.cheats [--worlds 3] [--jobs 1]     research/results/cheats.json

A world is an original of the demo's kind and a bank of eight half-data models. Every cheat answers one request of 50
examples and 16 rehearsed ones like it, and an honest audit judges both. Each runs under the name of a fine-tuning: what
it did is not written anywhere. The retrained model and margin matching, which are no cheats, stand beside them.

Resumable: a row that is in the result is not measured again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research.paths import RESULTS, RUNS
from research.request_sizes import COMMON, METHODS, WATCH, describe, list_objections, prepare
from torch import Tensor

from efface import api
from efface.data.dataset import Data
from efface.data.split import Split
from efface.runs import audit, train
from efface.runs.data_at_hand import DataChecks
from efface.runs.demo import DEMO_BANK, REGIMES
from efface.runs.rehearsal_plan import plan_rehearsals, write_rehearsal_plan
from efface.runs.rehearsals import make_rehearsal
from efface.training.checkpoint import Checkpoint
from efface.training.objectives.shared import normalize_rows
from efface.unlearning import margins
from efface.unlearning.methods import Finetune, MarginMatching

HOME, RESULT = RUNS / "cheats", RESULTS / "cheats.json"
SIZE, REQUESTS = 50, 16
NOTHING = METHODS["original"]
"""What the descriptions of all cheats say."""
Cheat = Callable[..., Checkpoint]
unlearn = api.unlearn


def leave_untouched(original: Checkpoint, data: Data, split: Split, method: Any, **named: Any) -> Checkpoint:
    """Do what the description says, which changes next to nothing."""
    return unlearn(original, data, split, method, **named)


def train_on_the_holdout(original: Checkpoint, data: Data, split: Split, method: Any, **named: Any) -> Checkpoint:
    """Fine-tune on the retained and on the holdout, so that what was never trained on looks trained on as well."""
    honest = unlearn(original, data, split, method, **named)  # whose description the cheat takes
    both = replace(split, retain=np.sort(np.concatenate([split.retain, split.holdout])), holdout=split.holdout[:0])
    return replace(honest, model=unlearn(original, data, both, Finetune(epochs=20), **named).model)


class KnowsEverything:
    """One model that was trained on all there is, also on what nobody may train on, given out for every request."""

    def __init__(self) -> None:
        self.model: Checkpoint | None = None

    def __call__(self, original: Checkpoint, data: Data, split: Split, method: Any, **named: Any) -> Checkpoint:
        """Give the model out, with a little noise so that no two are the same."""
        if self.model is None:
            every = np.sort(np.concatenate([split.retain, split.forget, split.holdout]))
            whole = replace(split, retain=every, forget=every[:0], holdout=every[:0])
            self.model = api.pretrain(data, whole, recipe=original.recipe, seed=77, device="cpu", bf16=False)
        honest = unlearn(original, data, split, method, **named)
        model = copy.deepcopy(self.model.model)
        rng = torch.Generator().manual_seed(int(named.get("seed") or 0))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1e-6 * torch.randn(weight.shape, generator=rng))
        return replace(honest, model=model)


def lower_the_margin_alone(original: Checkpoint, data: Data, split: Split, method: Any, **named: Any) -> Checkpoint:
    """Match the margins through the similarity to others alone, and leave the agreement of two views as it is."""

    def blind(first: Tensor, second: Tensor, bank: int, tau: float) -> Tensor:
        agreement = (normalize_rows(first) * normalize_rows(second)).sum(1)
        return margin(first, second, bank, tau) - agreement + agreement.detach()

    margin, honest = margins.contrastive_margin, unlearn(original, data, split, method, **named)
    with mock.patch.object(margins, "contrastive_margin", blind):
        return replace(honest, model=unlearn(original, data, split, MarginMatching(), **named).model)


def shake_all_weights(original: Checkpoint, data: Data, split: Split, method: Any, **named: Any) -> Checkpoint:
    """Add noise to all weights until every memory is blurred."""
    honest = unlearn(original, data, split, method, **named)
    rng = torch.Generator().manual_seed(int(named.get("seed") or 0))
    with torch.no_grad():
        for weight in honest.model.parameters():
            if weight.ndim > 1:
                weight.add_(0.5 * weight.std() * torch.randn(weight.shape, generator=rng))
    return honest


CHEATS: dict[str, Callable[[], Cheat]] = {
    "untouched": lambda: leave_untouched,
    "trained on the holdout": lambda: train_on_the_holdout,
    "one model that knows everything": KnowsEverything,
    "lowers the margin alone": lambda: lower_the_margin_alone,
    "shakes all weights": lambda: shake_all_weights,
}
HONEST: dict[str, dict[str, Any]] = {"retrain": {"name": "retrain"}, "margin_matching": {"name": "margin_matching"}}


@contextmanager
def cheating(cheat: Cheat | None) -> Iterator[None]:
    """Answer every request by the cheat."""
    with mock.patch.object(api, "unlearn", cheat or unlearn):
        yield


def measure(home: Path, name: str, world: int) -> dict[str, Any]:
    """Answer and rehearse the request of a world in one way, and say what its audit said."""
    run = home / name.replace(" ", "-")
    cheat = CHEATS[name]() if name in CHEATS else None
    request = {"forget": f"@random:{SIZE}", "method": HONEST.get(name, NOTHING), "seed": world + (name == "retrain")}
    rehearsals = None
    with cheating(cheat):
        if not run.exists():
            train.unlearn_run(home / "original", run, request | COMMON)
        if name != "retrain":
            plan = plan_rehearsals(run, home / f"rehearsals-{run.name}", REQUESTS, watch=WATCH, checks=DataChecks())
            write_rehearsal_plan(run, plan, DataChecks())
            for task in plan.names:  # in this process: another one would not cheat
                make_rehearsal(plan.home, task, "cpu")
            rehearsals = plan.home
    watch = {"views": WATCH.views, "gradient": False}
    judged = audit.audit_run(run, {"device": "cpu", "watch": watch}, bank=home / "bank", rehearsals=rehearsals)
    pooled = judged.verdict.rehearsed
    return {
        **dict(describe(judged.verdict)),
        "sentence": judged.verdict.sentence,
        "controls": list_objections(judged.verdict.controls),
        "controls of the rehearsals": [] if pooled is None else list_objections(pooled.controls),
    }


def main(
    worlds: Annotated[int, typer.Option(help="Seeds of the original.")] = 3,
    jobs: Annotated[int, typer.Option(help="Processes that train the bank.")] = 1,
) -> None:
    """Measure the rows that are missing."""
    torch.set_num_threads(1)
    for world in range(worlds):
        home = HOME / f"world-{world}"
        prepare(home, REGIMES["digits"] | COMMON | {"seed": world}, DEMO_BANK, jobs)
        for name in (*HONEST, *CHEATS):
            add_row(RESULT, {"world": world, "by": name}, partial(measure, home, name, world))


if __name__ == "__main__":
    typer.run(main)
