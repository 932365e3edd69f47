"""How many models a reference bank needs, and for how long they must be trained: retrained models judged by each.

    python -m research.banks make [--jobs 1]      models, resumable: an original, 20 retrained ones, three banks of 16
    python -m research.banks table                research/results/banks.json

The demo's SimCLR on digits, 600 trained on, 60 forgotten at random. Every retrained model is judged by eight of the
others, which is the ordinary way, and by the first 2, 4, 8 and 16 models of a bank whose models were trained for 100,
30 and 15 % of the original's epochs; the original, which forgot nothing, by the same. The AUC of the forgotten examples
in models that never saw them is .5 in truth, so its mean over the retrained ones shows a bias of the calibration.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS, RUNS
from research.small_digits import DIGITS

from efface import api
from efface.auditing.criteria import Criteria
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.validation import decide_with_rehearsals
from efface.runs import train
from efface.runs.bank_plan import plan_bank, write_bank_plan
from efface.runs.comparison import Comparison, build_comparison
from efface.runs.data_at_hand import DataChecks
from efface.runs.demo import FORGET
from efface.runs.procedure import RehearsedProcedure, rehearse_with_bank
from efface.runs.reference_bank import join_bank, list_bank_tasks
from efface.runs.run import Progress
from efface.tasks import Task, run_tasks

HOME = RUNS / "banks"
ORACLES, MODELS = 20, 16
SIZES = (2, 4, 8, 16)
SHARES = (1.0, 0.3, 0.15)
WATCH = ObservationSettings(views=5, gradient=False)
COMMON: dict[str, Any] = {"device": "cpu", "bf16": False}
app = typer.Typer(add_completion=False)


def retrain(number: int) -> None:
    """Retrain without the forgotten, with a seed of its own; ``untouched``: hardly change the original."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"forget": FORGET, **COMMON}
    settings |= {"method": "retrain", "seed": 100 + number}
    train.unlearn_run(HOME / "original", HOME / f"oracle-{number}", settings)


def bank_plan(share: float) -> Any:
    """The plan of the bank whose models are trained for a share of the epochs."""
    home = HOME / f"bank-{share:g}"
    return plan_bank(HOME / "original", home, models=MODELS, share=share, watch=WATCH, checks=DataChecks())


@app.command()
def make(jobs: Annotated[int, typer.Option(help="Processes.")] = 1) -> None:
    """Train everything that is missing."""
    torch.set_num_threads(1)
    if not (HOME / "original").exists():
        train.pretrain_run(HOME / "original", DIGITS | COMMON | {"seed": 0})
    plans = [bank_plan(share) for share in SHARES]
    for plan in plans:
        write_bank_plan(HOME / "original", plan, DataChecks())
    if not (HOME / "untouched").exists():
        method = {"name": "finetune", "epochs": 1, "optim": {"lr": 1e-7}}
        train.unlearn_run(HOME / "original", HOME / "untouched", {"forget": FORGET, "method": method, **COMMON})
    oracles = [Task(f"oracle-{i}", retrain, (i,), is_done=(HOME / f"oracle-{i}").exists) for i in range(ORACLES)]
    banks = [task for plan in reversed(plans) for task in list_bank_tasks(plan, "cpu")]
    run_tasks([*banks, *oracles], jobs=jobs, say=print)


@app.command()
def table() -> None:
    """Judge every model by every bank, and write the counts."""
    torch.set_num_threads(1)
    runs = [HOME / f"oracle-{i}" for i in range(ORACLES) if (HOME / f"oracle-{i}").exists()]
    rows = [judge_all("retrained models", "8 retrained", runs, None)]
    for share in SHARES:
        plan = bank_plan(share)
        if plan.left():
            continue
        bank = join_bank(plan)
        cost = float(np.mean([read_seconds(run) for run in runs])) * share / 2
        for size in SIZES:
            part = bank.select_pairs(range(size // 2))
            row = judge_all("retrained models", f"bank of {size}", runs, part)
            rows.append(row | {"share": share, "models": size, "seconds": round(cost * size, 1)})
            print(rows[-1], flush=True)
    write_json(RESULTS / "banks.json", {
        "made by": "python -m research.banks", "rows": rows, "forgotten": 60, "oracles": len(runs), **machine(),
    })  # fmt: skip


def read_seconds(run: Path) -> float:
    """Training time of a run."""
    from efface.training.checkpoint import read_meta

    return float(read_meta(run)["cost"]["seconds"])


def judge_all(kind: str, by: str, runs: list[Path], bank: ReferenceBank | None) -> dict[str, Any]:
    """Judge all retrained models, and the untouched one, by a bank or by each other."""
    words, direct, values = Counter[str](), Counter[str](), dict[str, list[float]]()
    for number, run in enumerate(runs):
        others = [runs[(number + step) % len(runs)] for step in range(1, 9)] if bank is None else []
        result, compared = judge(run, others, bank)
        direct[result.verdict.word] += 1
        words[validated(result, compared, bank)] += 1
        for one in result.verdict.signals:
            values.setdefault(one.signal, []).append(one.value)
    untouched, _ = judge(HOME / "untouched", runs[:8] if bank is None else [], bank)
    return {
        "kind": kind, "by": by, "direct": dict(direct), "words": dict(words), "untouched": untouched.verdict.word,
        "auc": {name: [round(float(np.mean(v)), 4), round(float(np.std(v, ddof=1) / np.sqrt(len(v))), 4)]
                for name, v in values.items()},
        "untouched_auc": {one.signal: round(one.value, 4) for one in untouched.verdict.signals},
    }  # fmt: skip


def judge(run: Path, oracles: list[Path], bank: ReferenceBank | None) -> tuple[api.AuditResult, Comparison]:
    """The direct verdict about a run."""
    compared = build_comparison(run, WATCH, "cpu", Progress(say=lambda sentence: None), oracles=oracles)
    seen = compared.observations
    return api.judge_observations(seen["original"], seen["subject"], compared.oracles, bank=bank), compared


def validated(result: api.AuditResult, compared: Comparison, bank: ReferenceBank | None) -> str:
    """The word when the bank's models count as rehearsals of retraining; the direct one without a bank."""
    found = None if bank is None else rehearse_with_bank(bank, compared, HOME)
    if not isinstance(found, RehearsedProcedure):
        return result.verdict.word
    return decide_with_rehearsals(result.verdict, found.judge(result.evidence, Criteria())).word


if __name__ == "__main__":
    app()
