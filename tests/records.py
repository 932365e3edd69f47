"""Records, observations and logs of synthetic worlds: every case that a report must handle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np

from efface.auditing.audits import AUDITS
from efface.auditing.audits.oracle_gap import OracleGap
from efface.auditing.audits.utility import Utility
from efface.auditing.criteria import Criteria
from efface.auditing.evidence import Cost, Evidence, Finding
from efface.auditing.observations import Observations
from efface.auditing.rehearsals import PooledSignal, PooledWord, RehearsedVerdict
from efface.auditing.release import ReleaseCheck
from efface.auditing.validation import decide_with_rehearsals
from efface.auditing.verdict import judge
from efface.reporting.environment import Environment
from efface.reporting.facts import CheckpointFacts, DataFacts, LogFacts, PartChange, RehearsalFacts, Request, SplitFacts
from efface.reporting.record import Record
from tests.worlds import World, with_arrays

WHEN = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
SECRET = bytes(range(32))
METHOD = {"name": "gradient_constraint", "epochs": 5, "weight": 10.0}


@dataclass(frozen=True)
class Moved:
    """What the torch side measures for each part of a model."""

    part: str
    numbers: int
    relative: float
    largest: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """The input of ``render``, and the ids of the request."""

    record: Record
    observations: dict[str, Observations]
    log: list[dict[str, Any]]
    ids: list[str] = field(default_factory=list)


def log_of(steps: int = 400, terms: tuple[str, ...] = ("task", "stay")) -> list[dict[str, Any]]:
    """Write the log of two phases that alternate by epoch: ascent on the forget set, descent on the rest."""
    rng, lines = np.random.default_rng(3), []
    for step in range(1, steps + 1):
        phase = "forget" if (step // 20) % 3 == 0 and step < steps / 2 else "retain"
        names = ("away",) if phase == "forget" else terms
        values = {n: (i + 1) * math.exp(-step / 150) + 0.1 * rng.normal() for i, n in enumerate(names)}
        values = {n: -v if n == "away" else v for n, v in values.items()}
        lr = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2
        lines.append({"step": step, "epoch": step // 20, "phase": phase, "lr": lr, "terms": values})
    return lines


def case(
    world: World,
    subject: Observations,
    original: Observations,
    oracles: tuple[Observations, ...] = (),
    *,
    audits: str = "few",
    seen: bool = True,
    log: list[dict[str, Any]] | None = None,
    **changed: Any,
) -> Case:
    """Build the sealed record of an audit of ``subject``; ``changed`` replaces fields of the record."""
    costs = {"subject": Cost(400, 25_600, 31.4), "original": Cost(12_000, 3_072_000, 2710.0)}
    costs |= {"oracle": Cost(12_000, 2_764_800, 2533.9)} if oracles else {}
    evidence = Evidence(original, subject, oracles, costs)
    chosen = [make() for make in AUDITS.values()] if audits == "all" else [Utility((20,)), OracleGap()]
    findings = [f for audit in chosen for f in audit.findings(evidence)]
    ids = [f"forget/{i:05d}" for i in range(world.sizes["forget"])]
    log = log_of() if log is None else log
    models = {"original": original, "subject": subject} | {f"oracle {i + 1}": o for i, o in enumerate(oracles)}
    fields: dict[str, Any] = {
        "created": WHEN,
        "request": Request(
            selector="@random:0.1",
            count=len(ids),
            goal="individual erasure",
            method=METHOD,
        ),
        "data": DataFacts(
            name="fashion-mnist",
            digest="d" * 64,
            size=sum(world.sizes.values()),
            shape=(1, 28, 28),
            classes=("t-shirt", "trouser", "pullover", "dress", "coat") if world.labelled else (),
        ),
        "split": SplitFacts(digest="5" * 64, sizes=dict(world.sizes), random=True, seed=0),
        "checkpoints": {name: facts(name, i) for i, name in enumerate(models)},
        "lineage": ("a" * 64, "b" * 64),
        "config": {"forget": "@random:0.1", "method": METHOD, "seed": 0},
        "environment": Environment(
            python="3.11.7",
            torch="2.14.1",
            platform="Linux 6.1 x86_64",
            cpu="Example CPU, 2 logical",
            threads=1,
        ),
        "changes": [PartChange.of(moved) for moved in MOVED],
        "findings": findings,
        "criteria": Criteria(),
        "verdict": judge(evidence, Criteria()),
        "cost": costs,
        "files": {"checkpoint.safetensors": "c" * 64, "observations.npz": "e" * 64, "split.json": "f" * 64},
        "warnings": ["2 near duplicates of forgotten examples are in `retain`; they were not forgotten."],
        "log": LogFacts.of(log),
    }
    record, _ = Record(**(fields | changed)).sealed(ids, secret=SECRET)
    return Case(record, models if seen else {}, log, ids)


MOVED = (
    Moved("backbone", 1_228_416, 0.0412, 0.2213),
    Moved("backbone BatchNorm statistics", 2_560, 0.0093, 0.0541, "re-estimated on retained examples"),
    Moved("head", 49_408, 0.1873, 0.4021),
    Moved("twin", 1_277_824, 0.0, 0.0),
    Moved("queue", 524_288, 1.4102, 2.2871, "emptied and refilled with retained examples"),
)


def facts(name: str, i: int) -> CheckpointFacts:
    """Make up facts about a checkpoint."""
    digest = "abcdef0123456789"[i % 16] * 64
    if name == "original":
        return CheckpointFacts(digest=digest, seed=0, file="runs/original/checkpoint.safetensors", sha256="1" * 64)
    if name == "subject":
        purged = {"queue": "emptied and refilled with retained examples"}
        return CheckpointFacts(
            digest=digest,
            parent="a" * 64,
            method=METHOD,
            seed=0,
            split="5" * 64,
            sha256="c" * 64,
            purged=purged,
            file="runs/unlearned/checkpoint.safetensors",
        )
    made = {"name": "retrain"}
    return CheckpointFacts(digest=digest, parent="a" * 64, method=made, exact=True, seed=i, split="5" * 64)


BIG: dict[str, Any] = {"forget": 1500, "retain": 1500, "holdout": 1500, "test": 300, "valid": 100}


@cache
def removed() -> Case:
    """A0, enough examples to decide."""
    w = World(1, hardness=0.3, **BIG)
    return case(w, w.model("subject"), w.original())


@cache
def residue() -> Case:
    """A0, nothing was forgotten; the record holds every audit."""
    w = World(2)
    return case(w, w.model("subject", {"forget": 0.9, "retain": 1.0}), w.original(), audits="all")


@cache
def over_forgotten() -> Case:
    """A1 with one oracle."""
    w = World(3)
    return case(w, w.model("subject", {"forget": -1.0, "retain": 1.0}), w.original(), (w.oracle(),))


@cache
def small() -> Case:
    """Twenty examples are too few to decide."""
    w = World(6, hardness=0.2, forget=20)
    return case(w, w.model("subject"), w.model("original", {"forget": 3.0, "retain": 1.0}))


@cache
def blind() -> Case:
    """The attack sees nothing, even in the original; no log and no labels."""
    w = World(5, labelled=False)
    return case(w, w.model("subject"), w.model("original", {"retain": 1.0}), log=[], cost={}, changes=[], files={})


@cache
def utility_lost() -> Case:
    """Removed, but the features of test are noise."""
    w = World(1, hardness=0.3, **BIG)
    noise = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    return case(w, with_arrays(w.model("subject"), test__features=noise), w.original())


@cache
def oracles() -> Case:
    """A1 with five oracles: every audit, and a table per seed."""
    w = World(7, forget=400, holdout=400)
    many = tuple(w.oracle(i) for i in range(1, 6))
    return case(w, w.model("subject"), w.original(), many, audits="all", log=log_of(3000))


@cache
def classifier() -> Case:
    """A classifier: no projector, three signals."""
    w = World(8, classifier=True)
    subject = w.model("subject", {"forget": 0.2, "retain": 1.0}, projector=False)
    return case(w, subject, w.original(projector=False), (w.oracle(projector=False),))


LONG = "/very/long/" + "folder/" * 20
EVIL = '<script>alert(\'&"1")</script>'


@cache
def evil() -> Case:
    """Long and hostile names everywhere; no observations."""
    w = World(9)
    log = log_of(40, terms=(EVIL, "a_term_whose_name_goes_on_and_on_and_on_for_ever"))
    made = case(w, w.model("subject"), w.original(), seen=False, log=log)
    r = made.record
    changed: dict[str, Any] = {
        "request": r.request.model_copy(
            update={"selector": f"@class:{EVIL}", "goal": EVIL, "method": {"name": EVIL, EVIL: "x" * 200}}
        ),
        "data": r.data.model_copy(
            update={
                "name": "very-long-name-of-a-data-set-" * 6,
                "classes": (EVIL, "y" * 120),
                "skipped": ({"key": EVIL, "path": f"photos/{EVIL}.png", "error": EVIL},),
            }
        ),
        "checkpoints": {k: v.model_copy(update={"file": LONG}) for k, v in r.checkpoints.items()},
        "warnings": (EVIL, "w" * 300),
        "config": {"a": EVIL, "b" * 200: "c" * 200},
        "findings": (*r.findings, Finding(f"utility.{EVIL}", None, note=EVIL), Finding("x." + "z" * 90, 1.0)),
        "changes": (PartChange.of(Moved(EVIL, 3, 0.1, 0.2, EVIL)),),
        "files": {EVIL: "c" * 64},
    }
    return Case(r.model_copy(update=changed).bound(), {}, log, made.ids)


def rehearsed(word: PooledWord, lost: str = "") -> Case:
    """Twenty examples are too few to decide, and the procedure was rehearsed on 40 such requests."""
    world = World(6, hardness=0.2, forget=20)
    few = small()
    value = {"removed": 0.497, "residue": 0.631, "over-forgotten": 0.377}[word]
    signals = tuple(
        PooledSignal(one.signal, (0.71, 0.68, 0.74), True, value, value - 0.03, value + 0.03, word, None)
        for one in few.record.verdict.signals
    )
    release = (ReleaseCheck("backbone.margin of the forgotten", 0.52, 0.36, 0.65),)
    held = RehearsedVerdict(word, 40, 800, signals, (), release, "20 examples drawn at random")
    verdict = decide_with_rehearsals(replace(few.record.verdict, utility_lost=lost), held)
    facts_of = RehearsalFacts(file="runs/original-rehearsals/x", digest="9" * 64, kind=held.kind, requests=40)
    subject, original = world.model("subject"), world.model("original", {"forget": 3.0, "retain": 1.0})
    return case(world, subject, original, verdict=verdict, rehearsals=facts_of)


@cache
def validated() -> Case:
    """The procedure left nothing."""
    return rehearsed("removed")


@cache
def procedure_residue() -> Case:
    """The procedure leaves a trace."""
    return rehearsed("residue")


@cache
def procedure_over() -> Case:
    """The procedure forgets too much."""
    return rehearsed("over-forgotten")


@cache
def validated_lost() -> Case:
    """The procedure left nothing, and the model is of no use."""
    return rehearsed("removed", "kNN accuracy on test fell by 20 points")


CASES = {
    make.__name__: make
    for make in (
        removed,
        residue,
        over_forgotten,
        small,
        blind,
        utility_lost,
        oracles,
        classifier,
        evil,
        validated,
        procedure_residue,
        procedure_over,
        validated_lost,
    )
}
