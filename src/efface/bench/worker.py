"""Work: one task of a bench. Its folder is complete, with its outcome, or not there; a failure is an outcome too."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import time
from typing import Any

import torch
import yaml

from efface import api, config, stats
from efface.auditing import signals
from efface.auditing.evidence import Cost
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.verdict import Criteria
from efface.bench.plan import METHOD_CHOICES, TaskKind
from efface.bench.selection import score_setting
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.errors import EffaceError
from efface.files import EPOCH, read_json
from efface.runs import artifacts
from efface.runs.folder import create_run_folder
from efface.runs.run import Sizes, load_data
from efface.training.batch import Log
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.loop import TrainingCost
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe
from efface.unlearning import methods

OUTCOME, TASK_OBSERVATIONS, JOURNAL, STORED_ROC_POINTS = "outcome.json", "observations.npz", "journal.jsonl", 60
StepReporter = Callable[[int, int], None]
"""``(step, steps in all or 0)``."""


@dataclass(frozen=True)
class TaskJob:
    """A task as a process is handed it: where to write, what to make, and where what it needs is."""

    kind: TaskKind
    folder: Path
    request: dict[str, Any]
    original: Path | None = None
    look: Path | None = None
    subject: Path | None = None
    oracles: tuple[Path, ...] = ()
    device: str = "cpu"
    keep_weights: bool = False


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What a finished task left; None where it is not finished. ``error``: why it failed, or absent."""
    path = folder / OUTCOME
    if not path.exists():
        return None
    return read_json(path, "result of a task", remedy=f"Remove {folder}, to have it made again.")


def run_bench_task(job: TaskJob, tell: StepReporter) -> dict[str, Any]:
    """Make a task's folder, and give back its outcome.

    Whatever the method does wrong is written down as the outcome; a full disk is raised, because the same task would
    not fail on another.
    """
    torch.set_num_threads(1)
    text = yaml.safe_dump(job.request, sort_keys=False, allow_unicode=True)
    made: dict[str, Any]
    with create_run_folder(job.folder, text) as half:
        try:
            made = TASK_RUNNERS[job.kind](job, half, tell)
        except EffaceError as error:  # a method that diverges is a result
            made = {"error": str(error)}
        except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
            made = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        (half / OUTCOME).write_text(json.dumps(made) + "\n", encoding="utf-8")
    with (job.folder.parent.parent / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"made": f"{job.kind}/{job.folder.name}", "at": time(), "pid": os.getpid()}) + "\n")
    return made


def _original(job: TaskJob, half: Path, tell: StepReporter) -> dict[str, Any]:
    asked = job.request
    data, split = _divided(json.dumps([asked["data"], asked["split"], asked["seed"]]))
    recipe: Recipe = config.build(Recipe, asked["recipe"], CHOICES, "recipe.")
    total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
    keep = EpochStore(half / EPOCH)
    made = api.pretrain(
        data, split, recipe=recipe, seed=asked["seed"], device=job.device, bf16=_bf16(asked),
        log=_log(tell, total), resume_store=keep,
    )  # fmt: skip
    made.save(half)
    return {"cost": vars(made.training_cost)}


def _look(job: TaskJob, half: Path, tell: StepReporter) -> dict[str, Any]:
    start = Checkpoint.load(_there(job.original))
    _observe(job, start, half)
    return {"cost": vars(start.training_cost)}


def _oracle(job: TaskJob, half: Path, tell: StepReporter) -> dict[str, Any]:
    start, (data, split) = Checkpoint.load(_there(job.original)), _chosen(job.request)
    total = start.recipe.epochs * -(-len(split.retain) // start.recipe.batch_size)
    keep, seed = EpochStore(half / EPOCH), job.request["seed"]
    made = api.unlearn(
        start, data, split, "retrain", seed=seed, device=job.device, bf16=_bf16(job.request["original"]),
        log=_log(tell, total), resume_store=keep,
    )  # fmt: skip
    return _kept(job, made, half)


def _cell(job: TaskJob, half: Path, tell: StepReporter) -> dict[str, Any]:
    start, (data, split) = Checkpoint.load(_there(job.original)), _chosen(job.request)
    method = config.parse_choice(methods.METHODS, job.request["method"], "method", METHOD_CHOICES)
    bf16 = _bf16(job.request["original"])
    made = api.unlearn(start, data, split, method, device=job.device, bf16=bf16, log=_log(tell, 0))
    return _kept(job, made, half)


def _bf16(original: dict[str, Any]) -> bool:
    """As the original was trained."""
    return bool(original.get("bf16", False))


def _judged(job: TaskJob, half: Path, tell: StepReporter) -> dict[str, Any]:
    """Findings, verdict, what settings are chosen by, and ROC curves of the score that the verdict is about."""
    look, subject = _there(job.look), _there(job.subject)
    original, seen = _seen(look), Observations.load(subject / TASK_OBSERVATIONS)
    there = [folder for folder in job.oracles if "error" not in (read_outcome(folder) or {"error": ""})]
    costs = {"subject": _cost(subject), "original": _cost(look)} | ({"oracle": _cost(there[0])} if there else {})
    criteria = config.build(Criteria, job.request["criteria"])
    result = api.judge_observations(original, seen, [_seen(one) for one in there], criteria=criteria, costs=costs)
    references = result.evidence.oracles
    curves = {}
    for name in signals.prespecified_signals(seen):
        sides = [
            signals.calibrated_scores(seen, references, part, name) if references else signals.scores(seen, part, name)
            for part in ("forget", "holdout")
        ]
        curves[name] = stats.thin_roc(sides[0], sides[1], STORED_ROC_POINTS)
    return {
        "verdict": asdict(result.verdict),
        "findings": [asdict(replace(one, details={})) for one in result.findings],
        "choice": asdict(score_setting(original, seen)),
        "curves": curves,
        "cost": asdict(costs["subject"]),
    }


TASK_RUNNERS: dict[TaskKind, Callable[[TaskJob, Path, StepReporter], dict[str, Any]]] = {
    TaskKind.ORIGINAL: _original,
    TaskKind.OBSERVATION: _look,
    TaskKind.ORACLE: _oracle,
    TaskKind.CELL: _cell,
    TaskKind.JUDGMENT: _judged,
}


def _kept(job: TaskJob, made: Checkpoint, half: Path) -> dict[str, Any]:
    """Observe a model, and keep its weights if that was asked for."""
    _observe(job, made, half)
    if job.keep_weights:
        made.save(half)
    return {"cost": vars(made.training_cost), "digest": made.model.digest()}


def _observe(job: TaskJob, made: Checkpoint, half: Path) -> None:
    data, split = _chosen(job.request)
    watch = config.build(ObservationSettings, job.request["watch"])
    artifacts.save_observations(half / TASK_OBSERVATIONS, api.observe(made, data, split, watch, device=job.device))


def _chosen(request: dict[str, Any]) -> tuple[Data, Split]:
    """The data and the split of a request, with its forget set."""
    asked = request["original"]
    named = json.dumps([asked["data"], asked["split"], asked["seed"]])
    return _divided(named)[0], _forgotten(named, request["forget"])


@lru_cache(maxsize=4)
def _data(named: str) -> Data:
    return load_data({"data": json.loads(named)})


@lru_cache(maxsize=16)
def _divided(asked: str) -> tuple[Data, Split]:
    source, sizes, seed = json.loads(asked)
    data = _data(json.dumps(source))
    return data, Sizes(**sizes).divide(data, seed)


@lru_cache(maxsize=16)
def _forgotten(asked: str, selector: str) -> Split:
    data, split = _divided(asked)
    return select_forget_set(split, data, selector, json.loads(asked)[2])


@lru_cache(maxsize=6)
def _seen(folder: Path) -> Observations:
    return Observations.load(folder / TASK_OBSERVATIONS)


def _cost(folder: Path) -> Cost:
    spent = TrainingCost(**(read_outcome(folder) or {})["cost"])
    return Cost(spent.steps, spent.examples, spent.seconds)


def _log(tell: StepReporter, total: int) -> Log:
    def log(record: dict[str, Any]) -> None:
        tell(int(record["step"]), total)

    return log


def _there(folder: Path | None) -> Path:
    if folder is None:
        raise EffaceError("A task was planned without what it starts from.", remedy="This is a bug: please report it.")
    return folder
