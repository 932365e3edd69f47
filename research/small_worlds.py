"""How often each word of rehearsals is wrong on real models of which the truth is known, in many small worlds.

    python -m research.small_worlds [--worlds 60] [--jobs 2]     research/results/small_worlds.json

A world is a reference bank of eight SimCLR encoders, each trained on another half of 1 000 digits and mirror images, as
in the demo. What each model was trained on is known, so "procedures" of known truth are made of them: each model
rehearses one request of 100 examples. It saw none of them (retraining), a part (retraining that forgot to leave them
out) or all (the original). Every model is judged by the other three pairs, as an audit does for retrained models.

Resumable, also with more worlds: one that is in the result or has its file in research/runs is not made again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS, RUNS
from research.worlds import spread, together

import efface
from efface.auditing import signals
from efface.auditing.bank_file import load_bank
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.reference_bank import ReferenceBank
from efface.auditing.rehearsals import judge_rehearsals
from efface.data.split import partition
from efface.runs import train
from efface.runs.bank_plan import plan_bank, write_bank_plan
from efface.runs.data_at_hand import DataChecks
from efface.runs.demo import DEMO_BANK, DEMO_WATCH, REGIMES
from efface.runs.procedure import half_as_rehearsal
from efface.runs.reference_bank import join_bank, make_half

HOME, RESULT = RUNS / "small_worlds", RESULTS / "small_worlds.json"
DEMOS = RUNS / "demo_power" / "digits"
"""Where ``research.demo_power`` has made the demo with a seed, its bank is the world's."""
SETTINGS: dict[str, Any] = REGIMES["digits"] | {"device": "cpu", "bf16": False}
WATCH = ObservationSettings(views=DEMO_WATCH.views)
MODELS, SIZE = int(DEMO_BANK["models"]), 100
FEW, SETS = 20, 1000
"""Examples in a set whose origin is to be told, and how many sets are drawn."""
PROCEDURES = {"nothing left": 0.0, "a tenth left": 0.1, "half left": 0.5, "untouched": 1.0}
"""Share of a request's examples that the model was trained on all the same."""
app = typer.Typer(add_completion=False)


@app.command()
def run(
    worlds: Annotated[int, typer.Option(help="Number of worlds.")] = 60,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Make the worlds that are missing, and count the words."""
    stored: dict[str, Any] = read_json(RESULT)["found"] if RESULT.exists() else {}
    together([(make_world, (seed,)) for seed in range(worlds) if str(seed) not in stored], jobs)
    found = {str(seed): stored.get(str(seed)) or read_json(HOME / f"{seed}.json") for seed in range(worlds)}
    power = {
        name: [spread(world["power"][name][kind] for world in found.values()) for kind in range(3)]
        for name in next(iter(found.values()))["power"]
    }
    rows = {name: count_words([world[name] for world in found.values()]) for name in PROCEDURES}
    for name, row in rows.items():
        print(name, row)
    write_json(RESULT, {
        "made by": f"python -m research.small_worlds --worlds {worlds}", "requests": MODELS, "size": SIZE,
        "worlds": worlds, "rows": rows, "power": power, "few": FEW, "found": found, **machine(),
    })  # fmt: skip


def count_words(found: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each word was said, and the AUC of each signal over the worlds: mean and standard error."""
    names = list(found[0]["pooled"])
    values = {name: np.array([one["pooled"][name][0] for one in found]) for name in names}
    return {
        "share": found[0]["share"],
        "words": {word: sum(one["word"] == word for one in found) for word in sorted({one["word"] for one in found})},
        "auc": {
            name: [round(float(v.mean()), 4), round(float(v.std(ddof=1) / np.sqrt(len(v))), 4)]
            for name, v in values.items()
        },
    }


def make_world(seed: int) -> str:
    """Train the models of one world, and judge each procedure by its rehearsals."""
    torch.set_num_threads(1)
    done, home = HOME / f"{seed}.json", HOME / f"world-{seed}"
    if not done.exists():
        demo = DEMOS / f"seed-{seed}" / "bank"
        bank = load_bank(demo) if demo.exists() else make_bank(home, seed)
        seen = name_unseen(seed)
        found = {name: judge(bank, seen, seed, share) for name, share in PROCEDURES.items()}
        write_json(done, found | {"power": measure_power(bank, seen, seed)})
        shutil.rmtree(home, ignore_errors=True)
    return f"world {seed}"


def make_bank(home: Path, seed: int) -> ReferenceBank:
    """Train the original, which says how the models are trained, and the models; those that are there are kept."""
    if not (home / "original").exists():
        train.pretrain_run(home / "original", SETTINGS | {"seed": seed})
    plan = plan_bank(home / "original", home / "bank", **DEMO_BANK, watch=WATCH, checks=DataChecks())
    write_bank_plan(home / "original", plan, DataChecks())
    for model in range(MODELS):
        make_half(plan.home, model, "cpu")
    return join_bank(plan)


def name_unseen(seed: int) -> Observations:
    """The keys of a world's never-trained examples, divided as in an audit."""
    data = efface.load(SETTINGS["data"]["source"], mirrored=True)
    split = partition(data, **SETTINGS["split"], seed=seed)
    keys = {"holdout/keys": data.keys[split.holdout], "control/keys": data.keys[split.test]}
    return Observations("none", split.digest(data), keys, {"spaces": ["backbone", "projector"]})


def judge(bank: ReferenceBank, seen: Observations, seed: int, share: float) -> dict[str, Any]:
    """The word about a procedure that leaves this share of each request in the training data, and its AUCs."""
    rng = np.random.default_rng(seed)
    made = [half_as_rehearsal(bank, model, seen, draw_request(bank, model, share, rng)) for model in range(MODELS)]
    names = signals.prespecified_signals(made[0].observed)
    found = judge_rehearsals(made, None, names, 0.05, 0.05)
    pooled = {one.signal: [round(end, 4) for end in (one.value, one.low, one.high)] for one in found.signals}
    return {"share": share, "word": found.word, "pooled": pooled}


def measure_power(bank: ReferenceBank, seen: Observations, seed: int) -> dict[str, Any]:
    """How well each signal tells what a model was trained on, at 5 % false alarms: AUC, single examples, sets of 20.

    A set is told by its mean placement among the never-trained, as a request is. Means over the models of the bank,
    each judged by the other pairs.
    """
    rng, found = np.random.default_rng(seed), dict[str, list[tuple[float, float, float]]]()
    for model in range(MODELS):
        made = half_as_rehearsal(bank, model, seen, bank.inside[model])
        for name in (*signals.available_signals(made.observed), signals.LEARNED):
            inside, unseen = made.scores("forget", name), np.sort(made.scores("holdout", name))
            ranks = [np.searchsorted(unseen, scores) / len(unseen) for scores in (inside, unseen)]
            means = [rng.choice(rank, (SETS, FEW)).mean(axis=1) for rank in ranks]
            told = float((means[0] > np.quantile(means[1], 0.95)).mean())
            single = float((inside > np.quantile(unseen, 0.95)).mean())
            found.setdefault(name, []).append((float(ranks[0].mean()), single, told))
    return {name: [round(float(one), 4) for one in np.mean(values, axis=0)] for name, values in found.items()}


def draw_request(bank: ReferenceBank, model: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the forgotten of one model, bool [n]: a share of them from those that it was trained on."""
    left = round(share * SIZE)
    inside = rng.choice(np.flatnonzero(bank.inside[model]), left, replace=False)
    outside = rng.choice(np.flatnonzero(bank.trained & ~bank.inside[model]), SIZE - left, replace=False)
    return np.isin(np.arange(len(bank.keys)), np.concatenate([inside, outside]))


if __name__ == "__main__":
    app()
