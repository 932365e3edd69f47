"""Make a reference bank: train models on random halves of the original's training data, and keep their scores.

Each model is one task, named by what goes into it (:mod:`efface.runs.bank_plan`). Weights are removed once their scores
are stored, unless they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from efface import api, config
from efface.auditing import signals
from efface.auditing.bank_file import BANK_FILE, HalfScores, join_halves, save_bank
from efface.auditing.observers.observe import observe_model
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.reference_bank import ReferenceBank, draw_halves
from efface.data.dataset import Data
from efface.data.split import Split
from efface.files import EPOCH, hold_lock, scratch_folder
from efface.runs.bank_plan import BankPlan, BankUnit, units_of
from efface.runs.data_at_hand import DataAtHand
from efface.runs.folder import create_run_folder
from efface.runs.method_bank import valid_digest
from efface.runs.ownership import put_back, remove_replaced, set_aside
from efface.runs.planned_data import open_planned_data
from efface.runs.references import FIRST_SEED
from efface.runs.remaining import watch_tasks
from efface.runs.run import Progress, logging
from efface.tasks import Task, report_steps, run_tasks
from efface.training import devices
from efface.training.checkpoint import META, Checkpoint, EpochStore
from efface.training.networks.own_module import with_own_modules
from efface.training.objectives import CHOICES
from efface.training.random_start import require_random_start
from efface.training.recipe import Recipe

UNSEEN_SEEDS = FIRST_SEED * 5
"""Model number m has the original's seed plus this plus m: apart from every reference's."""
SAMPLED_PARTS = ("retain", "holdout", "control", "valid")
"""Parts whose scores are kept: what was trained on, the holdout, all test examples, of which audits take some, and the
margins of ``valid``, which methods compare with."""


def make_bank(
    plan: BankPlan,
    *,
    jobs: int | None = None,
    on: str = "local",
    device: str = "auto",
    keep_weights: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
    status: Callable[[str], None] | None = None,
) -> ReferenceBank:
    """Train the models that are missing and write ``bank.npz``; if interrupted, the same call goes on.

    Args:
        plan: The plan, which was written before.
        jobs: Number of processes; by default one per core.
        on: Where the tasks run: ``local``, ``dask://HOST:PORT`` or ``slurm:PARTITION``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        keep_weights: Keep the models' run folders as well.
        say: Receives a message after each model.
        status: Receives the remaining time about twice a second.

    Raises:
        EffaceError: A task failed; raised once all others have ended.

    """
    if plan.left():
        require_random_start(config.build(Recipe, plan.recipe, CHOICES, "recipe."))
    tasks = list_bank_tasks(plan, device, keep_weights=keep_weights)
    watch = None if status is None else watch_tasks(tasks, status, "models")
    run_tasks(tasks, on=on, jobs=jobs, folder=plan.home, say=say, watch=watch)
    return join_bank(plan)


def list_bank_tasks(plan: BankPlan, device: str = "auto", *, keep_weights: bool = False) -> list[Task]:
    """List the tasks of a bank: one for each model."""
    return [
        Task(
            name=plan.file_of(model).stem,
            function=with_own_modules(make_half),
            arguments=(plan.home, model, device, keep_weights),
            is_done=plan.file_of(model).exists,
        )
        for model in range(plan.models)
    ]


def join_bank(plan: BankPlan) -> ReferenceBank:
    """Write ``bank.npz`` from the files of all models, and return it."""
    files = [plan.file_of(model) for model in range(plan.models)]
    bank = join_halves([HalfScores.load(file) for file in files])
    save_bank(bank, plan.home / BANK_FILE)
    for file in files:
        remove_replaced(plan.home / file.stem)
    return bank


@lru_cache(maxsize=1)
def _load_data(home: Path, settings: str, digest: str) -> DataAtHand:
    return open_planned_data(home, json.loads(settings), digest, ("retain",))


@lru_cache(maxsize=1)
def _units(home: Path, settings: str, digest: str, unit: BankUnit) -> np.ndarray:
    here = _load_data(home, settings, digest)
    return units_of(here.data, here.split, unit)


def make_half(home: Path, model: int, device: str = "auto", keep_weights: bool = False) -> Path:
    """Train one model of a bank, score every example with it, and store the scores; returns their file.

    Args:
        home: Folder of the bank.
        model: Number of the model: 2p and 2p + 1 are trained on complementary halves.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        keep_weights: Keep the run folder of the model.

    """
    plan = BankPlan.load(home)
    file = plan.file_of(model)
    with hold_lock(home / f"{file.stem}.task"):  # who finds it under way waits for it
        if file.exists():
            return file
        settings = json.dumps(plan.data)
        here = _load_data(home, settings, plan.split)
        data, whole = here.data, here.split
        names = _units(home, settings, plan.split, plan.unit)
        units, member = np.unique(names, return_inverse=True)
        first = draw_halves(units.tolist(), model // 2 + 1, plan.seed)[model // 2][member]
        mine = first if model % 2 == 0 else ~first
        halved = replace(whole, retain=whole.retain[mine], forget=whole.retain[~mine])
        folder = home / file.stem
        put_back(folder)
        if not (folder / META).exists():
            _train(plan, model, halved, here, folder, device)
        trained = Checkpoint.load(folder).model.to(devices.resolve_device(device))
        scores = _score(plan, trained, data, whole, mine)
        if not keep_weights:
            set_aside(folder)  # before its scores are there: a model whose task is done leaves no weights behind
        scores.save(file)
        remove_replaced(folder)
    return file


def _train(plan: BankPlan, model: int, halved: Split, here: DataAtHand, folder: Path, device: str) -> None:
    recipe: Recipe = config.build(Recipe, plan.recipe, CHOICES, "recipe.")
    seed = plan.seed + UNSEEN_SEEDS + model
    request = {"verb": "references", "kind": "half", "seed": seed, "data": plan.data, "split": plan.split}
    bf16 = devices.choose_precision(plan.bf16, device)
    with create_run_folder(folder, yaml.safe_dump(request, sort_keys=False)) as fresh:
        halved.save(fresh, here.data)
        identity = here.identity.save(fresh) if here.identity else ""
        steps = recipe.epochs * -(-len(halved.retain) // recipe.batch_size)
        shown = Progress(steps=lambda record, total: report_steps(record["step"], total))
        with logging(fresh, shown, steps) as log:
            start = Checkpoint(recipe.start(plan.seed), recipe, seed=plan.seed)
            result = api.unlearn(
                start, here.data, halved, "retrain",
                seed=seed, device=device, bf16=bf16, log=log, resume_store=EpochStore(fresh / EPOCH, lambda text: None),
            )  # fmt: skip
        replace(result, parent=plan.original, identity=identity).save(fresh)


def _score(plan: BankPlan, model: Any, data: Data, whole: Split, mine: np.ndarray) -> HalfScores:
    """Score every training, holdout and test example with one model."""
    watch: ObservationSettings = config.build(ObservationSettings, plan.watch, path="watch.")
    recipe: Recipe = config.build(Recipe, plan.recipe, CHOICES, "recipe.")
    everything = replace(watch, cap=max(watch.cap, len(data)), test_cap=1, valid=True)
    observed = observe_model(
        model, data, whole, recipe.views, everything, parts=SAMPLED_PARTS, scratch=scratch_folder(plan.home)
    )
    parts = [part for part in SAMPLED_PARTS if observed.count(part)]
    keys = np.concatenate([observed.of(part, "keys") for part in parts])
    trained = np.concatenate([np.full(observed.count(part), part == "retain") for part in parts])
    valid = np.concatenate([np.full(observed.count(part), part == "valid") for part in parts])
    inside = np.zeros(len(keys), dtype=bool)
    inside[: len(mine)] = mine  # retain comes first, in the order of the split
    scores: dict[str, np.ndarray] = {}
    for name in signals.signal_names(observed.spaces):
        if not any(signals.has_signal(observed, part, name) for part in parts):
            continue
        found = [np.full(observed.count(part), np.nan) for part in parts]
        for part, values in zip(parts, found, strict=True):
            if signals.has_signal(observed, part, name):
                values[signals.scored_rows(observed, part, name)] = signals.scores(observed, part, name)
        scores[name] = np.concatenate(found).astype(np.float32)
    meta = {
        "watch": plan.watch,
        "drawn": json.loads(json.dumps(config.dump(recipe.views))),
        "valid": valid_digest(data, whole),
        "unit": plan.unit,
        "share": plan.share,
    }
    return HalfScores(plan.original, keys, trained, valid, inside, scores, meta)


def summarize_bank(plan: BankPlan, jobs: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Count the models of a bank and estimate the time of the rest: as a JSON object, and as lines to print."""
    left = len(plan.left())
    seconds = None if plan.seconds is None else plan.seconds * left
    result = {"home": str(plan.home), "models": plan.models, "left": left, "seconds": seconds, "unit": plan.unit}
    lines = [f"{plan.home}: {plan.models - left} of {plan.models} models of the reference bank are there."]
    if left and seconds is not None:
        lines.append(f"About {seconds / 60:.1f} minutes of one process for the rest, and the time to score with them.")
    elif left:
        lines.append("The time of the rest cannot be estimated: the cost of the original was not recorded.")
    return result, lines
