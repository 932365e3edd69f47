"""The audits that decide no verdict: what each says of an original, of retrained, of unlearned and of disguised models.

    python -m research.new_audits make --world encoder --seed 0     models and observations, resumable
    python -m research.new_audits table                             research/results/new_audits.json

``encoder``     the demo's SimCLR on digits, 100 of 600 examples to forget
``memorized``   the same original, to forget the 60 examples that four models trained on halves say are memorized most
``classifier``  a classifier of the digits, one class to forget

In each world one original, models retrained with other seeds, and the original unlearned with several methods.
``dressed`` is the original with the units of its last layers scaled, one by one, until the margins of the forgotten
look like those of never-trained examples; what it computes is the same but for that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from benchmarks.machine import machine, write_json
from research.paths import RESULTS, RUNS
from research.small_digits import DIGITS
from torch import Tensor

import efface
from efface import api, stats
from efface.auditing.audits import AUDITS
from efface.auditing.evidence import Evidence
from efface.auditing.observations import Observations
from efface.auditing.signals import scores
from efface.auditing.verdict import judge
from efface.data.dataset import Data
from efface.data.memorization import memorization_scores, write_memorization
from efface.data.split import Split, partition, select_forget_set
from efface.runs.provenance import feature_distance, weight_distance
from efface.training.checkpoint import CHOICES, Checkpoint

HOME = RUNS / "new_audits"
SHOWN = ("nonmember_share", "relative_distance", "oracle_direction", "neighbor_class", "before_after")
ENCODER = DIGITS["recipe"]
WORLDS: dict[str, dict[str, Any]] = {
    "encoder": {
        "recipe": ENCODER,
        "forget": "@random:100",
        "retrained": 5,
        "methods": ("finetune", "margin_matching", "gradient_constraint"),
    },
    "memorized": {
        "recipe": ENCODER,
        "forget": "@memorized:10%:{bank}",
        "retrained": 2,
        "methods": ("finetune", "margin_matching"),
    },
    "classifier": {
        "recipe": ENCODER | {"objective": {"name": "cross_entropy"}, "epochs": 60},
        "forget": "@class:3",
        "retrained": 5,
        "methods": ("finetune", "random_labels", "neggrad", "salun"),
    },
}
VIEWS = 4
"""Random views of each example, where this script embeds by itself."""
BANK = 2
"""Pairs of models on complementary halves, for the numbers of ``memorized``."""
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
    data, base = divide_digits(seed)
    recipe = efface.training.defaults.build_recipe(data, chosen["recipe"]["objective"]["name"], chosen["recipe"])

    def train(split: Split, number: int) -> Checkpoint:
        return api.pretrain(data, split, recipe=recipe, seed=number, device="cpu")

    source = HOME / f"encoder-{seed}" if world == "memorized" else home
    original = kept(source / "original", lambda: train(base, seed))
    bank = home / "memorization.csv"
    if world == "memorized" and not bank.exists():
        score_memorization(bank, data, base, seed, lambda split, number: train(split, 1000 + number))
    split = select_forget_set(base, data, chosen["forget"].format(bank=bank), seed)

    def unlearn(name: str, number: int) -> Checkpoint:
        method = efface.config.parse_choice(efface.methods.METHODS, {"name": name}, "method", CHOICES)
        return api.unlearn(original, data, split, method, seed=number, device="cpu")

    made: dict[str, Callable[[], Checkpoint]] = {"original": lambda: original}
    for number in range(1, chosen["retrained"] + 1):
        made[f"retrained-{number}"] = lambda n=number: unlearn("retrain", 100 * seed + n)
    made |= {name: lambda n=name: unlearn(n, seed) for name in chosen["methods"]}
    if world == "encoder":
        made["dressed"] = lambda: replace(original, model=dress(original, data, split))
    for name, build in made.items():
        checkpoint = kept(home / name, build)
        if not (home / name / "observations.npz").exists():
            api.observe(checkpoint, data, split, SETTINGS, device="cpu").save(home / name / "observations.npz")
            print(world, seed, name, flush=True)


def kept(folder: Path, build: Callable[[], Checkpoint]) -> Checkpoint:
    """The checkpoint in a folder, made if it is not there."""
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        build().save(folder)
    return Checkpoint.load(folder)


def score_memorization(
    path: Path, data: Data, base: Split, seed: int, train: Callable[[Split, int], Checkpoint]
) -> None:
    """Train pairs of models on complementary halves, and write how much each example is memorized."""
    rng, rows, inside = np.random.default_rng(seed), list[np.ndarray](), list[np.ndarray]()
    everything = replace(SETTINGS, cap=len(base.retain))
    for number in range(BANK):
        drawn = rng.permutation(len(base.retain)) < len(base.retain) // 2
        for side, chosen in enumerate((drawn, ~drawn)):
            model = train(replace(base, retain=base.retain[chosen]), 10 * seed + 2 * number + side)
            seen = api.observe(model, data, base, everything, device="cpu")
            rows.append(scores(seen, "retain", "projector.margin"))
            inside.append(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_memorization(path, data.keys[base.retain], memorization_scores(np.array(rows), np.array(inside)))


def embed_views(checkpoint: Checkpoint, data: Data, rows: np.ndarray, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings of random views in the backbone's and the projector's space, ``[n * count, d]`` each."""
    x = torch.from_numpy(np.ascontiguousarray(data.x[rows])).float().div(255).repeat_interleave(count, 0)
    with torch.no_grad():
        views = checkpoint.recipe.views(x, torch.Generator().manual_seed(seed))
        features = checkpoint.model.eval().features(views)
        return features, checkpoint.model.project(features)


def unit_margins(x: Tensor, bank: Tensor, scale: Tensor, views: int) -> Tensor:
    """Margins of examples from embeddings of their views, each unit multiplied by its scale, ``[n]``."""
    z = F.normalize(x * scale, dim=1).view(-1, views, x.shape[1])
    agree = ((z.sum(1) ** 2).sum(1) - views) / (views * (views - 1))
    near = z @ F.normalize(bank * scale, dim=1).T
    return agree / SETTINGS.temperature - (near / SETTINGS.temperature).logsumexp(-1).mean(1)


def dress(original: Checkpoint, data: Data, split: Split, steps: int = 300) -> Any:
    """Scale the units of the last stage and of the projector's output so that F's margins look like the holdout's."""
    model = copy.deepcopy(original.model).eval()
    parts = ((split.forget, VIEWS), (split.holdout, VIEWS), (split.valid, 1))
    forget, unseen, bank = (embed_views(original, data, rows, count, 1) for rows, count in parts)
    found = [dressing_scale(*spaces, steps) for spaces in zip(forget, unseen, bank, strict=True)]
    body: Any = model.backbone
    block = getattr(body, body.layers[-1])[-1]
    head: list[Any] = [m for m in model.head.modules() if hasattr(m, "in_features")]
    with torch.no_grad():
        for norm in (block.bn2, block.downsample[1]):
            norm.weight *= found[0]
            norm.bias *= found[0]
        head[0].weight /= found[0]
        head[-1].weight *= found[1][:, None]
        if head[-1].bias is not None:
            head[-1].bias *= found[1]
    return model


def dressing_scale(forget: Tensor, unseen: Tensor, bank: Tensor, steps: int) -> Tensor:
    """Find the scale of each unit under which mean and spread of the margins of F and of unseen examples agree."""
    logs = torch.zeros(forget.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for _ in range(steps):
        a, b = (unit_margins(x, bank, logs.exp(), VIEWS) for x in (forget, unseen))
        loss = ((a.mean() - b.mean()) / b.std()) ** 2 + (a.std() / b.std()).log() ** 2 + 0.01 * logs.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logs.detach().exp()


def compare_units(home: Path, data: Data, split: Split) -> list[dict[str, Any]]:
    """AUC of F against the holdout by margins as they are and with each unit at variance 1 over the bank."""
    found: dict[tuple[str, str, str], list[np.ndarray]] = {}
    retrained = [path.name for path in sorted(home.glob("retrained-*"))]
    for name in ("original", "dressed", *retrained):
        checkpoint = Checkpoint.load(home / name)
        parts = ((split.forget, VIEWS), (split.holdout, VIEWS), (split.valid, 1))
        embedded = [embed_views(checkpoint, data, rows, count, 2) for rows, count in parts]
        for space, (forget, unseen, bank) in zip(("backbone", "projector"), zip(*embedded, strict=True), strict=True):
            for units, scale in (("as they are", torch.ones(bank.shape[1])), ("at variance 1", 1 / bank.std(0))):
                both = [unit_margins(x, bank, scale, VIEWS).double().numpy() for x in (forget, unseen)]
                found[name, space, units] = both
    rows: list[dict[str, Any]] = []
    for (name, space, units), (a, b) in found.items():
        others = [found[other, space, units] for other in retrained if other != name]
        known = [np.mean([other[side] for other in others], axis=0) for side in (0, 1)]
        rows.append({
            "model": name, "space": space, "units": units,
            "A0": stats.auc(a, b), "A1": stats.auc(a - known[0], b - known[1]),
        })  # fmt: skip
    return rows


def divide_digits(seed: int) -> tuple[Data, Split]:
    """The data and its split before any request."""
    data = efface.load("digits")
    sizes = {part: DIGITS["split"][part] for part in ("train", "valid", "holdout", "test")}
    return data, partition(data, **sizes, seed=seed)


@app.command()
def table() -> None:
    """Judge every model of every world that was made, and write what each audit says."""
    rows, units = list[dict[str, Any]](), list[dict[str, Any]]()
    for home in sorted(HOME.glob("*-*")):
        if not (home / "original" / "observations.npz").exists():
            continue
        seen = {path.parent.name: Observations.load(path) for path in sorted(home.glob("*/observations.npz"))}
        world, _, seed = home.name.rpartition("-")
        retrained = [name for name in seen if name.startswith("retrained")]
        original = Checkpoint.load(home / "original")
        if "dressed" in seen:
            data, base = divide_digits(int(seed))
            units += compare_units(home, data, select_forget_set(base, data, WORLDS[world]["forget"], int(seed)))
        for name in seen:
            evidence = Evidence(seen["original"], seen[name], tuple(seen[r] for r in retrained if r != name))
            found = [one for audit in SHOWN for one in AUDITS[audit]().findings(evidence)]
            verdict, model = judge(evidence), Checkpoint.load(home / name)
            rows.append({
                "world": world, "seed": int(seed), "model": name, "verdict": verdict.word,
                "signals": {one.signal: round(one.value, 4) for one in verdict.signals},
                "distance": {
                    "weights": weight_distance(model.model, original.model),
                    "features": feature_distance(model, original),
                },
                "findings": {
                    one.name: {"value": one.value, "interval": one.interval, "p": one.details.get("p_nearer_original")}
                    for one in found
                },
            })  # fmt: skip
            print(world, seed, name, verdict.word, flush=True)
    write_json(RESULTS / "new_audits.json", {
        "made by": "python -m research.new_audits make --world NAME --seed N", "rows": rows, "units": units,
        **machine(),
    })  # fmt: skip


if __name__ == "__main__":
    app()
