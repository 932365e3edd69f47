"""Small requests: how much of a few forgotten examples can still be told, pooled over many requests.

    python -m research.small_requests make [--world 0]     one original and its requests, one method after the other
    python -m research.small_requests table                research/results/small_requests.json

The demo's SimCLR on digits, 600 trained on. Each request of k random examples is unlearned from the same original with
the method's settings, all methods of a request before the next one: an interrupted run has as many of each. AUC of its
margins against the 700 never-trained examples under *that* model, pooled over requests as the mean placement of each
forgotten example (0.5: no difference; below: it is too unfamiliar).
Resumable: one JSON file for each request in research/runs/small_requests.
"""

from __future__ import annotations

import json
from itertools import product
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS, RUNS
from research.small_digits import DIGITS

import efface
from efface import api
from efface.auditing.signals import scores
from efface.data.dataset import Data
from efface.data.split import Split, partition, select_forget_set
from efface.files import write_text
from efface.training.checkpoint import CHOICES, Checkpoint
from efface.unlearning.methods.gradient_constraint import WGAN_GP

HOME = RUNS / "small_requests"
REQUESTS = {10: 6, 1: 6, 60: 2}
"""Examples per request to the number of requests in a world."""
METHODS: dict[str, dict[str, Any]] = {
    "original": {},
    "margin_matching": {"name": "margin_matching"},
    "alignment_calibration": {"name": "alignment_calibration"},
    "alignment_calibration, 4 rows": {"name": "alignment_calibration", "forget_batch_size": 4},
    "gradient_constraint": {"name": "gradient_constraint"},
    "gradient_constraint, WGAN-GP": {"name": "gradient_constraint", **WGAN_GP},
    "finetune": {"name": "finetune"},
    "neggrad": {"name": "neggrad"},
    "ssd": {"name": "ssd"},
    "salun": {"name": "salun"},
    "scrub": {"name": "scrub"},
    "random_labels": {"name": "random_labels"},
    "bad_teacher": {"name": "bad_teacher"},
    "gradient_ascent": {"name": "gradient_ascent"},
    "influence": {"name": "influence"},
    "l1_sparse": {"name": "l1_sparse"},
    "coun": {"name": "coun"},
    "retrain": {"name": "retrain"},
}
"""Every method that fits an encoder, at its defaults; alignment calibration also in the form that does not vanish."""
SPLIT: dict[str, Any] = {"train": 600, "valid": 200, "holdout": 700, "test": 297}
"""The demo's split when the first rows were made; the demo has more unseen examples to aim at since."""
RETRAINED = 2
"""Retrained models of each size in a world; they take longest."""
SIGNALS = ("backbone.margin", "projector.margin")
SETTINGS = efface.ObservationSettings(gradient=False)
app = typer.Typer(add_completion=False)


def placements(members: np.ndarray, others: np.ndarray) -> list[float]:
    """Share of ``others`` below each member, ties by half, [n]; their mean is the AUC."""
    return [float((others < one).mean() + (others == one).mean() / 2) for one in members]


@app.command()
def make(
    world: Annotated[int, typer.Option(help="Seed of the original.")] = 0,
    only: Annotated[str, typer.Option(help="One of the rows; by default all of them.")] = "",
) -> None:
    """Train the original of a world, and unlearn its requests with each method."""
    torch.set_num_threads(1)
    HOME.mkdir(parents=True, exist_ok=True)
    regime = DIGITS
    data = efface.load("digits")
    base = partition(data, **SPLIT, seed=world)
    recipe = efface.training.defaults.build_recipe(data, "simclr", regime["recipe"])
    folder = HOME / f"original-{world}"
    if not (folder / "meta.json").exists():
        folder.mkdir(exist_ok=True)
        api.pretrain(data, base, recipe=recipe, seed=world, device="cpu").save(folder)
    original = Checkpoint.load(folder)
    for number in range(max(REQUESTS.values())):
        for name, k in product([only] if only else METHODS, REQUESTS):
            if number < (RETRAINED if name == "retrain" else REQUESTS[k]):
                request(original, data, base, world, k, number, name)


def request(original: Checkpoint, data: Data, base: Split, world: int, k: int, number: int, name: str) -> None:
    """Unlearn one request with one method, and keep the placements; does nothing if that was done before."""
    file = HOME / f"{world}-{k}-{number}-{name.replace(', ', '_').replace(' ', '_')}.json"
    if file.exists():
        return
    split, made = select_forget_set(base, data, f"@random:{k}", 1000 * world + number), original
    if METHODS[name]:
        method = efface.config.parse_choice(efface.methods.METHODS, METHODS[name], "method", CHOICES)
        made = api.unlearn(original, data, split, method, seed=number, device="cpu")
    seen = api.observe(made, data, split, SETTINGS, device="cpu")
    found: dict[str, Any] = {"world": world, "k": k, "request": number, "name": name}
    for signal in SIGNALS:
        unseen = scores(seen, "holdout", signal)
        for part in ("forget", "retain"):
            found[f"{signal}.{part}"] = placements(scores(seen, part, signal), unseen)
    found["cost"] = vars(made.training_cost)
    write_text(file, json.dumps(found))
    print(file.name, *(f"{np.mean(found[f'{signal}.forget']):.3f}" for signal in SIGNALS), flush=True)


@app.command()
def table() -> None:
    """Pool the requests, and write the table's numbers; rows of which there are no requests here are kept."""
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for file in sorted(HOME.glob("*-*-*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        rows.setdefault((one["k"], one["name"]), []).append(one)
    result = RESULTS / "small_requests.json"
    pooled = [row for row in read_json(result)["rows"] if (row["k"], row["name"]) not in rows]
    for (k, name), found in sorted(rows.items()):
        row: dict[str, Any] = {"k": k, "name": name, "requests": len(found), "worlds": len({f["world"] for f in found})}
        for signal in SIGNALS:
            for part in ("forget", "retain"):
                means = [float(np.mean(one[f"{signal}.{part}"])) for one in found]
                error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else None
                row[f"{signal}.{part}"] = {"mean": round(float(np.mean(means)), 4), "error": error and round(error, 4)}
        for key in ("steps", "examples"):
            row[key] = round(float(np.mean([one["cost"][key] for one in found])), 1)
        pooled.append(row)
    pooled.sort(key=lambda row: (row["k"], row["name"]))
    write_json(result, {"made by": "python -m research.small_requests make --world N", "rows": pooled, **machine()})


if __name__ == "__main__":
    app()
