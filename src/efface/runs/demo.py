"""The demo: overfit a contrastive encoder on few images, unlearn a tenth of them, and audit the results.

It runs the usual verbs: pretrain, unlearn (fine-tune, margin matching, retrain), references --bank, rehearse, audit.
The settings are chosen so that the audit has power: few images, many epochs, a low temperature and mild crops make an
encoder memorize single images well enough for an attack to detect it (``research/demo_power.py`` measures how often).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import yaml

from efface import api, config
from efface.auditing.observers.observe import ObservationSettings
from efface.auditing.verdict import Verdict, judge
from efface.errors import EffaceError, unknown_name_error
from efface.files import write_text
from efface.reporting.page import REPORT
from efface.runs import audit, train
from efface.runs.bank_plan import plan_bank, write_bank_plan
from efface.runs.data_at_hand import DataChecks
from efface.runs.reference_bank import join_bank, list_bank_tasks
from efface.runs.rehearsal_plan import plan_rehearsals, write_rehearsal_plan
from efface.runs.rehearsals import list_rehearsal_tasks
from efface.runs.run import Common, Progress
from efface.tasks import Task, run_tasks
from efface.training.checkpoint import read_meta

_VIEWS = {"crop": [0.6, 1.0], "flip": False, "brightness": 0.4, "contrast": 0.4, "saturation": 0, "hue": 0}
REGIMES: dict[str, dict[str, Any]] = {
    "digits": {
        "data": {"source": "digits", "mirrored": True, "turned": True},
        "split": {"train": 1000, "valid": 1500, "holdout": 3000, "test": 1688},
        "recipe": {
            "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
            "backbone": {"name": "resnet8", "width": 16, "stride": 1},
            "epochs": 60,
            "batch_size": 128,
            "optim": {"lr": 0.03, "warmup": 0.05},
            "views": {**_VIEWS, "crop": [0.9, 1.0], "brightness": 0.2, "contrast": 0.2},
        },
    },
    "fashion-mnist": {
        "data": {"source": "fashion-mnist", "limit": 6000},
        "split": {"train": 800, "valid": 800, "holdout": 1500, "test": 1000},
        "recipe": {
            "objective": {"name": "simclr", "temperature": 0.1, "dim": 64},
            "backbone": {"name": "resnet8", "width": 16, "stride": 2},
            "epochs": 180,
            "batch_size": 100,
            "views": _VIEWS,
        },
    },
}
"""Settings of the original, by data set."""
FORGET = "@random:0.1"
DEMO_METHODS = ("finetune", "margin_matching")
"""A method that leaves most of it, and one that does not."""
DEMO_BANK = {"models": 8, "share": 0.5}
"""Models of the demo's reference bank, and their share of the original's epochs."""
REHEARSED = {"finetune": 5, "margin_matching": 27}
"""Rehearsed requests of each method: each example three times, with other ones; fewer where the answer is plain."""
DEMO_WATCH = ObservationSettings(views=5, gradient=False)
"""How the demo observes: half as many views as usual, and no gradient norms, which decide nothing, for its time."""
DONE, DEMO_REQUEST = "demo.json", "demo.yaml"


@dataclass(frozen=True)
class DemoRow:
    """One model in the table of results."""

    model: str
    verdict: str
    membership: dict[str, float]
    """AUC of forget against never-trained examples for each pre-registered signal; 0.5: no difference."""
    knn: float | None
    """kNN accuracy on the test examples."""
    steps: int
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo."""

    rows: tuple[DemoRow, ...]
    reports: dict[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The results as a JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The results as lines to print: the table, how to read it, and where the reports are."""
        signals = list(self.rows[0].membership)
        head = ["model", "verdict", *(f"{signal.split('.')[0]} AUC" for signal in signals), "kNN", "steps", "time"]
        table = [head]
        for row in self.rows:
            knn = "–" if row.knn is None else f"{row.knn:.3f}"
            seen = [f"{row.membership[signal]:.3f}" for signal in signals]
            table.append([row.model, row.verdict, *seen, knn, str(row.steps), f"{row.seconds:.1f} s"])
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        return [
            *text,
            "",
            "AUC: how well an attacker tells the forgotten examples from never-trained ones (0.5: not at all).",
            "residue: it can tell them. validated: the request alone is too small to decide; the same procedure, tried "
            "on other requests like it, left nothing to tell.",
            "retrained: the model that never saw them.",
            *(f"Report: {path}" for path in self.reports.values()),
            f"{self.seconds:.0f} s in all.",
        ]


def run_demo(
    data: str,
    out: Path,
    *,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the demo into the folder ``out``; if interrupted, the same call resumes where it stopped.

    Args:
        data: ``digits`` or ``fashion-mnist``.
        out: Folder for the runs.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        force: Delete ``out`` first, if it is the folder of a demo.
        progress: Receives steps and messages.

    Example:
        >>> run_demo("digits", Path("runs/demo")).lines()  # doctest: +SKIP

    """
    if data not in REGIMES:
        raise unknown_name_error("demo", data, REGIMES)
    progress, began = progress or Progress(), monotonic()
    Common(seed=seed, device=device).resolve()  # an error for a wrong one, before anything is written
    common: dict[str, Any] = {"seed": seed, "device": device, "bf16": False}  # the same table on every CPU
    _prepare_folder(out, {"data": data, "regime": REGIMES[data], **common}, force)
    original = out / "original"
    _make(original, progress, lambda: train.pretrain_run(original, REGIMES[data] | common, progress=progress))
    watch, checks = DEMO_WATCH, DataChecks()
    bank = plan_bank(original, out / "bank", **DEMO_BANK, watch=watch, checks=checks)
    write_bank_plan(original, bank, checks)
    names = {"retrain": "retrained", **{method: method for method in DEMO_METHODS}}
    asked = {name: {"forget": FORGET, "method": method, **common} for method, name in names.items()}
    asked["retrained"]["seed"] = seed + 1  # so that it is independent of the original
    progress.say("Unlearning, and training the reference bank: half-data models that every later request uses")
    work = [
        Task(name, _unlearn, (original, out / name, wanted), is_done=(out / name).exists)
        for name, wanted in asked.items()
    ]
    run_tasks([*work, *list_bank_tasks(bank, device)], say=progress.say)
    join_bank(bank)
    progress.say("Rehearsing both methods on other requests of the same size")
    plans = [
        plan_rehearsals(out / method, out / f"rehearsals-{method}", REHEARSED[method], watch=watch, checks=checks)
        for method in DEMO_METHODS
    ]
    for method, plan in zip(DEMO_METHODS, plans, strict=True):
        write_rehearsal_plan(out / method, plan, checks)
    run_tasks([task for plan in plans for task in list_rehearsal_tasks(plan, device)], say=progress.say)
    settings = {"device": device, "watch": config.dump(watch)}
    homes = {method: plan.home for method, plan in zip(DEMO_METHODS, plans, strict=True)}
    judged = {
        name: audit.audit_run(
            out / name, settings, bank=bank.home, rehearsals=homes.get(name),
            oracles=[] if name == "retrained" else [out / "retrained"], progress=progress,
        )
        for name in ("retrained", *DEMO_METHODS)
    }  # fmt: skip
    shown = DemoResult(tuple(_rows(out, judged)), {m: str(out / m / REPORT) for m in judged}, monotonic() - began)
    write_text(out / DONE, json.dumps(shown.as_dict(), indent=1) + "\n")
    return shown


def _prepare_folder(out: Path, request: Mapping[str, Any], force: bool) -> None:
    """Create the folder of the demo, or reuse the one of an interrupted demo with the same settings."""
    text = yaml.safe_dump(dict(request), sort_keys=False)
    stored = out / DEMO_REQUEST
    same = stored.exists() and stored.read_text(encoding="utf-8") == text
    if out.exists() and not force and (not same or (out / DONE).exists()):
        raise EffaceError(
            f"{out} exists already.",
            "Existing folders are replaced only on request.",
            "Choose another --out, or add --force.",
        )
    if force and out.exists():
        if not stored.exists():
            raise EffaceError(
                f"{out} is not the folder of a demo, so --force does not delete it.", remedy="Choose another --out."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(stored, text)


def _make(out: Path, progress: Progress, make: Callable[[], Any]) -> None:
    """Make a run, unless an earlier attempt has finished it."""
    progress.say(f"{out.name}: {'kept from before' if out.exists() else 'making'}")
    if not out.exists():
        make()


def _rows(out: Path, judged: Mapping[str, api.AuditResult]) -> Sequence[DemoRow]:
    evidence = judged[DEMO_METHODS[0]].evidence
    before = replace(evidence, subject=evidence.original, oracles=())
    untouched = api.AuditResult(judge(before), [], before)
    results = {"original": untouched, **judged}
    return [_row(out / name, name, result) for name, result in results.items()]


def _unlearn(original: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Unlearn in a process of its own."""
    train.unlearn_run(original, out, settings)


def _row(folder: Path, name: str, result: api.AuditResult) -> DemoRow:
    cost = read_meta(folder)["cost"]
    knn = next((f.value for f in result.findings if f.name == "utility.knn20.test"), None)
    return DemoRow(
        name,
        _word(result.verdict),
        {s.signal: s.value for s in result.verdict.signals},
        knn,
        cost["steps"],
        cost["seconds"],
    )


def _word(verdict: Verdict) -> str:
    return f"{verdict.word} ({verdict.level})"
