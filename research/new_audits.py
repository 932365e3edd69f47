"""The audits beside the verdict's own: what each says of an original, of retrained and of unlearned models.

    python -m research.new_audits make --world encoder --seed 0     models and observations, resumable
    python -m research.new_audits table                             research/results/new_audits.json

``encoder``: the demo's SimCLR on digits, 100 of 600 examples to forget. ``classifier``: a classifier of the same digits,
one class to forget. In each world one original, five models retrained with other seeds, and the original unlearned
with several methods. Every model but the original stands once in the place of the audited one.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS, RUNS

import efface
from efface import api
from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.data.split import partition, select_forget_set
from efface.runs.demo import REGIMES
from efface.training.checkpoint import CHOICES, Checkpoint

HOME = RUNS / "new_audits"
SHOWN = ("nonmember_share", "relative_distance", "oracle_direction", "neighbor_class", "before_after")
RETRAINED = 5
ENCODER = REGIMES["digits"]["recipe"]
CLASSIFIER = ENCODER | {"objective": {"name": "cross_entropy"}, "epochs": 60}
WORLDS: dict[str, dict[str, Any]] = {
    "encoder": {
        "recipe": ENCODER,
        "forget": "@random:100",
        "methods": ("finetune", "margin_matching", "gradient_constraint"),
    },
    "classifier": {
        "recipe": CLASSIFIER,
        "forget": "@class:3",
        "methods": ("finetune", "random_labels", "neggrad", "salun"),
    },
}
SETTINGS = efface.ObservationSettings(gradient=False)
app = typer.Typer(add_completion=False)


@app.command()
def make(
    world: Annotated[str, typer.Option(help=f"One of {', '.join(WORLDS)}.")] = "encoder",
    seed: Annotated[int, typer.Option(help="Seed of the original.")] = 0,
) -> None:
    """Train the models of one world, and observe them."""
    torch.set_num_threads(1)
    chosen, home = WORLDS[world], HOME / f"{world}-{seed}"
    data = efface.load("digits")
    sizes = {name: REGIMES["digits"]["split"][name] for name in ("train", "valid", "holdout", "test")}
    base = partition(data, **sizes, seed=seed)
    recipe = efface.training.defaults.build_recipe(data, chosen["recipe"]["objective"]["name"], chosen["recipe"])
    split = select_forget_set(base, data, chosen["forget"], seed)

    def keep(name: str, train: Any) -> Checkpoint:
        folder = home / name
        if not (folder / "meta.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            train().save(folder)
        made = Checkpoint.load(folder)
        if not (folder / "observations.npz").exists():
            api.observe(made, data, split, SETTINGS, device="cpu").save(folder / "observations.npz")
            print(world, seed, name, made.training_cost.seconds, flush=True)
        return made

    original = keep("original", lambda: api.pretrain(data, base, recipe=recipe, seed=seed, device="cpu"))

    def unlearn(name: str, number: int) -> Checkpoint:
        method = efface.config.parse_choice(efface.methods.METHODS, {"name": name}, "method", CHOICES)
        return api.unlearn(original, data, split, method, seed=number, device="cpu")

    for number in range(1, RETRAINED + 1):
        keep(f"retrained-{number}", lambda n=number: unlearn("retrain", 100 * seed + n))
    for name in chosen["methods"]:
        keep(name, lambda n=name: unlearn(n, seed))


if __name__ == "__main__":
    app()
