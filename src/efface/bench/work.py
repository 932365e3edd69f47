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

from efface import api, config, evidence, signals, stats
from efface.audits import Cost
from efface.bench.choice import score
from efface.bench.plan import WRITTEN, Kind
from efface.checkpoint import CHOICES, Checkpoint, EpochKeeper
from efface.data import Data
from efface.errors import EffaceError
from efface.folder import EPOCH, read_json, writing
from efface.observations import Observations
from efface.runs import Sizes, load_data
from efface.splits import Split, forget
from efface.train import Recipe, Tally
from efface.types import Log
from efface.verdict import Criteria
from efface.watch import Watch

OUTCOME, OBSERVED, JOURNAL, POINTS = "outcome.json", "observations.npz", "journal.jsonl", 60
Tell = Callable[[int, int], None]
"""``(step, steps in all or 0)``."""


@dataclass(frozen=True)
class Job:
    """A task as a process is handed it: where to write, what to make, and where what it needs is."""

    kind: Kind
    folder: Path
    request: dict[str, Any]
    original: Path | None = None
    look: Path | None = None
    subject: Path | None = None
    oracles: tuple[Path, ...] = ()
    device: str = "cpu"
    keep_weights: bool = False


def outcome(folder: Path) -> dict[str, Any] | None:
    """What a finished task left; None where it is not finished. ``error``: why it failed, or absent."""
    path = folder / OUTCOME
    if not path.exists():
        return None
    return read_json(path, "result of a task", remedy=f"Remove {folder}, to have it made again.")


def perform(job: Job, tell: Tell) -> dict[str, Any]:
    """Make a task's folder, and give back its outcome.

    Whatever the method does wrong is written down as the outcome; a full disk is raised, because the same task would
    not fail on another.
    """
    torch.set_num_threads(1)
    text = yaml.safe_dump(job.request, sort_keys=False, allow_unicode=True)
    made: dict[str, Any]
    with writing(job.folder, text) as half:
        try:
            made = MAKE[job.kind](job, half, tell)
        except EffaceError as error:  # a method that diverges is a result
            made = {"error": str(error)}
        except (RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError) as error:
            made = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        (half / OUTCOME).write_text(json.dumps(made) + "\n", encoding="utf-8")
    with (job.folder.parent.parent / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"made": f"{job.kind}/{job.folder.name}", "at": time(), "pid": os.getpid()}) + "\n")
    return made


def _original(job: Job, half: Path, tell: Tell) -> dict[str, Any]:
    asked = job.request
    data, split = _divided(json.dumps([asked["data"], asked["split"], asked["seed"]]))
    recipe: Recipe = config.build(Recipe, asked["recipe"], CHOICES, "recipe.")
    total = recipe.epochs * -(-len(split.train) // recipe.batch_size)
    keep = EpochKeeper(half / EPOCH)
    made = api.pretrain(
        data, split, recipe=recipe, seed=asked["seed"], device=job.device, bf16=_bf16(asked),
        log=_log(tell, total), keep=keep,
    )  # fmt: skip
    made.save(half)
    return {"cost": vars(made.tally)}


def _look(job: Job, half: Path, tell: Tell) -> dict[str, Any]:
    start = Checkpoint.load(_there(job.original))
    _observe(job, start, half)
    return {"cost": vars(start.tally)}


def _oracle(job: Job, half: Path, tell: Tell) -> dict[str, Any]:
    start, (data, split) = Checkpoint.load(_there(job.original)), _chosen(job.request)
    total = start.recipe.epochs * -(-len(split.retain) // start.recipe.batch_size)
    keep, seed = EpochKeeper(half / EPOCH), job.request["seed"]
    made = api.unlearn(
        start, data, split, "retrain", seed=seed, device=job.device, bf16=_bf16(job.request["original"]),
        log=_log(tell, total), keep=keep,
    )  # fmt: skip
    return _kept(job, made, half)


def _cell(job: Job, half: Path, tell: Tell) -> dict[str, Any]:
    start, (data, split) = Checkpoint.load(_there(job.original)), _chosen(job.request)
    method = config.choose(api.METHODS, job.request["method"], "method", WRITTEN)
    bf16 = _bf16(job.request["original"])
    made = api.unlearn(start, data, split, method, device=job.device, bf16=bf16, log=_log(tell, 0))
    return _kept(job, made, half)


def _bf16(original: dict[str, Any]) -> bool:
    """As the original was trained."""
    return bool(original.get("bf16", False))


def _judged(job: Job, half: Path, tell: Tell) -> dict[str, Any]:
    """Findings, verdict, what settings are chosen by, and ROC curves of the score that the verdict is about."""
    look, subject = _there(job.look), _there(job.subject)
    original, seen = _seen(look), Observations.load(subject / OBSERVED)
    there = [folder for folder in job.oracles if "error" not in (outcome(folder) or {"error": ""})]
    costs = {"subject": _cost(subject), "original": _cost(look)} | ({"oracle": _cost(there[0])} if there else {})
    criteria = config.build(Criteria, job.request["criteria"])
    result = api.judge_observations(original, seen, [_seen(one) for one in there], criteria=criteria, costs=costs)
    references = result.evidence.oracles
    curves = {}
    for name in signals.prenamed(seen):
        sides = [
            signals.calibrated(seen, references, part, name) if references else signals.scores(seen, part, name)
            for part in ("forget", "holdout")
        ]
        curves[name] = stats.curve(sides[0], sides[1], POINTS)
    return {
        "verdict": asdict(result.verdict),
        "findings": [asdict(replace(one, details={})) for one in result.findings],
        "choice": asdict(score(original, seen)),
        "curves": curves,
        "cost": asdict(costs["subject"]),
    }


MAKE: dict[Kind, Callable[[Job, Path, Tell], dict[str, Any]]] = {
    Kind.ORIGINAL: _original,
    Kind.LOOK: _look,
    Kind.ORACLE: _oracle,
    Kind.CELL: _cell,
    Kind.JUDGED: _judged,
}


def _kept(job: Job, made: Checkpoint, half: Path) -> dict[str, Any]:
    """Observe a model, and keep its weights if that was asked for."""
    _observe(job, made, half)
    if job.keep_weights:
        made.save(half)
    return {"cost": vars(made.tally), "digest": made.model.digest()}


def _observe(job: Job, made: Checkpoint, half: Path) -> None:
    data, split = _chosen(job.request)
    watch = config.build(Watch, job.request["watch"])
    evidence.keep_observations(half / OBSERVED, api.observe(made, data, split, watch, device=job.device))


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
    return forget(split, data, selector, json.loads(asked)[2])


@lru_cache(maxsize=6)
def _seen(folder: Path) -> Observations:
    return Observations.load(folder / OBSERVED)


def _cost(folder: Path) -> Cost:
    spent = Tally(**(outcome(folder) or {})["cost"])
    return Cost(spent.steps, spent.examples, spent.seconds)


def _log(tell: Tell, total: int) -> Log:
    def log(record: dict[str, Any]) -> None:
        tell(int(record["step"]), total)

    return log


def _there(folder: Path | None) -> Path:
    if folder is None:
        raise EffaceError("A task was planned without what it starts from.", remedy="This is a bug: please report it.")
    return folder
