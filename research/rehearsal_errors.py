"""Error rates of the words that rehearsals give, in worlds of known truth.

    python -m research.rehearsal_errors [--worlds 300]     research/results/rehearsal_errors.json

A world draws the score of an example under a model as its difficulty, plus what the model remembers of it, plus noise.
A procedure leaves a fixed amount of memory in the examples that it was to forget; its true AUC is found with many
examples. 40 requests of 15 examples each are rehearsed. Counted: how often each word is said.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import numpy as np
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS
from scipy.special import ndtr, ndtri

from efface.auditing import signals
from efface.auditing.observations import Observations
from efface.auditing.pooled_placements import Rehearsal
from efface.auditing.rehearsals import judge_rehearsals

NAMES = ("backbone.margin", "projector.margin")
TRAINED, UNSEEN, MEMORY, DIFFICULTY = 1000, 1400, 1.0, 1.0
PROCEDURES = {
    "nothing left": 0.5,
    "AUC .53": 0.53,
    "AUC .55": 0.55,
    "AUC .57": 0.57,
    "AUC .60": 0.60,
    "AUC .45": 0.45,
    "AUC .40": 0.40,
    "untouched": -1.0,
}
"""True AUC of the forgotten examples in the models that were to forget them; untouched: the original."""
app = typer.Typer(add_completion=False)


def shift_for(auc: float) -> float:
    """How much higher members must score for this AUC, with a spread of difficulty and noise on both sides."""
    return float(ndtri(auc)) * float(np.sqrt(2 * (DIFFICULTY**2 + 1)))


def observe(
    rng: np.random.Generator, difficulty: np.ndarray, forgotten: np.ndarray, leaves: float, name: str
) -> Observations:
    """Scores of one model: it remembers MEMORY of the retained, and ``leaves`` of the forgotten."""
    trained = np.arange(len(difficulty)) < TRAINED
    unseen = np.flatnonzero(~trained)
    rows = {
        "forget": np.flatnonzero(forgotten),
        "retain": np.flatnonzero(trained & ~forgotten)[:500],
        "holdout": unseen[: UNSEEN // 2],
        "control": unseen[UNSEEN // 2 :],
    }
    keys = np.array([f"e{i}" for i in range(len(difficulty))])
    arrays: dict[str, np.ndarray] = {f"{part}/keys": keys[at] for part, at in rows.items()}
    for signal in NAMES:
        scores = difficulty + MEMORY * (trained & ~forgotten) + leaves * forgotten + rng.normal(0, 1, len(difficulty))
        for part, at in rows.items():
            arrays[f"{part}/{signals.READY}{signal}"] = scores[at]
            arrays[f"{part}/{signals.READY}{signal.split('.')[0]}.alignment"] = scores[at]
    return Observations(name, "s", arrays, {"spaces": ["backbone", "projector"]})


def one_world(seed: int, auc: float, requests: int, size: int) -> str:
    """The word of the rehearsals in one world."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, DIFFICULTY, TRAINED + UNSEEN)
    order = rng.permutation(TRAINED)[: requests * size].reshape(requests, size)
    sets = [np.isin(np.arange(TRAINED + UNSEEN), one) for one in order]
    leaves = MEMORY if auc < 0 else shift_for(auc)
    made = [Rehearsal(observe(rng, difficulty, one, leaves, f"r{i}")) for i, one in enumerate(sets)]
    before = observe(rng, difficulty, np.any(sets, axis=0), MEMORY, "original")
    return judge_rehearsals(made, Rehearsal(before), NAMES, 0.05, 0.05).word


@app.command()
def run(
    worlds: Annotated[int, typer.Option(help="Worlds for each procedure.")] = 300,
    requests: Annotated[int, typer.Option(help="Rehearsed requests.")] = 40,
    size: Annotated[int, typer.Option(help="Examples in each.")] = 15,
) -> None:
    """Count the words of each procedure, and write them."""
    rows: dict[str, Any] = {}
    for name, auc in PROCEDURES.items():
        said = Counter(one_world(seed, auc, requests, size) for seed in range(worlds))
        true = float(ndtr(MEMORY / np.sqrt(2 * (DIFFICULTY**2 + 1)))) if auc < 0 else auc
        rows[name] = {"true_auc": round(true, 4), "worlds": worlds, "words": dict(said)}
        print(name, rows[name], flush=True)
    write_json(RESULTS / "rehearsal_errors.json", {
        "made by": f"python -m research.rehearsal_errors --worlds {worlds} --requests {requests} --size {size}",
        "requests": requests, "size": size, "rows": rows, **machine(),
    })  # fmt: skip


if __name__ == "__main__":
    app()
