"""What is rehearsed for a request: the plan of a folder of rehearsals, which every machine reads.

The folder holds ``rehearsals.json`` and ``split.json`` (everything that a machine needs except the data and the
original), one file of scores for each rehearsed request, and one of the original on the examples of all of them.
Nothing of the real request goes into them, except its size and kind: its own examples are neither trained on nor looked
at. So the folder serves every later request of the same kind, and audits find it by the original, the method with its
settings, the kind and the size class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from efface import config
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.rehearsals import FEWEST_REHEARSALS
from efface.data.request_kinds import count_units, kind_of_request
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import SPLIT, hold_lock, make_folder, read_json, write_text
from efface.runs.data_at_hand import DataChecks, settings_now
from efface.runs.foreign import is_foreign
from efface.runs.lineage import find_source
from efface.runs.method_bank import used_bank
from efface.runs.ownership import require_apart
from efface.runs.planned_data import copy_identity, require_plan_folder
from efface.runs.rehearsal_kinds import draw_sets, size_class
from efface.runs.run import OpenedRun, open_run
from efface.schema import Count, FirstFormat, HexDigest, Name, SeedNumber, StoredModel

REHEARSALS = "rehearsals.json"
BEFORE = "before"
TASK = "rehearsal"
"""What ``Observations.meta`` calls the task that stored scores are of: the name of their file."""
FEWEST_UNSEEN = 1000
"""At least so many never-trained examples are observed in each rehearsal if there are so many, and at least as many as
examples are forgotten in all rehearsals together: more would hardly narrow the interval."""

OLDER_BANK = 500
"""Older releases compared the margins in rehearsals with at most so many examples."""


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
    unseen: Count | None = None
    compared: Count | None = None
    units: Count | None = None
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
    unseen: int | None = None
    """How many never-trained examples are observed, drawn by key; None: all."""
    compared: int | None = None
    """Size of the bank that margins compare with, where older releases took a smaller one than its audit; else None."""
    units: int | None = None
    """Groups or classes in each rehearsed request, where there are several; else None."""
    seconds: float | None = None
    """Expected time of one rehearsal on one thread; None if the request's cost is not known."""

    def shared(self) -> dict[str, Any]:
        """What names the rehearsals, ready for JSON."""
        named = ("data", "original", "method", "split", "seed", "kind", "size", "watch", "bf16")
        younger = ("micro_batch", "unseen", "compared", "units")  # than the names of stored rehearsals
        more = [name for name in younger if getattr(self, name) is not None]
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
        each = "" if self.units is None else f"{self.units} "
        together = "of about" if self.units is None else "with together about"
        return {
            "random": f"{examples} drawn at random",
            "group": f"{each}groups {together} {examples}",
            "class": f"{each}classes {together} {examples}",
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
    units = count_units(subject.split) if found_kind == kind_of_request(subject.split) and size is None else 1
    largest = draw_sets(subject.data, base, found_kind, asked, requests, int(subject.request["seed"]), units)
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
        units=units if units > 1 else None,
        seconds=cost or None,
    )
    plan = replace(plan, home=home or default_home(plan))
    return replace(
        plan, unseen=_count_unseen(plan, len(base.holdout)), compared=count_bank(plan.watch, len(base.valid))
    )


def _count_unseen(plan: RehearsalPlan, there: int) -> int | None:
    """How many never-trained examples to observe: as in rehearsals that are there, which may be an older release's."""
    if (plan.home / REHEARSALS).exists():
        return RehearsalPlan.load(plan.home).unseen
    enough = max(FEWEST_UNSEEN, plan.requests * plan.size)
    return enough if there > enough else None


def count_bank(watch: Mapping[str, Any], there: int) -> int | None:
    """The size of the bank, where it is larger than that of older releases, whose scores cannot be used beside it.

    Args:
        watch: Settings of observing.
        there: How many unseen examples ``valid`` has.

    """
    settings: ObservationSettings = config.build(ObservationSettings, watch, path="watch.")
    now = min(settings.bank, there)
    return now if now > min(settings.cap, OLDER_BANK) else None


def default_home(plan: RehearsalPlan) -> Path:
    """Where rehearsals are kept by default: beside the original, by the kind of request that they stand for."""
    name = procedure_name(plan.original, plan.method, plan.kind, plan.size, plan.micro_batch, plan.units or 1)
    return rehearsals_beside(Path(plan.source)) / name


def rehearsals_beside(source: Path) -> Path:
    """The folder of all rehearsals of an original."""
    return source.with_name(f"{source.name}-rehearsals")


def procedure_name(
    original: str, method: Mapping[str, Any], kind: str, size: int, micro_batch: int | None = None, units: int = 1
) -> str:
    """Name a procedure: the same original, method, settings, kind, size class and number of groups have one name."""
    parts = [original, dict(method), kind, size_class(size), *([] if micro_batch is None else [micro_batch])]
    parts += [] if units == 1 else [{"units": units}]
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
        subject.meta["parent"], subject.meta["method"], kind, size, subject.meta["recipe"].get("micro_batch"),
        count_units(subject.split),
    )  # fmt: skip
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
        there = RehearsalPlan.load(plan.home) if (plan.home / REHEARSALS).exists() else plan
        if there.shared() != plan.shared():
            if replace(there, compared=plan.compared).shared() == plan.shared():
                raise EffaceError(
                    f"The rehearsals in {plan.home} are an older release's.",
                    f"It compared their margins with {OLDER_BANK} unseen examples, and those of the request itself "
                    f"with {plan.compared}.",
                    "Delete that folder, or choose another --out.",
                )
            raise EffaceError(
                f"{plan.home} holds the rehearsals of another procedure.",
                "Its original, method, split, kind, size or observation settings are different.",
                "Choose another --out.",
            )
        subject = open_run(run, checks, judged=False)
        split = _base_split(subject.split)
        write_text(plan.home / SPLIT, json.dumps(split.to_dict(subject.data)), private=True)
        copy_identity(Path(run), plan.home)
        named = ("source", "request", "requests", "bank", "micro_batch", "unseen", "compared", "units", "seconds")
        content = plan.shared() | {name: getattr(plan, name) for name in named}
        write_text(plan.home / REHEARSALS, json.dumps(content, indent=1, default=str) + "\n", private=True)
