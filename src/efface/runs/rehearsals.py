"""Rehearse a request: unlearn many sets of retained examples of its size and kind, each from the same original.

A folder of rehearsals holds ``rehearsals.json`` and ``split.json`` (everything that a machine needs except the data and
the original), one file of scores for each rehearsed request, and one of the original on the examples of all of them.
Each is one task, named by what goes into it. Nothing of the real request goes into them, except its size and kind: its
own examples are neither trained on nor looked at. So the folder serves every later request of the same kind, and
audits find it by the original, the method with its settings, the kind and the size class.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from efface import api, config
from efface.auditing import signals
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import OBSERVED_PARTS, Observations
from efface.auditing.observers.observe import RENEWED, RENEWED_PARTS, ObservationSettings, observe_model
from efface.auditing.rehearsals import FEWEST_REHEARSALS
from efface.data.dataset import Data
from efface.data.selectors import Selection
from efface.data.split import Split, move_to_forget
from efface.errors import EffaceError
from efface.files import SPLIT, hold_lock, make_folder, read_json, scratch_folder, write_text
from efface.interop.consent import Consent
from efface.runs import artifacts
from efface.runs.data_at_hand import DataAtHand, DataChecks, settings_now
from efface.runs.foreign import is_foreign, load_foreign
from efface.runs.lineage import find_source
from efface.runs.method_bank import used_bank
from efface.runs.ownership import require_apart
from efface.runs.planned_data import copy_identity, open_planned_data, require_plan_folder
from efface.runs.rehearsal_kinds import draw_sets, kind_of_request, size_class
from efface.runs.remaining import watch_tasks
from efface.runs.run import OpenedRun, open_run
from efface.schema import Count, FirstFormat, HexDigest, Name, SeedNumber, StoredModel
from efface.tasks import Task, run_tasks
from efface.training import devices
from efface.training.checkpoint import Checkpoint
from efface.training.networks.own_module import with_own_modules
from efface.training.objectives import CHOICES
from efface.unlearning.early_stopping import StoppingRule
from efface.unlearning.methods import METHODS, Method

REHEARSALS = "rehearsals.json"
REHEARSAL_SEEDS = 7000
"""Rehearsal number s unlearns with the original's seed plus this plus s."""
MOST_OBSERVED = 500
"""Most retained, spare and control examples that are observed in a rehearsal."""
TESTED = 1000
"""Most test examples."""
BEFORE = "before"
REHEARSED_PARTS = ("forget", "retain", "holdout", "spare", "control", RENEWED_PARTS)


class StoredRehearsals(StoredModel):
    """The content of a ``rehearsals.json``."""

    format: FirstFormat
    data: Name | dict[str, Any]
    source: Name
    original: HexDigest
    request: dict[str, Any]
    method: dict[str, Any]
    split: HexDigest
    seed: SeedNumber
    kind: str
    size: Count
    watch: dict[str, Any]
    bf16: bool
    requests: Count
    bank: str | None = None
    micro_batch: Count | None = None
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class RehearsalPlan:
    """What is rehearsed; the same plan gives the same rehearsals on every machine."""

    home: Path
    data: Any
    source: str
    """Path of the original."""
    original: str
    """Digest of its weights."""
    request: dict[str, Any]
    """Settings that a foreign original is loaded with; empty for a run folder."""
    method: dict[str, Any]
    """The method with its settings, and its stopping rule as ``stop``."""
    split: str
    seed: int
    kind: str
    """``random``, ``group`` or ``class``."""
    size: int
    """Examples in each rehearsed request; for groups and classes about so many."""
    watch: dict[str, Any]
    bf16: bool
    requests: int
    bank: str | None = None
    """The reference bank that the method takes targets from, if it does."""
    micro_batch: int | None = None
    """Images that go through the network at once, as in the run; None: whole batches."""
    seconds: float | None = None
    """Expected time of one rehearsal on one thread; None if the request's cost is not known."""

    def shared(self) -> dict[str, Any]:
        """What names the rehearsals, ready for JSON."""
        named = ("data", "original", "method", "split", "seed", "kind", "size", "watch", "bf16")
        more = () if self.micro_batch is None else ("micro_batch",)  # younger than the names of stored rehearsals
        return json.loads(json.dumps({"format": 1} | {name: getattr(self, name) for name in (*named, *more)}))

    @property
    def names(self) -> list[str]:
        """Names of the tasks: the original on all sets, then each rehearsed request."""
        return [BEFORE, *(f"rehearsal-{number:03d}" for number in range(self.requests))]

    def file_of(self, name: str) -> Path:
        """The file of the scores of one task."""
        count = self.requests if name == BEFORE else 0
        content = json.dumps([self.shared(), name, count], sort_keys=True)
        return self.home / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.npz"

    def left(self) -> list[str]:
        """The tasks that are not finished."""
        return [name for name in self.names if not self.file_of(name).exists()]

    def describe_kind(self) -> str:
        """Say what was rehearsed: ``20 random examples``."""
        examples = f"{self.size} example{'' if self.size == 1 else 's'}"
        return {
            "random": f"{examples} drawn at random",
            "group": f"groups of about {examples}",
            "class": f"classes of about {examples}",
        }[self.kind]

    @staticmethod
    def load(home: Path) -> RehearsalPlan:
        """Read the plan of a folder of rehearsals."""
        remedy = "Restore it, or rehearse again: `efface rehearse RUN --out DIR`."
        missing = "Make them with `efface rehearse RUN --out DIR`."
        found = read_json(
            Path(home) / REHEARSALS, "plan of rehearsals", schema=StoredRehearsals, missing=missing, remedy=remedy
        )
        found.pop("format")
        return RehearsalPlan(Path(home), **{n: found[n] for n in RehearsalPlan.__dataclass_fields__ if n in found})


def plan_rehearsals(
    run: Path,
    home: Path | None = None,
    requests: int = 40,
    *,
    kind: str | None = None,
    size: int | None = None,
    watch: ObservationSettings | None = None,
    checks: DataChecks | None = None,
) -> RehearsalPlan:
    """Plan rehearsals of a run's request; nothing is written.

    Args:
        run: The unlearned run folder.
        home: Folder of the rehearsals; by default beside the original, by what is rehearsed.
        requests: How many; fewer if the data does not hold so many different ones.
        kind: ``random``, ``group`` or ``class``; by default that of the run's request.
        size: Examples per rehearsed request; by default as many as the run's request has.
        watch: How to observe; must be that of the audit.
        checks: Where the data are now, and which differences are accepted.

    Raises:
        EffaceError: The run was made by an exact method, or too few requests of this kind can be drawn.

    """
    subject = open_run(run, checks, judged=False)
    meta, source = subject.meta, find_source(subject.stored)
    _require_rehearsable(subject, source)
    count = subject.split.sizes()["forget"]
    found_kind = kind or kind_of_request(subject.split)
    asked = size or count
    base = _base_split(subject.split)
    largest = draw_sets(subject.data, base, found_kind, asked, requests, int(subject.request["seed"]))
    if len(largest) < FEWEST_REHEARSALS:
        raise EffaceError(
            f"Only {len(largest)} requests of this kind fit into the {len(base.retain)} retained examples.",
            f"A procedure is judged by at least {FEWEST_REHEARSALS} rehearsals.",
            "Rehearse smaller requests (--size), or single examples (--like random).",
        )
    foreign = source is not None and is_foreign(source)
    settings = json.loads(json.dumps(config.dump(watch or ObservationSettings())))
    cost = float(meta["cost"]["seconds"])
    plan = RehearsalPlan(
        Path(),
        settings_now(subject.request, checks),
        str(Path(str(source)).resolve()),
        meta["parent"],
        dict(subject.request) if foreign else {},
        meta["method"],
        base.digest(subject.data),
        int(subject.request["seed"]),
        found_kind,
        asked,
        settings,
        bool(subject.request.get("bf16")),
        len(largest),
        subject.request.get("bank") if used_bank(meta) else None,
        meta["recipe"].get("micro_batch"),
        cost or None,
    )
    return replace(plan, home=home or default_home(plan))


def default_home(plan: RehearsalPlan) -> Path:
    """Where rehearsals are kept by default: beside the original, by the kind of request that they stand for."""
    name = procedure_name(plan.original, plan.method, plan.kind, plan.size, plan.micro_batch)
    return rehearsals_beside(Path(plan.source)) / name


def rehearsals_beside(source: Path) -> Path:
    """The folder of all rehearsals of an original."""
    return source.with_name(f"{source.name}-rehearsals")


def procedure_name(
    original: str, method: Mapping[str, Any], kind: str, size: int, micro_batch: int | None = None
) -> str:
    """Name a procedure: the same original, method, settings, kind and size class have the same name."""
    parts = [original, dict(method), kind, size_class(size), *([] if micro_batch is None else [micro_batch])]
    content = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return f"{method.get('name', 'method')}-{kind}-{size}-{digest}".replace("/", "-")


def find_rehearsals(subject: OpenedRun) -> Path | None:
    """Find the rehearsals that stand for a run's request in the folder beside its original; None if there are none."""
    source = find_source(subject.stored)
    if source is None or subject.meta["method"] is None or subject.meta["exact"]:
        return None
    folder = rehearsals_beside(Path(source))
    size, kind = subject.split.sizes()["forget"], kind_of_request(subject.split)
    name = procedure_name(
        subject.meta["parent"], subject.meta["method"], kind, size, subject.meta["recipe"].get("micro_batch")
    )
    digest = name.rsplit("-", 1)[1]
    found = sorted(folder.glob(f"*-{digest}")) if folder.is_dir() else []
    return next((one for one in found if (one / REHEARSALS).exists() and not RehearsalPlan.load(one).left()), None)


def _base_split(split: Split) -> Split:
    """The split in which the real request's own examples take no part any more."""
    moved = replace(split, forget=split.forget[:0], earlier=np.sort(np.concatenate([split.earlier, split.forget])))
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    gone = {part: keys for part, keys in split.absent.items() if part != "forget"}
    erased = (*split.absent.get("earlier", ()), *split.absent.get("forget", ()))
    return replace(
        moved, holdout=pool, spare=pool[:0], provenance={"seed": split.provenance.get("seed")},
        absent=gone | ({"earlier": erased} if erased else {}),
    )  # fmt: skip


def _require_rehearsable(subject: OpenedRun, source: Path | None) -> None:
    if subject.meta["method"] is None or source is None or not subject.split.sizes()["forget"]:
        raise EffaceError(
            f"{subject.folder} was asked to forget nothing: there is no procedure to rehearse.",
            remedy="Name a run that `efface unlearn` made.",
        )
    if subject.meta["exact"]:
        raise EffaceError(
            f"{subject.folder} was retrained: a reference bank is its rehearsal.",
            "Every model of a bank was retrained without half of the examples.",
            f"Audit with it: `efface audit {subject.folder} --bank DIR`.",
        )
    if not Path(source).exists():
        raise EffaceError(f"The original is no longer at {source}.", "Rehearsals are unlearned from it.", "Restore it.")


def write_rehearsal_plan(run: Path, plan: RehearsalPlan, checks: DataChecks | None = None) -> None:
    """Write the plan of rehearsals, with the split that they need."""
    require_apart(plan.home, [run, Path(plan.source)])
    if not (plan.home / REHEARSALS).is_file():
        require_plan_folder(plan.home, ())
    make_folder(plan.home)
    with hold_lock(plan.home / REHEARSALS):
        if (plan.home / REHEARSALS).exists() and RehearsalPlan.load(plan.home).shared() != plan.shared():
            raise EffaceError(
                f"{plan.home} holds the rehearsals of another procedure.",
                "Its original, method, split, kind, size or observation settings are different.",
                "Choose another --out.",
            )
        subject = open_run(run, checks, judged=False)
        split = _base_split(subject.split)
        write_text(plan.home / SPLIT, json.dumps(split.to_dict(subject.data)), private=True)
        copy_identity(Path(run), plan.home)
        named = ("source", "request", "requests", "bank", "micro_batch", "seconds")
        content = plan.shared() | {name: getattr(plan, name) for name in named}
        write_text(plan.home / REHEARSALS, json.dumps(content, indent=1, default=str) + "\n", private=True)


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
        if file.exists():
            return file
        here = _load_data(home, json.dumps(plan.data), plan.split)
        data, base = here.data, here.split
        sets = draw_sets(data, base, plan.kind, plan.size, plan.requests, plan.seed)
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
        artifacts.save_observations(file, observed)
    return file


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
    model = checkpoint.model.to(devices.resolve_device(device))
    return keep_scores(
        observe_model(
            model, data, split, checkpoint.recipe.views, few, parts=REHEARSED_PARTS, scratch=scratch_folder(plan.home)
        )
    )


def keep_scores(observed: Observations) -> Observations:
    """Reduce observations to keys, labels and the finished scores of every signal; 0 where there is none."""
    arrays: dict[str, np.ndarray] = {}
    for part in (*OBSERVED_PARTS, *RENEWED.values()):
        if not observed.count(part):
            continue
        arrays[f"{part}/keys"] = observed.of(part, "keys")
        if observed.has(part, "labels"):
            arrays[f"{part}/labels"] = observed.of(part, "labels")
        for name in signals.signal_names(observed.spaces):
            if signals.has_signal(observed, part, name):
                values = np.zeros(observed.count(part), dtype=np.float32)
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
        lines.append(
            f"About {math.ceil(seconds / 60 / count)} minutes for the rest with {count} process"
            f"{'' if count == 1 else 'es'}, and the time to score with them."
        )
    return result, lines
