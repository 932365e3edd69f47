"""Sharded training: what a deletion costs, and what S networks on 1 / S of the examples each are worth together.

    python -m research.shards make --data digits [--seed 0]     one training for each S and R, and one request
    python -m research.shards table                             research/results/shards.json

SimCLR; every cell has the same recipe, seed and split. Utility: accuracy on test of the 20 nearest training examples by
cosine, and of a linear probe, on the concatenated and on the averaged features. Cost: optimizer steps that requests of
k random examples need, counted without training them; one request is unlearned, and compared bit for bit with its
shard trained from the beginning. Resumable: one JSON file for each cell in research/runs/shards.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS, RUNS
from research.small_digits import DIGITS
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import efface
from efface import api
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.runs.demo import REGIMES
from efface.training.checkpoint import Checkpoint
from efface.training.defaults import build_recipe
from efface.training.kept_stages import KeptStages, StageIndex
from efface.training.recipe import Recipe
from efface.training.sharded_model import average_parts
from efface.training.shards import Shards
from efface.unlearning.heads import NeighborHead

HOME = RUNS / "shards"
CELLS: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 3), (1, 3), (2, 3), (8, 3))
"""Numbers of shards and of slices."""
REQUESTS = {1: 200, 10: 50, 50: 20}
"""Examples per request to the number of requests whose cost is planned."""
WORLDS: dict[str, dict[str, Any]] = {
    "digits": DIGITS | {"recipe": DIGITS["recipe"] | {"epochs": 80}},
    "fashion-mnist": {
        "data": {"source": "fashion-mnist", "limit": 6000},
        "split": {"train": 4000, "valid": 200, "holdout": 200, "test": 1500},
        "recipe": REGIMES["fashion-mnist"]["recipe"] | {"epochs": 12, "batch_size": 128},
    },
}
app = typer.Typer(add_completion=False)


def world(name: str, seed: int) -> tuple[Data, Any, Recipe]:
    """Data, split and recipe of one network."""
    found = WORLDS[name]
    options = dict(found["data"])
    data = efface.load(options.pop("source"), **options)
    return data, partition(data, **found["split"], seed=seed), build_recipe(data, "simclr", found["recipe"])


@torch.no_grad()
def features(made: Checkpoint, data: Data, positions: np.ndarray) -> np.ndarray:
    """Concatenated features of un-augmented images, [n, S * dim]."""
    model = made.model.eval()
    rows = [positions[start : start + 256] for start in range(0, len(positions), 256)]
    images = (torch.from_numpy(data.x[one]).float().div_(255) for one in rows)
    return np.concatenate([model.features(one).numpy() for one in images])


def utility(z: dict[str, np.ndarray], y: dict[str, np.ndarray], classes: tuple[str, ...]) -> dict[str, float]:
    """Accuracy on test of neighbors and of a linear probe."""
    head = NeighborHead.fit(np.arange(len(z["retain"])).astype(str), z["retain"], y["retain"], classes)
    scale = StandardScaler().fit(z["retain"])
    probe = LogisticRegression(C=0.1, max_iter=300).fit(scale.transform(z["retain"]), y["retain"])
    return {
        "knn": float((head.predict(z["test"]) == y["test"]).mean()),
        "linear": float(probe.score(scale.transform(z["test"]), y["test"])),
    }


def costs(data: Data, base: Any, recipe: Recipe, seed: int) -> dict[str, dict[str, float]]:
    """Share of all steps that requests need, by size: those of every stage that had one of their examples."""
    shards = recipe.shards
    assert shards is not None
    shard, part = shards.assign(data.keys[base.train], None, seed)
    epochs, last = shards.epochs(recipe.epochs), range(shards.slices)

    def count_stages(chosen: np.ndarray) -> np.ndarray:
        """How many of the chosen examples each stage has, [S, R]."""
        one = [np.bincount(shard[chosen & (part <= number)], minlength=shards.count) for number in last]
        return np.stack(one, 1)

    found: dict[str, dict[str, float]] = {}
    for k, count in REQUESTS.items():
        shares: list[float] = []
        for number in range(count):
            gone = np.zeros(len(shard), bool)
            gone[np.random.default_rng([seed, k, number]).choice(len(shard), k, replace=False)] = True
            left = count_stages(~gone)
            steps = np.where(left >= 2, epochs * -(-left // recipe.batch_size), 0)
            shares.append(float(steps[count_stages(gone) > 0].sum() / steps.sum()))
        found[str(k)] = {"mean": float(np.mean(shares)), "most": float(np.max(shares)), "requests": count}
    return found


def unlearn_one(data: Data, base: Any, made: Checkpoint, store: KeptStages, folder: Path) -> dict[str, Any]:
    """Unlearn one example from the kept stages, and by training its shard from the beginning, and compare the weights.

    The example is of the last slice, so that as many stages as possible are read.
    """
    shards = made.recipe.shards
    assert shards is not None
    places = np.stack(shards.assign(data.keys[base.train], None, made.seed), 1)
    gone = data.keys[base.train][places[:, 1] == shards.slices - 1][0]
    split = select_forget_set(base, data, f"@keys:{gone}", allow_duplicates=True)
    shard = int(places[data.keys[base.train] == gone][0, 0])
    found: dict[str, Any] = {}
    for way in ("kept", "whole"):
        others = [one for one in store.found if way == "kept" or not one.name.startswith(f"shard{shard:03d}")]
        kept = KeptStages(folder / way, (store.folder, StageIndex(stages=tuple(others))))
        again = api.unlearn(made, data, split, "shards", device="cpu", stage_store=kept)
        found |= {f"{way}_digest": again.model.digest(), f"{way}_steps": again.training_cost.steps}
    equal = found["kept_digest"] == found["whole_digest"]
    return found | {"equal": equal, "changed": found["kept_digest"] != made.model.digest()}


@app.command()
def make(
    name: Annotated[str, typer.Option("--data", help="digits or fashion-mnist.")] = "digits",
    seed: Annotated[int, typer.Option(help="Seed of split and training.")] = 0,
    whole: Annotated[bool, typer.Option(help="Only shards of one slice.")] = False,
) -> None:
    """Train every cell, measure it, and unlearn one example from it."""
    torch.set_num_threads(1)
    data, base, single = world(name, seed)
    for count, slices in CELLS:
        if whole and slices > 1:
            continue
        file = HOME / f"{name}-{seed}-{count}-{slices}.json"
        if file.exists():
            continue
        recipe = replace(single, shards=Shards(count=count, slices=slices))
        folder = HOME / file.stem
        folder.mkdir(parents=True, exist_ok=True)
        store = KeptStages(folder / "kept")
        made = api.pretrain(data, base, recipe=recipe, seed=seed, device="cpu", stage_store=store)
        joint = {part: features(made, data, getattr(base, part)) for part in ("retain", "test")}
        mean = {part: average_parts(torch.from_numpy(z), count).numpy() for part, z in joint.items()}
        if data.y is None:
            raise SystemExit(f"{name} has no labels")
        y = {part: data.y[getattr(base, part)] for part in joint}
        found = {
            "data": name, "seed": seed, "shards": count, "slices": slices, "train": len(base.train),
            "width": joint["test"].shape[1], "steps": made.training_cost.steps, "seconds": made.training_cost.seconds,
            "concat": utility(joint, y, data.classes), "mean": utility(mean, y, data.classes),
            "cost": costs(data, base, recipe, seed), "one": unlearn_one(data, base, made, store, folder),
            "kept_bytes": sum(one.stat().st_size for one in store.folder.iterdir()),
        }  # fmt: skip
        file.write_text(json.dumps(found), encoding="utf-8")
        print(file.stem, found["concat"], found["mean"], found["one"], flush=True)


@app.command()
def table() -> None:
    """Average over seeds, and write the table's numbers; rows of data that were not made here stay as they are."""
    rows: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for file in sorted(HOME.glob("*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        rows.setdefault((one["data"], one["slices"], one["shards"]), []).append(one)
    made = {data for data, _, _ in rows}
    kept = [row for row in read_json(RESULTS / "shards.json")["rows"] if row["data"] not in made]
    cells = [*kept, *(pool(found) for _, found in sorted(rows.items()))]
    write_json(RESULTS / "shards.json", {
        "made by": "python -m research.shards make --data NAME --seed N", "rows": cells, **machine(),
    })  # fmt: skip


def pool(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of one cell."""
    row = {key: found[0][key] for key in ("data", "shards", "slices", "train", "width")} | {"seeds": len(found)}
    for way in ("concat", "mean"):
        for measure in ("knn", "linear"):
            values = [one[way][measure] for one in found]
            row[f"{way}.{measure}"] = {"mean": round(float(np.mean(values)), 4), "values": values}
    row["cost"] = {k: round(float(np.mean([one["cost"][k]["mean"] for one in found])), 4) for k in found[0]["cost"]}
    row["equal"] = sum(one["one"]["equal"] and one["one"]["changed"] for one in found)
    row["steps"] = round(float(np.mean([one["steps"] for one in found])))
    row["kept_bytes"] = found[0]["kept_bytes"]
    return row


if __name__ == "__main__":
    app()
