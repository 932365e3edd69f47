"""Run one task of a bench. Its folder appears only when it is complete; a failure is a valid outcome."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import time
from typing import Any

import torch
import yaml

from efface import api, config, stats
from efface.auditing import signals
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Cost
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.bench.outcome import StoredOutcome
from efface.bench.plan import METHOD_CHOICES, TaskKind
from efface.bench.selection import score_setting
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.errors import DiskError, EffaceError
from efface.files import EPOCH, hold_lock, make_folder, read_json, scratch_folder
from efface.runs import artifacts
from efface.runs.folder import create_run_folder
from efface.runs.run import Sizes, load_data
from efface.schema import parse_record
from efface.tasks import report_steps, wait_until_seen
from efface.training.batch import Log
from efface.training.checkpoint import Checkpoint, EpochStore
from efface.training.loop import TrainingCost
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe
from efface.unlearning import methods

OUTCOME, TASK_OBSERVATIONS, JOURNAL, STORED_ROC_POINTS = "outcome.json", "observations.npz", "journal.jsonl", 60


@dataclass(frozen=True)
class TaskJob:
    """A task as it is sent to a worker process: what to make, where to write it, and the folders it needs."""

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
    """Read the outcome of a task; None if it is not finished. A failed task has the key ``error``."""
    path = folder / OUTCOME
    if not path.exists():
        return None
    remedy = f"Remove {folder} to run the task again."
    content = read_json(path, "result of a task", remedy=remedy)
    parse_record(StoredOutcome, content, path, "result of a task", remedy)
    return content


class BenchTaskError(RuntimeError):
    """A task that ended with an error, which is its recorded outcome.

    Args:
        outcome: The outcome, with the key ``error``.

    """

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return str(self.outcome["error"])


def run_bench_task(job: TaskJob) -> dict[str, Any]:
    """Run a task, write its folder and return its outcome; a finished task is not run again.

    Args:
        job: The task.

    Raises:
        BenchTaskError: The method failed, which is recorded as the outcome. An error of the disk is raised as it is,
            because it says nothing about the task.

    """
    torch.set_num_threads(1)
    make_folder(job.folder.parent)
    with hold_lock(job.folder.with_name(f"{job.folder.name}.task")):
        outcome = read_outcome(job.folder)
        if outcome is None:
            _require_ended(job.oracles)
            outcome = _run(job)
    if "error" in outcome:
        raise BenchTaskError(outcome)
    return outcome


def _require_ended(oracles: Sequence[Path]) -> None:
    """Raise unless each retrained model has an outcome, if only that it failed: a judgment without it would stay."""
    for folder in oracles:
        if read_outcome(folder) is None:
            raise EffaceError(
                f"The retrained model {folder.name} was not made.",
                "Its task was interrupted, or the disk was full.",
                "Run the same command again.",
            )


def _run(job: TaskJob) -> dict[str, Any]:
    """Run a task, write its folder and add a line to the journal."""
    text = yaml.safe_dump(job.request, sort_keys=False, allow_unicode=True)
    outcome: dict[str, Any]
    with create_run_folder(job.folder, text) as partial:
        try:
            outcome = TASK_RUNNERS[job.kind](job, partial)
        except DiskError:
            raise
        except EffaceError as error:  # a method that diverges is a result
            outcome = {"error": str(error)}
        except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
            outcome = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        (partial / OUTCOME).write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    note_made(job.folder)
    return outcome


def note_made(folder: Path, *, unless_noted: bool = False) -> None:
    """Add a finished task to the journal.

    Args:
        folder: The folder of the task.
        unless_noted: Only if it has no line: its process may have been killed between its folder and its line.

    """
    name, path = f"{folder.parent.name}/{folder.name}", folder.parent.parent / JOURNAL
    with hold_lock(path), path.open("a+", encoding="utf-8") as journal:
        journal.seek(0)
        if not (unless_noted and f'"{name}"' in journal.read()):
            journal.write(json.dumps({"made": name, "at": time(), "pid": os.getpid()}) + "\n")


def _train_original(job: TaskJob, folder: Path) -> dict[str, Any]:
    """Train an original model."""
    request = job.request
    data, split = _load_divided(json.dumps([request["data"], request["split"], request["seed"]]))
    recipe: Recipe = config.build(Recipe, request["recipe"], CHOICES, "recipe.")
    total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
    checkpoint = api.pretrain(
        data,
        split,
        recipe=recipe,
        seed=request["seed"],
        device=job.device,
        bf16=_bf16(request),
        log=_log(total),
        resume_store=EpochStore(folder / EPOCH),
    )
    checkpoint.save(folder)
    return {"cost": vars(checkpoint.training_cost)}


def _observe_original(job: TaskJob, folder: Path) -> dict[str, Any]:
    """Observe an original model on a forget set."""
    original = Checkpoint.load(_require(job.original))
    _observe(job, original, folder)
    return {"cost": vars(original.training_cost)}


def _retrain(job: TaskJob, folder: Path) -> dict[str, Any]:
    """Retrain without the forget set, and observe the model."""
    original, (data, split) = Checkpoint.load(_require(job.original)), _load_world(job.request)
    total = original.recipe.epochs * -(-len(split.retain) // original.recipe.batch_size)
    checkpoint = api.unlearn(
        original,
        data,
        split,
        "retrain",
        seed=job.request["seed"],
        device=job.device,
        bf16=_bf16(job.request["original"]),
        log=_log(total),
        resume_store=EpochStore(folder / EPOCH),
    )
    return _save(job, checkpoint, folder)


def _unlearn(job: TaskJob, folder: Path) -> dict[str, Any]:
    """Unlearn with one method and setting, and observe the model."""
    original, (data, split) = Checkpoint.load(_require(job.original)), _load_world(job.request)
    method = config.parse_choice(methods.METHODS, job.request["method"], "method", METHOD_CHOICES)
    bf16 = _bf16(job.request["original"])
    checkpoint = api.unlearn(original, data, split, method, device=job.device, bf16=bf16, log=_log(0))
    return _save(job, checkpoint, folder)


def _bf16(original: dict[str, Any]) -> bool:
    """Whether the original was trained with bfloat16."""
    return bool(original.get("bf16", False))


def _judge(job: TaskJob, folder: Path) -> dict[str, Any]:
    """Findings, verdict, selection score, and ROC curves of the score that the verdict uses."""
    look, subject = _require(job.look), _require(job.subject)
    original, seen = _load_observations(look), Observations.load(subject / TASK_OBSERVATIONS)
    finished = [one for one in job.oracles if "error" not in (read_outcome(one) or {"error": ""})]
    costs = {"subject": _cost(subject), "original": _cost(look)}
    costs |= {"oracle": _cost(finished[0])} if finished else {}
    criteria = config.build(Criteria, job.request["criteria"])
    oracles = [_load_observations(one) for one in finished]
    result = api.judge_observations(original, seen, oracles, criteria=criteria, costs=costs)
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


TASK_RUNNERS: dict[TaskKind, Callable[[TaskJob, Path], dict[str, Any]]] = {
    TaskKind.ORIGINAL: _train_original,
    TaskKind.OBSERVATION: _observe_original,
    TaskKind.ORACLE: _retrain,
    TaskKind.CELL: _unlearn,
    TaskKind.JUDGMENT: _judge,
}


def _save(job: TaskJob, checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Observe a model, and save its weights if the job asks for it."""
    _observe(job, checkpoint, folder)
    if job.keep_weights:
        checkpoint.save(folder)
    return {"cost": vars(checkpoint.training_cost), "digest": checkpoint.model.digest()}


def _observe(job: TaskJob, checkpoint: Checkpoint, folder: Path) -> None:
    data, split = _load_world(job.request)
    watch = config.build(ObservationSettings, job.request["watch"])
    observations = api.observe(checkpoint, data, split, watch, device=job.device, scratch=scratch_folder(folder))
    artifacts.save_observations(folder / TASK_OBSERVATIONS, observations)


def _load_world(request: dict[str, Any]) -> tuple[Data, Split]:
    """The data of a request, and its split with the forget set."""
    original = request["original"]
    key = json.dumps([original["data"], original["split"], original["seed"]])
    return _load_divided(key)[0], _load_split(key, request["forget"])


@lru_cache(maxsize=4)
def _load_data(source: str) -> Data:
    return load_data({"data": json.loads(source)})


@lru_cache(maxsize=16)
def _load_divided(key: str) -> tuple[Data, Split]:
    """The data and the split without a forget set; ``key`` is JSON of source, sizes and seed, to be hashable."""
    source, sizes, seed = json.loads(key)
    data = _load_data(json.dumps(source))
    return data, Sizes(**sizes).divide(data, seed)


@lru_cache(maxsize=16)
def _load_split(key: str, selector: str) -> Split:
    data, split = _load_divided(key)
    return select_forget_set(split, data, selector, json.loads(key)[2])


@lru_cache(maxsize=6)
def _load_observations(folder: Path) -> Observations:
    return Observations.load(folder / TASK_OBSERVATIONS)


def _cost(folder: Path) -> Cost:
    cost = TrainingCost(**(read_outcome(folder) or {})["cost"])
    return Cost(cost.steps, cost.examples, cost.seconds)


def _log(total: int) -> Log:
    def log(record: dict[str, Any]) -> None:
        report_steps(int(record["step"]), total)

    return log


def _require(folder: Path | None) -> Path:
    """The folder of a dependency, which every plan sets, and which another machine may have written just now."""
    if folder is None:
        raise EffaceError(
            "A task was planned without the task it depends on.", remedy="This is a bug: please report it."
        )
    wait_until_seen(folder)
    return folder
