"""Make a reference bank: train models on random halves of the original's training data, and keep their scores.

A bank is a folder with ``bank.json`` and ``split.json`` (everything that a machine needs except the data), one file of
scores for each finished model, and ``bank.npz`` with all of them, which is what audits read. Each model is one task,
named by what goes into it, so that the folders of several machines can be merged by copying, and more models can be
added later. Weights are removed once their scores are stored, unless they are asked for.

The models are trained with the original's own recipe (or with a share of its epochs) on complementary halves; units
that will be asked to be forgotten together, and copies of one picture, are always on the same side. See
:mod:`efface.auditing.reference_bank`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field

from efface import api, config
from efface.auditing import signals
from efface.auditing.bank_file import BANK_FILE, HalfScores, join_halves, save_bank
from efface.auditing.observers.observe import ObservationSettings, observe_model
from efface.auditing.reference_bank import ReferenceBank, draw_halves
from efface.data.clusters import cluster_copies
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import EPOCH, SPLIT, hold_lock, make_folder, read_json, scratch_folder, write_text
from efface.runs.data_at_hand import DataAtHand, DataChecks, settings_now
from efface.runs.folder import create_run_folder
from efface.runs.lineage import find_source
from efface.runs.method_bank import valid_digest
from efface.runs.ownership import put_back, remove_replaced, require_apart, set_aside
from efface.runs.planned_data import copy_identity, open_planned_data, require_plan_folder
from efface.runs.references import FIRST_SEED
from efface.runs.remaining import watch_tasks
from efface.runs.run import OpenedRun, Progress, logging, open_run
from efface.schema import FirstFormat, HexDigest, Name, SeedNumber, SomeShare, StoredModel
from efface.tasks import Task, report_steps, run_tasks
from efface.training import devices
from efface.training.checkpoint import META, Checkpoint, EpochStore
from efface.training.networks.own_module import with_own_modules
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe

BANK_PLAN = "bank.json"
BankUnit = Literal["example", "group", "class"]
UNSEEN_SEEDS = FIRST_SEED * 5
"""Model number m has the original's seed plus this plus m: apart from every reference's."""
SAMPLED_PARTS = ("retain", "holdout", "control", "valid")
"""Parts whose scores are kept: what was trained on, the holdout, all test examples, of which audits take some, and the
margins of ``valid``, which methods compare with."""


class StoredBankPlan(StoredModel):
    """The content of a ``bank.json``."""

    format: FirstFormat
    data: Name | dict[str, Any]
    recipe: dict[str, Any]
    original: HexDigest
    split: HexDigest
    seed: SeedNumber
    unit: BankUnit
    share: SomeShare
    watch: dict[str, Any]
    models: Annotated[int, Field(ge=2, le=10_000, multiple_of=2)]
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class BankPlan:
    """What a bank is made of; the same plan makes the same bank on every machine."""

    home: Path
    data: Any
    """The data source and its options."""
    recipe: dict[str, Any]
    """The original's recipe, with the epochs that the bank's models are trained for."""
    original: str
    """Digest of the original's weights."""
    split: str
    """Digest of the plan's split, whose ``retain`` is everything that the original was trained on."""
    seed: int
    unit: BankUnit
    """What is always on the same side: single examples, groups, or classes."""
    share: float
    """Share of the original's epochs."""
    watch: dict[str, Any]
    """How the models are observed."""
    models: int
    seconds: float | None = None
    """Expected time of one model on one thread; None if the original's cost is not known."""

    def shared(self) -> dict[str, Any]:
        """Everything except the number of models and the expected time, ready for JSON."""
        named = ("data", "recipe", "original", "split", "seed", "unit", "share", "watch")
        return json.loads(json.dumps({"format": 1} | {name: getattr(self, name) for name in named}))

    def file_of(self, model: int) -> Path:
        """The file of the scores of one model."""
        content = json.dumps([self.shared(), model], sort_keys=True)
        return self.home / f"half-{model:03d}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.npz"

    def left(self) -> list[int]:
        """The models that are not finished."""
        return [model for model in range(self.models) if not self.file_of(model).exists()]

    def require_same(self) -> None:
        """Raise an error if the folder holds another bank."""
        path = self.home / BANK_PLAN
        if path.exists() and BankPlan.load(self.home).shared() != self.shared():
            raise EffaceError(
                f"{self.home} holds another reference bank.",
                "Its original, recipe, split, unit, epochs or observation settings are different.",
                "Choose another --out.",
            )

    @staticmethod
    def load(home: Path) -> BankPlan:
        """Read the plan of a bank."""
        remedy = "Restore it, or plan again: `efface references RUN --bank 8 --out DIR`."
        missing = "Make one with `efface references RUN --bank 8 --out DIR`."
        found = read_json(
            home / BANK_PLAN, "plan of a reference bank", schema=StoredBankPlan, missing=missing, remedy=remedy
        )
        found.pop("format")
        return BankPlan(home, **{name: found[name] for name in BankPlan.__dataclass_fields__ if name in found})


def plan_bank(
    run: Path,
    home: Path,
    models: int = 8,
    *,
    unit: BankUnit = "example",
    share: float = 1.0,
    recipe: Path | None = None,
    watch: ObservationSettings | None = None,
    checks: DataChecks | None = None,
) -> BankPlan:
    """Plan a reference bank for the original of a run; nothing is written.

    Args:
        run: The original, or any run that was unlearned from it.
        home: Folder of the bank. More models than before extend a bank that it holds; no model is removed.
        models: The number of models, even; more make the audit sharper.
        unit: What is always on the same side: what will be asked to be forgotten together.
        share: Share of the original's epochs that each model is trained for.
        recipe: A YAML file of settings of the recipe, for an original that was not trained with efface.
        watch: How to observe; audits with this bank must observe in the same way.
        checks: Where the data are now, and which differences are accepted.

    Raises:
        EffaceError: The original's recipe is not known, or the unit does not divide the data.

    """
    if models < 2 or models % 2 or models > 10_000:
        raise EffaceError(
            f"A reference bank of {models} models cannot be made.",
            "Its models come in complementary pairs.",
            "Ask for an even number: --bank 8.",
        )
    subject = open_run(run, checks, judged=False)
    start = _find_original(subject)
    settings = _recipe_of(subject, start, recipe)
    epochs = int(settings["epochs"])
    settings["epochs"] = max(1, round(share * epochs))
    split = trained_split(subject.split, subject.data)
    units_of(subject.data, split, unit)  # an error before anything is planned
    earlier = BankPlan.load(home) if (home / BANK_PLAN).exists() else None
    if earlier is not None and recipe is None and "micro_batch" in {*settings, *earlier.recipe}:
        settings["micro_batch"] = earlier.recipe.get("micro_batch")  # it is extended as it was begun
    cost = start["cost"]["seconds"] if start.get("trained") else 0
    plan = BankPlan(
        home,
        settings_now(subject.request, checks),
        settings,
        start["digest"],
        split.digest(subject.data),
        int(start["seed"]),
        unit,
        settings["epochs"] / epochs,
        json.loads(json.dumps(config.dump(watch or ObservationSettings()))),
        max(models, 0 if earlier is None else earlier.models),
        cost / 2 * settings["epochs"] / epochs if cost else None,
    )
    plan.require_same()
    return plan


def _find_original(subject: OpenedRun) -> dict[str, Any]:
    """The description of the model that every request of a run goes back to."""
    stored, meta = subject.stored, subject.meta
    while True:
        source = find_source(stored) if stored.request.get("verb") == "unlearn" else None
        if source is None:
            return dict(meta)
        if not (source / META).exists():
            return {**meta, "digest": meta["parent"], "trained": False, "method": None}
        stored = subject.folders.read(source)
        meta = stored.meta


def _recipe_of(subject: OpenedRun, start: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """The recipe of the bank's models, as settings: the original's, in parts of a batch as small as the run's."""
    found: dict[str, Any] = json.loads(json.dumps(start["recipe"]))
    small = subject.meta["recipe"].get("micro_batch")
    found |= {} if small is None else {"micro_batch": small}
    if file is not None:
        found = _merged(found, config.read(file))
        config.build(Recipe, found, CHOICES, "recipe.")
    elif not start["trained"]:
        raise EffaceError(
            f"The original of {subject.folder} was not trained with efface, so its recipe is not known.",
            "The models of a reference bank are trained as the original was.",
            "Write what it was trained with into a file, such as `epochs: 100` and `optim: {lr: 0.1}`, and name it: "
            "--recipe recipe.yaml.",
        )
    return found


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes; mappings inside are changed and not replaced."""
    both = {name: settings[name] for name in changes if name in settings}
    nested = {
        name: _merged(both[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and isinstance(both.get(name), dict)
    }
    return settings | changes | nested


def trained_split(split: Split, data: Data) -> Split:
    """Return the split in which nothing is forgotten: ``retain`` is everything trained on, ``holdout`` the whole pool.

    It is the same for every request to the same original, as long as its pictures are there.
    """
    pool = np.sort(np.concatenate([split.holdout, split.spare]))
    provenance = {"selector": "", "seed": split.provenance.get("seed"), "random": True, "matched": None}
    return Split(retain=split.train, valid=split.valid, holdout=pool, test=split.test, provenance=provenance)


def units_of(data: Data, split: Split, unit: BankUnit) -> np.ndarray:
    """Name the unit of each training example, str [n]; copies of one picture share a unit.

    Raises:
        EffaceError: The data has no groups or classes, or there are fewer than four units.

    """
    rows = split.retain
    copies = cluster_copies(data, rows)
    names = np.array([f"copy {data.keys[rows[at]]}" for at in copies])
    if unit == "group":
        if data.group is None:
            raise EffaceError(
                "The data has no groups.", remedy="Use --unit example, or a manifest with a group column."
            )
        own = data.group[rows]
        names = np.where(own == "", names, np.char.add("group ", own.astype(str)))
    if unit == "class":
        if data.y is None or not (data.y[rows] >= 0).all():
            raise EffaceError("Not every training example has a class.", remedy="Use --unit example or --unit group.")
        names = np.array([f"class {label}" for label in data.y[rows].tolist()])
    if len(np.unique(names)) < 4:
        raise EffaceError(f"There are only {len(np.unique(names))} units to divide.", remedy="Use --unit example.")
    return names


def write_bank_plan(run: Path, plan: BankPlan, checks: DataChecks | None = None) -> None:
    """Write the plan of a bank, with the split that its tasks need."""
    require_apart(plan.home, [run])
    if not (plan.home / BANK_PLAN).is_file():
        require_plan_folder(plan.home, ())
    make_folder(plan.home)
    with hold_lock(plan.home / BANK_PLAN):
        plan.require_same()
        subject = open_run(run, checks, judged=False)
        split = trained_split(subject.split, subject.data)
        text = json.dumps(split.to_dict(subject.data))
        write_text(plan.home / SPLIT, text, private=True)
        copy_identity(Path(run), plan.home)
        content = plan.shared() | {"models": plan.models, "seconds": plan.seconds}
        write_text(plan.home / BANK_PLAN, json.dumps(content, indent=1) + "\n")


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
    bf16 = devices.prefers_bfloat16(devices.resolve_device(device))
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
