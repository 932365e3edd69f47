"""References: models made with a run's own recipe, as tasks that any machine can do, each in a folder of its own.

    out        retrained on what is kept, seed k: never saw F           level A1: 1 to 8 of them
    original   trained on all, seed k                                   what "in" starts from
    in         original k, unlearned by the run's own method            level A2: 32 pairs of in and out

A plan is a folder: ``plan.json`` and ``split.json`` (all that a machine needs but the data), ``tasks.jsonl`` (one a
line), and a run folder for each finished task, named by what went into it: kind, recipe, split, seed, method. The same
task has the same name everywhere, so merging two machines' work is copying folders, and doing a task twice is doing
nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
import yaml

from efface import api, config
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError, unknown_name_error
from efface.files import EPOCH, REQUEST, SPLIT, read_json, write_text
from efface.runs.folder import create_run_folder, read_request
from efface.runs.run import Progress, load_data, logging, open_run
from efface.training import loop
from efface.training.checkpoint import META, Checkpoint, EpochStore, read_meta
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe

PLAN, TASKS = "plan.json", "tasks.jsonl"
FIRST_SEED = 1000
"""Seeds of references: the original's seed plus this and their number, so that nobody's own oracle is among them."""
ReferenceKind = Literal["out", "original", "in"]


@dataclass(frozen=True)
class ReferenceTask:
    """One model to make."""

    name: str
    """Its folder: the kind, and a digest of all that goes into it."""
    kind: ReferenceKind
    seed: int
    needs: tuple[str, ...] = ()
    """Tasks whose models it starts from."""
    seconds: float | None = None
    """What it will take on one thread, by the original's own cost; None where that is unknown."""
    bytes: int = 0
    """What it will take on disk."""


@dataclass(frozen=True, eq=False)
class ReferencePlan:
    """What all tasks share, and the tasks."""

    home: Path
    data: Any
    """The data source's options."""
    recipe: dict[str, Any]
    method: dict[str, Any]
    """The run's own method."""
    parent: str
    """Digest of the original."""
    split: str
    """Digest of the split."""
    seed: int
    """The original's seed."""
    tasks: tuple[ReferenceTask, ...] = field(default=())

    def shared(self) -> dict[str, Any]:
        """All but the tasks, JSON-able."""
        named = ("data", "recipe", "method", "parent", "split", "seed")
        return {"format": 1} | {name: getattr(self, name) for name in named}

    def task(self, name: str) -> ReferenceTask:
        """The task called ``name``; an error that lists near names."""
        for one in self.tasks:
            if one.name == name:
                return one
        raise unknown_name_error("task", name, [one.name for one in self.tasks])

    def done(self, task: ReferenceTask) -> bool:
        """Whether its folder is complete."""
        return (self.home / task.name / META).exists()

    def save(self) -> None:
        """Write ``plan.json`` and ``tasks.jsonl``; refused where the folder holds another plan."""
        text = json.dumps(self.shared(), indent=1) + "\n"
        path = self.home / PLAN
        if path.exists() and read_json(path, "plan of references") != json.loads(text):
            raise EffaceError(
                f"{self.home} holds the references of another run.",
                "Its recipe, split, method or original differs.",
                "Choose another --out.",
            )
        write_text(path, text)
        write_text(self.home / TASKS, "".join(json.dumps(asdict(task)) + "\n" for task in self.tasks))

    @staticmethod
    def load(home: Path) -> ReferencePlan:
        """What :meth:`save` wrote."""
        try:
            shared = json.loads((home / PLAN).read_text(encoding="utf-8"))
            lines = [json.loads(line) for line in (home / TASKS).read_text(encoding="utf-8").splitlines()]
            shared.pop("format")
            tasks = tuple(ReferenceTask(**line | {"needs": tuple(line["needs"])}) for line in lines)
            return ReferencePlan(home, tasks=tasks, **shared)
        except FileNotFoundError:
            raise EffaceError(
                f"{home} holds no plan of references.", remedy="Make one with `efface references RUN --out DIR`."
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise EffaceError(
                f"The plan in {home} cannot be read.", f"It is damaged or something else: {error}", "Plan again."
            ) from error


def plan_references(run: Path, home: Path, count: int = 8, pairs: int = 0) -> ReferencePlan:
    """The references of ``run``: ``count`` that never saw F (or ``pairs``, if more), and ``pairs`` unlearned ones.

    Nothing is written. A plan that exists is extended, never cut.
    """
    if min(count, pairs) < 0 or count + pairs < 1:
        raise EffaceError(f"{count} references and {pairs} pairs are no plan.", remedy="Ask for at least one.")
    subject = open_run(run)
    meta = read_meta(run)
    source = Path(str(subject.request.get("from", "")))
    if not (source / META).exists():
        raise EffaceError(
            f"The original is not at {source} any more, or is no run folder.",
            "References are made with the original's own recipe.",
            "Restore it; for foreign weights there is no recipe, so nothing can be retrained as they were.",
        )
    start = read_meta(source)
    _plannable(run, meta, start, pairs)
    made = ReferencePlan(
        home, subject.request["data"], meta["recipe"], meta["method"], start["digest"], meta["split"], start["seed"]
    )
    before = ReferencePlan.load(home).tasks if (home / PLAN).exists() else ()
    kept = len(subject.split.retain) / max(1, len(subject.split.train))
    sizes = {"out": _bytes(source), "original": _bytes(source), "in": _bytes(run)}
    full, own = start["cost"]["seconds"] or None, meta["cost"]["seconds"] or None
    costs = {"out": full and full * kept, "original": full, "in": own}
    tasks: dict[str, ReferenceTask] = {}
    for number in range(max(count, pairs)):
        for kind in ("out", "original", "in") if number < pairs else ("out",):
            task = _task(made, kind, number)
            tasks[task.name] = replace(task, seconds=costs[kind], bytes=sizes[kind])
    tasks |= {task.name: task for task in before if task.name not in tasks}
    return replace(made, tasks=tuple(tasks.values()))


def _plannable(run: Path, meta: Mapping[str, Any], start: Mapping[str, Any], pairs: int) -> None:
    """An error where the run's models cannot be made again."""
    if meta["method"] is None:
        raise EffaceError(
            f"{run} was asked to forget nothing: it is an original.", remedy="Name a run that `efface unlearn` made."
        )
    if not start["trained"]:
        raise EffaceError(
            f"The original of {run} was not trained here, so nothing can be retrained as it was.",
            "Foreign weights come without the recipe that made them.",
            "Give references of your own with --oracle.",
        )
    if pairs and (meta["exact"] or start["method"] is not None):
        why = "its method retrains" if meta["exact"] else "it was unlearned from a model that had been unlearned before"
        raise EffaceError(
            f"{run} has no pairs: {why}.",
            "A pair is a model retrained, and another original of the same recipe unlearned.",
            "Ask for references only: --count.",
        )


def _task(made: ReferencePlan, kind: ReferenceKind, number: int) -> ReferenceTask:
    seed = made.seed + FIRST_SEED + number
    said = {"kind": kind, "recipe": made.recipe, "split": made.split, "seed": seed}
    if kind == "in":
        said["method"] = made.method
    name = f"{kind}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]}"
    return ReferenceTask(name, kind, seed, (_task(made, "original", number).name,) if kind == "in" else ())


def _bytes(folder: Path) -> int:
    """Size of a run folder of the kind."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix != ".html")


def write_reference_plan(run: Path, made: ReferencePlan) -> None:
    """Write a plan with the split that its tasks need."""
    made.home.mkdir(parents=True, exist_ok=True)
    made.save()
    write_text(made.home / SPLIT, (Path(run) / SPLIT).read_text(encoding="utf-8"))


# ---- making them ----


def run_task(home: Path, name: str, *, device: str = "auto", progress: Progress | None = None) -> Path:
    """Do one task, and first what it needs; its folder. What is done is not done again."""
    made = ReferencePlan.load(home)
    task = made.task(name)
    starts = [run_task(home, need, device=device, progress=progress) for need in task.needs]
    folder = home / name
    with _task_lock(home, name):
        if not made.done(task):
            _make(made, task, starts, device, progress or Progress())
    return folder


@lru_cache(maxsize=1)
def _data(text: str) -> Data:
    return load_data(json.loads(text))


def _make(made: ReferencePlan, task: ReferenceTask, starts: Sequence[Path], device: str, progress: Progress) -> None:
    data = _data(json.dumps({"data": made.data}))
    split = Split.load(made.home, data)
    if split.digest(data) != made.split:
        raise EffaceError(
            f"The split in {made.home} is not the one of its plan.",
            "The data differ from those that were planned with, or the file was changed.",
            "Load the same data, or plan again.",
        )
    recipe: Recipe = config.build(Recipe, made.recipe, CHOICES, "recipe.")
    request = {"verb": "references", "kind": task.kind, "seed": task.seed, "data": made.data, "split": made.split}
    if task.kind == "in":
        request |= {"method": made.method}
    bf16 = loop.prefers_bfloat16(loop.resolve_device(device))
    given: dict[str, Any] = {"seed": task.seed, "device": device, "bf16": bf16}
    with create_run_folder(made.home / task.name, yaml.safe_dump(request, sort_keys=False)) as folder:
        split.save(folder, data)
        part = split.train if task.kind == "original" else split.retain
        total = 0 if task.kind == "in" else recipe.epochs * -(-len(part) // recipe.batch_size)
        with logging(folder, progress, total) as log:
            given |= {"log": log}
            keep = EpochStore(folder / EPOCH)
            if task.kind == "original":
                done = api.pretrain(data, split, recipe=recipe, resume_store=keep, **given)
            elif task.kind == "out":
                start = Checkpoint(recipe.start(made.seed), recipe, seed=made.seed)
                done = replace(
                    api.unlearn(start, data, split, "retrain", resume_store=keep, **given), parent=made.parent
                )
            else:
                method = dict(made.method)
                done = api.unlearn(Checkpoint.load(starts[0]), data, split, method.pop("name"), **given, **method)
        done.save(folder)


@contextmanager
def _task_lock(home: Path, name: str) -> Iterator[None]:
    """Keep a second process from the same task; a killed one leaves nothing that hinders."""
    try:
        import fcntl
    except ImportError:
        raise EffaceError(
            f"References cannot be made on this system ({sys.platform}).",
            "Two processes are kept from the same task by a lock that only Unix has.",
            "Make them on Linux or macOS and copy the folders: they can be audited here.",
        ) from None
    with open(home / f"{name}.lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EffaceError(
                f"{name} is being made by another process.", remedy="Wait for it, or do another task."
            ) from None
        yield


def run_all_tasks(
    made: ReferencePlan,
    *,
    jobs: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Do what is left of a plan in one-thread processes; how many tasks that was. Cut, the same call goes on."""
    left = [task for task in made.tasks if not made.done(task)]
    needed = {need for task in left for need in task.needs}
    heads = [task for task in left if task.name not in needed]  # "in" makes its original itself
    jobs = max(1, min(len(heads), jobs or (os.cpu_count() or 1) if loop.resolve_device(device).type == "cpu" else 1))
    began, failed = monotonic(), []
    threads, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(_in_process, made.home, task.name, device): task for task in heads}
            for number, finished in enumerate(as_completed(running), 1):
                error = finished.exception()
                failed += [error] if error else []
                name = running[finished].name
                say(f"{number}/{len(heads)} {name}, {monotonic() - began:.0f} s{f': {error}' if error else ''}")
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    if failed:
        raise failed[0]
    return len(left)


def _in_process(home: Path, name: str, device: str) -> None:
    torch.set_num_threads(1)
    run_task(home, name, device=device)


# ---- what there is ----


def list_finished(home: Path) -> dict[ReferenceKind, list[Path]]:
    """The complete folders of a plan by kind, in the order of their seeds; also what was copied from elsewhere."""
    found: dict[ReferenceKind, list[tuple[int, Path]]] = {"out": [], "original": [], "in": []}
    if not home.is_dir():
        raise EffaceError(f"There is no folder {home}.", remedy="Make it with `efface references RUN --out DIR`.")
    for folder in home.iterdir():
        if (folder / META).exists() and (folder / REQUEST).exists() and folder.suffix != ".partial":
            request = read_request(folder)
            if request.get("verb") == "references":
                found[request["kind"]].append((int(request["seed"]), folder))
    if not found["out"]:
        raise EffaceError(
            f"{home} holds no finished reference.", remedy="Make some with `efface references RUN --out DIR`."
        )
    return {kind: [folder for _, folder in sorted(folders)] for kind, folders in found.items()}


def summarize_plan(made: ReferencePlan, jobs: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """What is planned, what is done, what the rest will take: JSON-able, and in lines."""
    kinds: dict[str, Any] = {}
    for kind in ("out", "original", "in"):
        tasks = [task for task in made.tasks if task.kind == kind]
        left = [task for task in tasks if not made.done(task)]
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
        lines.append("What it will take is not known: the original's own cost was not recorded.")
    else:
        lines.append(
            f"About {total / 60:.1f} minutes of one process ({total / 60 / count:.1f} with {count}), as long as the "
            f"original took where it was made; {size / 1e6:.1f} MB of disk."
        )
    return {"home": str(made.home), "kinds": kinds, "seconds": total, "bytes": size}, lines
