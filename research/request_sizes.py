"""What remains of requests of one example to a fifth of Fashion-MNIST, judged by a bank and by rehearsals.

    python -m research.request_sizes [--family simclr] [--world 0] [--sizes 5,20,100] [--only finetune] [--jobs 2]

2 000 images trained on, 1 500 more that an audit compares with. A world is an original, a reference bank of eight
half-data models trained for 30 % of the epochs, and for each method and size a request, its rehearsals and an audit of
both. At least 400 forgotten examples are pooled in each row, of single examples 100 to 400; of methods that the other
sizes leave out, five requests of a hundred. Retraining needs
no rehearsals: the models of the bank that never saw an example stand for it. The row "original" is a fine-tuning at a
learning rate that changes nothing; of single examples it is the original itself, on the requests that margin matching
was rehearsed on.

Resumable: models and rehearsals in research/runs/request_sizes, one row after the other in
research/results/request_sizes.json; a row that is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import add_row
from research.paths import RESULTS, RUNS
from research.procedures import pool_rehearsals, pool_signals

from efface.auditing import signals
from efface.auditing.attacks.learned import fit_attack
from efface.auditing.bank_file import load_bank
from efface.auditing.controls import Control
from efface.auditing.criteria import Criteria
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import RENEWED
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.rehearsals import RehearsedVerdict, judge_rehearsals
from efface.auditing.verdict import Verdict
from efface.runs import audit, train
from efface.runs.bank_plan import plan_bank, write_bank_plan
from efface.runs.data_at_hand import DataChecks
from efface.runs.procedure import calibrate_rehearsal
from efface.runs.reference_bank import join_bank, list_bank_tasks
from efface.runs.rehearsal_plan import BEFORE, RehearsalPlan, plan_rehearsals, write_rehearsal_plan
from efface.runs.rehearsals import list_rehearsal_tasks
from efface.tasks import run_tasks
from efface.training.checkpoint import read_meta

HOME, RESULT = RUNS / "request_sizes", RESULTS / "request_sizes.json"
WORDS = {"residue": "procedure leaves residue", "over-forgotten": "procedure over-forgets"}
"""What is said where the procedure alone is judged; anything else is undecided without the real request."""
SPLIT = {"train": 2000, "valid": 500, "holdout": 1500, "test": 1000}
SIZES = {20: 27, 5: 80, 100: 20, 1: 400, 200: 20, 400: 20}
"""Examples per request to the number of rehearsed requests, in the order in which they are made."""
SINGLE = {"reference_matching": 200, "finetune": 100, "alignment_calibration": 100}
"""Rehearsed requests of one example by methods of which 400 would take hours."""
METHODS: dict[str, dict[str, Any]] = {
    "margin_matching": {"name": "margin_matching"},
    "reference_matching": {"name": "reference_matching"},
    "finetune": {"name": "finetune"},
    "alignment_calibration": {"name": "alignment_calibration"},
    "retrain": {"name": "retrain"},
    "original": {"name": "finetune", "epochs": 1, "optim": {"lr": 1e-7}},
}
OTHERS = (
    "bad_teacher", "coun", "gradient_ascent", "gradient_constraint", "influence", "l1_sparse", "neggrad",
    "random_labels", "salun", "scrub", "ssd",
)  # fmt: skip
"""The other methods that fit encoders, at their defaults."""
METHODS |= {name: {"name": name} for name in OTHERS}
REQUESTS_OF_OTHERS = {100: 5}
"""Examples per request to the number of rehearsed requests, of these."""
FAMILIES: dict[str, dict[str, Any]] = {
    "simclr": {"objective": {"name": "simclr", "temperature": 0.1, "dim": 64}, "epochs": 200},
    "moco": {"objective": {"name": "moco", "temperature": 0.1, "dim": 64, "queue": 1024}, "epochs": 200},
    "byol": {"objective": "byol", "epochs": 400},
    "resnet": {"objective": "cross_entropy", "epochs": 300, "optim": {"lr": 0.1, "warmup": 0.05}},
    "vit": {
        "objective": "cross_entropy",
        "epochs": 300,
        "backbone": {
            "name": "timm:vit_tiny_patch16_224",
            "options": {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4},
        },
        "optim": {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.05, "warmup": 0.05},
    },
}
PAIRS = RUNS / "pairs" / "manifest.csv"
"""Emoji with their names, for ``clip``: a manifest as ``research.emoji`` reads it; its folder is linked here."""
FAMILIES["clip"] = {
    "objective": {"name": "clip", "dim": 64, "text": {"depth": 1, "buckets": 2048}},
    "epochs": 60,
    "optim": {"rule": "adamw", "lr": 2e-3, "warmup": 0.05, "weight_decay": 1e-4},
}
FEW = "-500"
"""At the end of a family's name: trained on 500 images in place of 2 000, for as many epochs."""
RECIPE: dict[str, Any] = {
    "backbone": {"name": "resnet8", "width": 16, "stride": 2},
    "batch_size": 100,
    "optim": {"lr": 0.06, "warmup": 0.05},
    "views": {"crop": [0.9, 1.0], "flip": False, "brightness": 0.2, "contrast": 0.2, "saturation": 0, "hue": 0},
}
"""Mild views and many epochs, so that single images are memorized: without a trace there is nothing to decide."""
BANK = {"models": 8, "share": 0.3}
WATCH = ObservationSettings(views=5, gradient=False)
COMMON: dict[str, Any] = {"device": "cpu", "bf16": False}
app = typer.Typer(add_completion=False)


def settings_of(family: str, world: int) -> dict[str, Any]:
    """The settings of a world's original."""
    split = SPLIT | ({"train": 500} if family.endswith(FEW) else {})
    data: dict[str, Any] = {"source": "fashion-mnist", "limit": sum(split.values())}
    if family == "clip":
        split, data = {"train": 1000, "valid": 500, "holdout": 1500, "test": 700}, {"source": str(PAIRS), "size": 32}
    recipe = RECIPE | FAMILIES[family.removesuffix(FEW)]
    return {"data": data, "split": split, "recipe": recipe, "seed": world, **COMMON}


@app.command()
def make(
    family: Annotated[str, typer.Option(help="Objective of the original.")] = "simclr",
    world: Annotated[int, typer.Option(help="Seed of the original.")] = 0,
    sizes: Annotated[str, typer.Option(help="Sizes of requests, with commas; by default all.")] = "",
    only: Annotated[str, typer.Option(help="Methods, with commas; by default all.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Measure the rows of a world that are missing."""
    torch.set_num_threads(1)
    home = HOME / f"{family}-{world}"
    prepare(home, settings_of(family, world), BANK, jobs)
    chosen = [int(size) for size in sizes.split(",")] if sizes else list(SIZES)
    for size, method in product(chosen, only.split(",") if only else METHODS):
        about = {"family": family, "world": world, "method": method, "size": size}
        count = count_requests(method, size)
        if not count:
            continue
        # A retrained model is independent of the original: it has a seed of its own.
        seed = world + (method == "retrain")
        request = {"forget": f"@random:{size}", "method": METHODS[method], "seed": seed}
        if (method, size) == ("original", 1):
            add_row(RESULT, about, partial(measure_untouched, home, home / f"rehearsals-margin_matching-{size}"))
        else:
            add_row(RESULT, about, partial(measure, home, f"{method}-{size}", request, count, jobs))


def count_requests(method: str, size: int) -> int:
    """How many requests of a size are rehearsed; 0 where a method is not measured."""
    if method in OTHERS:
        return REQUESTS_OF_OTHERS.get(size, 0)
    return SINGLE.get(method, SIZES[1]) if size == 1 else SIZES[size]


def train_original(home: Path, settings: dict[str, Any]) -> None:
    """Train the original of a world, unless it is there."""
    if not (home / "original").exists():
        train.pretrain_run(home / "original", settings)


def prepare(home: Path, settings: dict[str, Any], bank: dict[str, Any], jobs: int) -> None:
    """Train the original of a world and its bank, unless they are there."""
    train_original(home, settings)
    plan = plan_bank(home / "original", home / "bank", **bank, watch=WATCH, checks=DataChecks())
    write_bank_plan(home / "original", plan, DataChecks())
    run_tasks(list_bank_tasks(plan, "cpu"), jobs=jobs, say=print)
    join_bank(plan)


def measure(home: Path, name: str, request: dict[str, Any], requests: int, jobs: int) -> dict[str, Any]:
    """Unlearn one request, rehearse it, and judge both.

    Args:
        home: Folder of the world: its original and its bank are there.
        name: Name of the run.
        request: What is forgotten, and how.
        requests: How many requests like it are rehearsed.
        jobs: Processes.

    """
    run, method = home / name, request["method"]["name"]
    if not run.exists():
        own = {"bank": str(home / "bank")} if method == "reference_matching" else {}
        train.unlearn_run(home / "original", run, request | own | COMMON)
    rehearsals = None
    if method != "retrain":
        plan = plan_rehearsals(run, home / f"rehearsals-{name}", requests, watch=WATCH, checks=DataChecks())
        write_rehearsal_plan(run, plan, DataChecks())
        run_tasks(list_rehearsal_tasks(plan, "cpu"), jobs=jobs, say=lambda sentence: None)
        rehearsals = plan.home
    watch, half = {"views": WATCH.views, "gradient": False}, load_bank(home / "bank").part_for("audit")
    judged = audit.audit_run(run, {"device": "cpu", "watch": watch}, bank=home / "bank", rehearsals=rehearsals)
    whole, cost = read_meta(home / "original")["cost"], read_meta(run)["cost"]
    return {
        **dict(describe(judged.verdict)),
        "controls": [] if judged.verdict.rehearsed is None else list_objections(judged.verdict.rehearsed.controls),
        "signals": None if rehearsals is None else pool_signals(rehearsals, half, fit_attack(half)),
        "knn": {one.name: one.value for one in judged.findings}.get("utility.knn20.test"),
        "seconds": round(cost["seconds"], 2),
        "share of the time": round(cost["seconds"] / whole["seconds"], 4),
        "share of the examples": round(cost["examples"] / whole["examples"], 4),
    }


def measure_untouched(home: Path, rehearsed: Path) -> dict[str, Any]:
    """Judge the original as a procedure that changes nothing, on the requests that another one was rehearsed on."""
    plan, half = RehearsalPlan.load(rehearsed), load_bank(home / "bank").part_for("audit")
    seen = Observations.load(plan.file_of(BEFORE))
    asked = [Observations.load(plan.file_of(name)).of("forget", "keys") for name in plan.names if name != BEFORE]
    before = calibrate_rehearsal(seen, half)
    parts = [part for part in ("forget", RENEWED["forget"]) if seen.count(part)]
    ready = [
        before.take_rows({part: np.flatnonzero(np.isin(seen.of(part, "keys"), keys)) for part in parts})
        for keys in asked
    ]
    names, criteria = signals.prespecified_signals(before.observed), Criteria()
    found = judge_rehearsals(ready, before, names, criteria.delta, criteria.alpha, plan.describe_kind())
    return {
        "word": WORDS.get(found.word, "inconclusive"),
        "alone": {},
        **dict(describe_procedure(found)),
        "like them": None,
        "controls": list_objections(found.controls),
        "signals": pool_rehearsals(ready, 0.0),
        "knn": None,
        "seconds": 0.0,
        "share of the time": 0.0,
        "share of the examples": 0.0,
    }


def describe(verdict: Verdict) -> Iterator[tuple[str, Any]]:
    """The verdicts on the request alone and on the procedure, and the pooled AUC of each signal with its interval."""
    yield "word", verdict.word
    yield "alone", {one.signal: round(one.value, 4) for one in verdict.signals}
    if verdict.rehearsed is not None:
        yield from describe_procedure(verdict.rehearsed)
        yield "like them", verdict.rehearsed.like_them


def describe_procedure(pooled: RehearsedVerdict) -> Iterator[tuple[str, Any]]:
    """What all rehearsals together say."""
    yield "procedure", pooled.word
    yield "requests", pooled.requests
    yield "examples", pooled.examples
    yield "pooled", {one.signal: [round(end, 4) for end in (one.value, one.low, one.high)] for one in pooled.signals}
    yield "before", {one.signal: round(one.power[0], 4) for one in pooled.signals}


def list_objections(controls: Sequence[Control]) -> list[str]:
    """The controls that did not pass, with their words."""
    return [f"{one.name} ({one.word})" for one in controls if one.word != "passed"]


if __name__ == "__main__":
    app()
