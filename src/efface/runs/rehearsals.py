"""Rehearse a request: unlearn many sets of retained examples of its size and kind, each from the same original.

Each is one task, named by what goes into it (:mod:`efface.runs.rehearsal_plan`), and leaves one file of scores; one
more task observes the original on the examples of all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from efface import api, config
from efface.auditing import signals
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import OBSERVED_PARTS, Observations
from efface.auditing.observers.observe import RENEWED, RENEWED_PARTS, observe_model, sample_by_key
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.data.selection import Selection
from efface.data.split import Split, move_to_forget
from efface.errors import EffaceError
from efface.files import hold_lock, scratch_folder
from efface.interop.consent import Consent
from efface.runs import artifacts
from efface.runs.data_at_hand import DataAtHand
from efface.runs.foreign import load_foreign
from efface.runs.planned_data import open_planned_data
from efface.runs.rehearsal_kinds import draw_sets
from efface.runs.rehearsal_plan import BEFORE, REHEARSALS, TASK, RehearsalPlan
from efface.runs.remaining import watch_tasks
from efface.tasks import Task, run_tasks
from efface.training import devices
from efface.training.checkpoint import Checkpoint
from efface.training.networks.own_module import with_own_modules
from efface.training.objectives import CHOICES
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS, Method

REHEARSAL_SEEDS = 7000
"""Rehearsal number s unlearns with the original's seed plus this plus s."""
MOST_OBSERVED = 500
"""Most retained, spare and control examples that are observed in a rehearsal."""
TESTED = 1000
"""Most test examples."""
REHEARSED_PARTS = ("forget", "retain", "holdout", "spare", "control", RENEWED_PARTS)


def run_rehearsals(
    plan: RehearsalPlan,
    *,
    jobs: int | None = None,
    on: str = "local",
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
    status: Callable[[str], None] | None = None,
) -> int:
    """Make the rehearsals that are missing; if interrupted, the same call goes on.

    Args:
        plan: The plan, which was written before.
        jobs: Number of processes; by default one per core.
        on: Where the tasks run: ``local``, ``dask://HOST:PORT`` or ``slurm:PARTITION``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        say: Receives a message after each rehearsal.
        status: Receives the remaining time about twice a second.

    Returns:
        The number of tasks that were unfinished.

    Raises:
        EffaceError: A task failed; raised once all others have ended.

    """
    tasks = list_rehearsal_tasks(plan, device)
    watch = None if status is None else watch_tasks(tasks, status, "rehearsals")
    return run_tasks(tasks, on=on, jobs=jobs, folder=plan.home, say=say, watch=watch)


def list_rehearsal_tasks(plan: RehearsalPlan, device: str = "auto") -> list[Task]:
    """List the tasks of rehearsals: one for each request, and one for the original on all of them."""
    return [
        Task(
            name=plan.file_of(name).stem,
            function=with_own_modules(make_rehearsal),
            arguments=(plan.home, name, device),
            is_done=plan.file_of(name).exists,
        )
        for name in plan.names
    ]


@lru_cache(maxsize=1)
def _load_data(home: Path, settings: str, digest: str) -> DataAtHand:
    return open_planned_data(home, json.loads(settings), digest, ("retain",))


def make_rehearsal(home: Path, name: str, device: str = "auto") -> Path:
    """Unlearn one rehearsed request and store the scores of its model, or those of the original on all requests."""
    plan = RehearsalPlan.load(home)
    file = plan.file_of(name)
    with hold_lock(home / f"{file.stem}.task"):  # who finds it under way waits for it
        if not file.exists():
            artifacts.save_observations(file, observe_rehearsal(plan, name, device))
    return file


def observe_rehearsal(plan: RehearsalPlan, name: str, device: str = "auto") -> Observations:
    """Unlearn one rehearsed request and return the scores of its model, or those of the original on all requests."""
    here = _load_data(plan.home, json.dumps(plan.data), plan.split)
    data, base = here.data, here.split
    sets = draw_sets(data, base, plan.kind, plan.size, plan.requests, plan.seed, plan.units or 1)
    original = _load_original(plan, data)
    if name == BEFORE:
        split = _split_of(base, data, np.unique(np.concatenate(sets)), plan)
        observed = _observe(plan, original, data, split, device)
    else:
        number = int(name.rsplit("-", 1)[1])
        split = _split_of(base, data, sets[number], plan)
        result = _unlearn(plan, original, data, split, number, device)
        observed = _observe(plan, result, data, split, device)
        cost = result.training_cost
        observed.meta["cost"] = {"steps": cost.steps, "examples": cost.examples, "seconds": cost.seconds}
    observed.meta[TASK] = plan.file_of(name).stem
    return observed


def _load_original(plan: RehearsalPlan, data: Data) -> Checkpoint:
    source = Path(plan.source)
    if plan.request:
        by = str(plan.home / REHEARSALS)
        original = load_foreign(source, data, plan.request, plan.seed, Consent(), named_by=by)
    else:
        original = Checkpoint.load(source)
    if original.model.digest() != plan.original:
        raise EffaceError(f"{source} is not the original any more.", "Its weights have changed.", "Restore it.")
    return original.in_parts(plan.micro_batch)


def _split_of(base: Split, data: Data, rows: np.ndarray, plan: RehearsalPlan) -> Split:
    chosen = Selection(rows, random=plan.kind == "random", by_group=plan.kind == "group")
    split, matched, _ = move_to_forget(base, data, chosen, plan.seed)
    provenance = {"selector": "rehearsal", "seed": plan.seed, "random": chosen.random, "matched": matched}
    return replace(split, provenance=provenance)


def _unlearn(
    plan: RehearsalPlan, original: Checkpoint, data: Data, split: Split, number: int, device: str
) -> Checkpoint:
    settings = dict(plan.method)
    stop, used = settings.pop("stop", None), settings.pop("bank", None)
    bank = None if used is None else load_bank(Path(str(plan.bank)))
    if bank is not None and bank.part_for("method").digest != used:
        raise EffaceError(f"{plan.bank} is not the reference bank of the run any more.", remedy="Restore it.")
    method = config.parse_choice(METHODS, settings, "method", {**CHOICES, Method: METHODS})
    return api.unlearn(
        original, data, split, method, seed=plan.seed + REHEARSAL_SEEDS + number, device=device, bf16=plan.bf16,
        stop=config.build(StoppingRule, stop, path="stop.") if stop else None, bank=bank,
    )  # fmt: skip


def _observe(plan: RehearsalPlan, checkpoint: Checkpoint, data: Data, split: Split, device: str) -> Observations:
    """Observe a model and keep its scores only."""
    watch: ObservationSettings = config.build(ObservationSettings, plan.watch, path="watch.")
    few = replace(watch, cap=min(watch.cap, MOST_OBSERVED), test_cap=min(watch.test_cap, TESTED))
    if plan.unseen is not None:
        split = replace(split, holdout=sample_by_key(data, split.holdout, plan.unseen))
    model = checkpoint.model.to(devices.resolve_device(device))
    return keep_scores(
        observe_model(
            model, data, split, checkpoint.recipe.views, few, parts=REHEARSED_PARTS, scratch=scratch_folder(plan.home)
        )
    )


def keep_scores(observed: Observations) -> Observations:
    """Reduce observations to keys, labels and the finished scores of every signal; NaN where there is none."""
    arrays: dict[str, np.ndarray] = {}
    for part in (*OBSERVED_PARTS, *RENEWED.values()):
        if not observed.count(part):
            continue
        arrays[f"{part}/keys"] = observed.of(part, "keys")
        if observed.has(part, "labels"):
            arrays[f"{part}/labels"] = observed.of(part, "labels")
        for name in signals.signal_names(observed.spaces):
            if signals.has_signal(observed, part, name):
                values = np.full(observed.count(part), np.nan, dtype=np.float32)
                values[signals.scored_rows(observed, part, name)] = signals.scores(observed, part, name)
                arrays[f"{part}/{signals.READY}{name}"] = values
    return replace(observed, arrays=arrays)


def summarize_rehearsals(plan: RehearsalPlan, jobs: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Count rehearsals and estimate the time of the rest: as a JSON object, and as lines to print."""
    left = len([name for name in plan.left() if name != BEFORE])
    seconds = None if plan.seconds is None else plan.seconds * left
    result = {
        "home": str(plan.home), "requests": plan.requests, "left": left, "kind": plan.kind, "size": plan.size,
        "examples": plan.requests * plan.size, "seconds": seconds,
    }  # fmt: skip
    lines = [
        f"{plan.home}: {plan.requests - left} of {plan.requests} rehearsals are there ({plan.describe_kind()} each)."
    ]
    if left and seconds is not None:
        count = max(1, jobs or 1)
        minutes = math.ceil(seconds / 60 / count)
        lines.append(
            f"About {minutes} minute{'' if minutes == 1 else 's'} for the rest with {count} process"
            f"{'' if count == 1 else 'es'}, and the time to score with them."
        )
    return result, lines
