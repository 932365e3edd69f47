"""What a reference bank is made of: the plan of its folder, which every machine reads.

A bank is a folder with ``bank.json`` and ``split.json`` (everything that a machine needs except the data), one file of
scores for each finished model, and ``bank.npz`` with all of them, which is what audits read. The folders of several
machines can be merged by copying, and more models can be added later.

The models are trained with the original's own recipe (or with a share of its epochs) on complementary halves; units
that will be asked to be forgotten together, and copies of one picture, are always on the same side. See
:mod:`efface.auditing.reference_bank`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from efface import config
from efface.auditing.observers.settings import ObservationSettings
from efface.data.clusters import cluster_copies, join_units
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import SPLIT, hold_lock, make_folder, read_json, write_text
from efface.runs.data_at_hand import DataChecks, settings_now
from efface.runs.lineage import find_original_precision, find_source
from efface.runs.ownership import require_apart
from efface.runs.planned_data import copy_identity, require_plan_folder
from efface.runs.run import OpenedRun, open_run
from efface.schema import FirstFormat, HexDigest, Name, SeedNumber, SomeShare, StoredModel
from efface.training.checkpoint import META
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe

BANK_PLAN = "bank.json"
BANK_SHARE = 0.3
"""Share of the original's epochs by default: the words are those of a bank that was trained for all of them, at a third
of its cost (docs/results/reference_bank.md, "How large a bank must be")."""
BankUnit = Literal["example", "group", "class"]


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
    bf16: bool | None = None


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
    bf16: bool | None = None
    """Whether the original was trained in bfloat16; None, as in older banks: what the machine prefers."""

    def shared(self) -> dict[str, Any]:
        """Everything except the number of models and the expected time, ready for JSON."""
        named = ("data", "recipe", "original", "split", "seed", "unit", "share", "watch")
        more = {} if self.bf16 is None else {"bf16": self.bf16}  # names of stored models are older
        return json.loads(json.dumps({"format": 1} | {name: getattr(self, name) for name in named} | more))

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
    share: float | None = None,
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
        share: Share of the original's epochs that each model is trained for; by default that of a bank that is there,
            or ``BANK_SHARE``.
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
    earlier = BankPlan.load(home) if (home / BANK_PLAN).exists() else None
    share = share or (BANK_SHARE if earlier is None else earlier.share)
    settings["epochs"] = max(1, round(share * epochs))
    split = trained_split(subject.split, subject.data)
    units_of(subject.data, split, unit)  # an error before anything is planned
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
        find_original_precision(subject.stored, subject.folders) if earlier is None else earlier.bf16,
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

    Groups or classes that have copies of one picture are one unit, with the first of their names: on different sides, a
    model would have seen what it counts as unseen.

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
    joined = join_units(names, copies)
    if len(np.unique(joined)) < 4:
        lost = len(np.unique(names)) - len(np.unique(joined))
        raise EffaceError(
            f"There are only {len(np.unique(joined))} units to divide.",
            f"Copies of one picture are in several of them: they were joined, {lost} less." if lost else "",
            "Use --unit example.",
        )
    return joined


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
