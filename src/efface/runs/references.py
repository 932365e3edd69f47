"""Reference models for an audit, made with the run's own recipe as independent tasks that any machine can do.

    out        retrained without F, seed k: a retrained reference       level A1: 1 to 8 of them
    original   trained on everything, seed k                            the start of "in"
    in         original k, unlearned by the run's own method            level A2: 32 pairs of in and out

A plan is a folder with ``plan.json`` and ``split.json`` (everything that a machine needs except the data),
``tasks.jsonl`` (one task per line), and a run folder for each finished task, named by what goes into it: kind, recipe,
split, seed, method. The same task has the same name on every machine, so the work of two machines is merged by copying
folders, and a finished task is never repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from efface import api, config
from efface.errors import EffaceError, unknown_name_error
from efface.files import EPOCH, REQUEST, SPLIT, hold_lock, make_folder, parse_json, read_json, write_text
from efface.runs.data_at_hand import DataAtHand, DataChecks, settings_now
from efface.runs.folder import create_run_folder, read_request
from efface.runs.lineage import find_original_precision, find_source
from efface.runs.ownership import require_apart
from efface.runs.planned_data import copy_identity, open_planned_data, require_plan_folder
from efface.runs.remaining import watch_tasks
from efface.runs.run import Progress, logging, open_run
from efface.runs.stored import AGAIN, MAX_PLANNED, ReferenceKind, StoredPlan, TaskName
from efface.schema import NotNegative, SeedNumber, Tally, parse_record
from efface.tasks import Task, report_steps, run_tasks
from efface.training import devices
from efface.training.checkpoint import META, Checkpoint, EpochStore
from efface.training.networks.own_module import with_own_modules
from efface.training.objectives import CHOICES
from efface.training.random_start import require_random_start
from efface.training.recipe import Recipe

PLAN, TASKS = "plan.json", "tasks.jsonl"
FIRST_SEED = 1000
"""Reference number k has the original's seed plus this plus k, so that no reference repeats a user's own model."""


@dataclass(frozen=True)
class ReferenceTask:
    """One model to make."""

    name: TaskName
    """Name of its folder: the kind, and a digest of everything that goes into it."""
    kind: ReferenceKind
    seed: SeedNumber
    needs: tuple[TaskName, ...] = ()
    """Names of the tasks whose models it starts from."""
    seconds: NotNegative | None = None
    """Expected time on one thread, from the original's own cost; None if that is unknown."""
    bytes: Tally = 0
    """Expected size on disk."""


@dataclass(frozen=True, eq=False)
class ReferencePlan:
    """A set of tasks, and the settings that they share."""

    home: Path
    data: Any
    """The data source and its options."""
    recipe: dict[str, Any]
    method: dict[str, Any]
    """The unlearning method of the run, with its settings."""
    parent: str
    """Digest of the original."""
    split: str
    """Digest of the split."""
    seed: int
    """The original's seed."""
    tasks: tuple[ReferenceTask, ...] = field(default=())
    bf16: bool | None = None
    """Whether the original was trained in bfloat16; None, as in older plans: what the machine prefers."""

    def shared(self) -> dict[str, Any]:
        """Everything except the tasks, ready for JSON."""
        named = ("data", "recipe", "method", "parent", "split", "seed")
        named += () if self.bf16 is None else ("bf16",)
        return {"format": 1} | {name: getattr(self, name) for name in named}

    def task(self, name: str) -> ReferenceTask:
        """Return the task called ``name``; the error for an unknown one suggests similar names."""
        for one in self.tasks:
            if one.name == name:
                return one
        raise unknown_name_error("task", name, [one.name for one in self.tasks])

    def done(self, task: ReferenceTask) -> bool:
        """Whether the task's folder is complete."""
        return (self.home / task.name / META).exists()

    def require_same(self) -> None:
        """Raise an error if the folder holds another plan."""
        path = self.home / PLAN
        if path.exists() and read_json(path, "plan of references") != json.loads(json.dumps(self.shared())):
            raise EffaceError(
                f"{self.home} holds the references of another run.",
                "Its recipe, split, method or original is different.",
                "Choose another --out.",
            )

    def save(self) -> None:
        """Write ``plan.json`` and ``tasks.jsonl``; an error if the folder holds another plan."""
        self.require_same()
        text, path = json.dumps(self.shared(), indent=1) + "\n", self.home / PLAN
        write_text(self.home / TASKS, "".join(json.dumps(asdict(task)) + "\n" for task in self.tasks))
        write_text(path, text)  # last: where it is, the rest is

    @staticmethod
    def load(home: Path) -> ReferencePlan:
        """Read a plan written by :meth:`save`."""
        missing = "Make one with `efface references RUN --out DIR`."
        shared = read_json(home / PLAN, "plan of references", schema=StoredPlan, missing=missing, remedy=AGAIN)
        named = {name: shared[name] for name in ReferencePlan.__dataclass_fields__ if name in shared}
        return ReferencePlan(home, tasks=_read_tasks(home / TASKS), **named)


def _read_tasks(path: Path) -> tuple[ReferenceTask, ...]:
    """Read a ``tasks.jsonl``."""
    what = "list of tasks"
    try:
        lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise EffaceError(f"{path} cannot be read as a {what}.", f"It is damaged: {error}", AGAIN) from error
    tasks = parse_record(tuple[ReferenceTask, ...], lines, path, what, AGAIN)
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) < len(names) or any(need not in names for task in tasks for need in task.needs):
        raise EffaceError(f"{path} is not a {what}.", "A task is missing, or there twice: it is damaged.", AGAIN)
    return tasks


def plan_references(
    run: Path, home: Path, count: int = 8, pairs: int = 0, checks: DataChecks | None = None
) -> ReferencePlan:
    """Plan reference models for a run; nothing is written.

    Args:
        run: The unlearned run folder.
        home: Folder of the plan. A plan that it holds already is extended; no task is removed.
        count: Number of models retrained without F.
        pairs: Number of pairs of an unlearned and a retrained model, for level A2. At least as many retrained models
            are planned.
        checks: Where the data are now, and which differences are accepted.

    Raises:
        EffaceError: The models cannot be made again, for example because the original was not trained here.

    """
    if min(count, pairs) < 0 or not 1 <= count + pairs <= MAX_PLANNED:
        raise EffaceError(f"{count} references and {pairs} pairs cannot be planned.", remedy="Ask for 1 to 10 000.")
    subject = open_run(run, checks, judged=False)
    meta = subject.meta
    source = find_source(subject.stored) or Path()
    if not (source / META).exists():
        raise EffaceError(
            f"The original is no longer at {source}, or is no run folder.",
            "References are made with the original's own recipe.",
            "Restore it. Foreign weights come without a recipe, so references cannot be made for them.",
        )
    start = subject.folders.read(source).meta
    _require_repeatable(run, meta, start, pairs)
    plan = ReferencePlan(
        home, settings_now(subject.request, checks), meta["recipe"], meta["method"], start["digest"], meta["split"],
        start["seed"], bf16=find_original_precision(subject.stored, subject.folders),
    )  # fmt: skip
    begun = ReferencePlan.load(home) if (home / PLAN).exists() else plan  # goes on as it was begun
    retained = len(subject.split.retain) / max(1, len(subject.split.train))
    sizes = {"out": _bytes(source), "original": _bytes(source), "in": _bytes(run)}
    training, unlearning = start["cost"]["seconds"] or None, meta["cost"]["seconds"] or None
    costs = {"out": training and training * retained, "original": training, "in": unlearning}
    tasks: dict[str, ReferenceTask] = {}
    for number in range(max(count, pairs)):
        for kind in ("out", "original", "in") if number < pairs else ("out",):
            task = _task(plan, kind, number)
            tasks[task.name] = replace(task, seconds=costs[kind], bytes=sizes[kind])
    tasks |= {task.name: task for task in begun.tasks if task.name not in tasks}
    return replace(plan, tasks=tuple(tasks.values()), bf16=begun.bf16)


def _require_repeatable(run: Path, meta: Mapping[str, Any], start: Mapping[str, Any], pairs: int) -> None:
    """Raise an error if the run's models cannot be made again with other seeds."""
    if meta["method"] is None:
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    if not start["trained"]:
        raise EffaceError(
            f"The original of {run} was not trained with efface, so it cannot be trained again.",
            "Foreign weights come without the recipe that made them.",
            "Train references yourself and name them with --oracle.",
        )
    if pairs and (meta["exact"] or start["method"] is not None):
        why = "its method retrains" if meta["exact"] else "it was unlearned from a model that had been unlearned before"
        raise EffaceError(
            f"{run} has no pairs: {why}.",
            "A pair is a retrained model, and another original of the same recipe that is unlearned.",
            "Ask for references only: --count.",
        )


def _task(plan: ReferencePlan, kind: ReferenceKind, number: int) -> ReferenceTask:
    seed = plan.seed + FIRST_SEED + number
    content = {"kind": kind, "recipe": plan.recipe, "split": plan.split, "seed": seed}
    if kind == "in":
        content["method"] = plan.method
    name = f"{kind}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]}"
    return ReferenceTask(name, kind, seed, (_task(plan, "original", number).name,) if kind == "in" else ())


def _bytes(folder: Path) -> int:
    """Size of a run folder, without its pages."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix != ".html")


def write_reference_plan(run: Path, plan: ReferencePlan) -> None:
    """Write a plan, and the split of ``run`` that its tasks need."""
    require_apart(plan.home, [run])
    if not (plan.home / PLAN).is_file():
        require_plan_folder(plan.home, (TASKS,))
    make_folder(plan.home)
    with hold_lock(plan.home / PLAN):
        plan.require_same()
        write_text(plan.home / SPLIT, (Path(run) / SPLIT).read_text(encoding="utf-8"), private=True)
        copy_identity(Path(run), plan.home)
        plan.save()


def run_task(
    home: Path, name: str, *, device: str = "auto", progress: Progress | None = None, wait: bool = False
) -> Path:
    """Do one task of the plan in ``home``, after the tasks that it needs; a finished task is not repeated.

    Args:
        home: Folder of the plan.
        name: Name of the task.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: Receives steps and messages.
        wait: Wait if another process is doing the task, instead of raising an error.

    Returns:
        The run folder of the task.

    Raises:
        EffaceError: There is no such task, another process is doing it, or the data are not those of the plan.

    """
    plan = ReferencePlan.load(home)
    task = plan.task(name)
    if plan.done(task):
        return home / name
    starts = [run_task(home, need, device=device, progress=progress, wait=wait) for need in task.needs]
    busy = EffaceError(f"{name} is being made by another process.", remedy="Wait for it, or do another task.")
    with hold_lock(home / f"{name}.task", None if wait else busy):
        if not plan.done(task):
            _make(plan, task, starts, device, progress or Progress())
    return home / name


@lru_cache(maxsize=1)
def _load_data(home: Path, settings: str, digest: str, needs: tuple[str, ...]) -> DataAtHand:
    return open_planned_data(home, json.loads(settings), digest, needs)


def _make(plan: ReferencePlan, task: ReferenceTask, starts: Sequence[Path], device: str, progress: Progress) -> None:
    needs = ("retain",) if task.kind == "out" else ("forget", "retain")
    here = _load_data(plan.home, json.dumps(plan.data), plan.split, needs)
    data, split = here.data, here.split
    recipe: Recipe = config.build(Recipe, plan.recipe, CHOICES, "recipe.")
    request = {"verb": "references", "kind": task.kind, "seed": task.seed, "data": plan.data, "split": plan.split}
    if task.kind == "in":
        request |= {"method": plan.method}
    require_random_start(recipe)  # also of an original with another seed, and of what is unlearned from it
    bf16 = devices.choose_precision(plan.bf16, device)
    with create_run_folder(plan.home / task.name, yaml.safe_dump(request, sort_keys=False)) as folder:
        split.save(folder, data)
        identity = here.identity.save(folder) if here.identity else ""
        part = split.train if task.kind == "original" else split.retain
        total = 0 if task.kind == "in" else recipe.epochs * -(-len(part) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            options: dict[str, Any] = {"seed": task.seed, "device": device, "bf16": bf16, "log": log}
            store = EpochStore(folder / EPOCH, progress.say)
            if task.kind == "original":
                result = api.pretrain(data, split, recipe=recipe, resume_store=store, **options)
            elif task.kind == "out":
                start = Checkpoint(recipe.start(plan.seed), recipe, seed=plan.seed)
                result = api.unlearn(start, data, split, "retrain", resume_store=store, **options)
                result = replace(result, parent=plan.parent)
            else:
                method = dict(plan.method)
                result = api.unlearn(Checkpoint.load(starts[0]), data, split, method.pop("name"), **options, **method)
        replace(result, identity=identity).save(folder)


def run_all_tasks(
    plan: ReferencePlan,
    *,
    jobs: int | None = None,
    on: str = "local",
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
    status: Callable[[str], None] | None = None,
) -> int:
    """Do the unfinished tasks of a plan in processes with one thread each; if interrupted, the same call resumes.

    Args:
        plan: The plan.
        jobs: Number of processes; by default one per core, and a single one on an accelerator.
        on: Where they run; see :func:`efface.tasks.run_tasks`.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        say: Receives a message after each task.
        status: Receives the remaining time about twice a second.

    Returns:
        The number of tasks that were unfinished.

    Raises:
        EffaceError: A task failed; raised once all others have ended. Those that need it were not run.

    """
    if jobs is None and on == "local" and devices.resolve_device(device).type != "cpu":
        jobs = 1
    if not all(map(plan.done, plan.tasks)):
        require_random_start(config.build(Recipe, plan.recipe, CHOICES, "recipe."))
    home = plan.home.resolve()
    tasks = [
        Task(
            task.name, with_own_modules(_in_process), (home, task.name, device), needs=task.needs,
            is_done=partial(plan.done, task),
        )
        for task in plan.tasks
    ]  # fmt: skip
    watch = None if status is None else watch_tasks(tasks, status, "models")
    return run_tasks(tasks, on=on, jobs=jobs, folder=home, say=say, watch=watch)


def _in_process(home: Path, name: str, device: str) -> None:
    torch.set_num_threads(1)
    steps = Progress(steps=lambda record, total: report_steps(record["step"], total))
    run_task(home, name, device=device, progress=steps, wait=True)


def list_finished(home: Path) -> dict[ReferenceKind, list[Path]]:
    """The finished models in a folder by kind, ordered by seed, including those copied from other machines."""
    found: dict[ReferenceKind, list[tuple[int, Path]]] = {"out": [], "original": [], "in": []}
    if not home.is_dir():
        raise EffaceError(f"There is no folder {home}.", remedy="Make it with `efface references RUN --out DIR`.")
    for folder in home.iterdir():
        if (folder / META).exists() and (folder / REQUEST).exists() and folder.suffix != ".partial":
            request = read_request(folder)
            if request.get("verb") == "references" and request["kind"] in found:
                found[request["kind"]].append((request["seed"], folder))
    if not found["out"]:
        raise EffaceError(
            f"{home} holds no finished reference.", remedy="Make some with `efface references RUN --out DIR`."
        )
    return {kind: [folder for _, folder in sorted(folders)] for kind, folders in found.items()}


def summarize_plan(plan: ReferencePlan, jobs: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """Count planned and unfinished tasks and estimate the rest: as a JSON object, and as lines to print."""
    kinds: dict[str, Any] = {}
    for kind in ("out", "original", "in"):
        tasks = [task for task in plan.tasks if task.kind == kind]
        left = [task for task in tasks if not plan.done(task)]
        known = all(task.seconds is not None for task in left)
        seconds = sum(task.seconds or 0 for task in left) if known else None
        kinds[kind] = {"tasks": len(tasks), "left": len(left), "seconds": seconds, "bytes": sum(t.bytes for t in left)}
    known = all(row["seconds"] is not None for row in kinds.values())
    total = sum(row["seconds"] for row in kinds.values()) if known else None
    size = sum(row["bytes"] for row in kinds.values())
    lines = [f"{'kind':10}{'tasks':>6}{'left':>6}{'minutes':>9}{'MB':>8}"]
    for kind, row in kinds.items():
        minutes = "?" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        lines.append(f"{kind:10}{row['tasks']:6}{row['left']:6}{minutes:>9}{row['bytes'] / 1e6:8.1f}")
    count = jobs or os.cpu_count() or 1
    if total is None:
        lines.append("The time cannot be estimated: the cost of the original was not recorded.")
    else:
        lines.append(
            f"About {total / 60:.1f} minutes of one process ({total / 60 / count:.1f} with {count}), if this machine "
            f"is as fast as the one that made the original; {size / 1e6:.1f} MB of disk."
        )
    return {"home": str(plan.home), "kinds": kinds, "seconds": total, "bytes": size}, lines
