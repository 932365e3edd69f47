"""Can small image-text models forget pairs? A two-tower model on emoji and their names, against the oracle.

    python -m research.emoji MANIFEST select     original, one oracle and all settings, on the selection seed
    python -m research.emoji MANIFEST train      originals and oracles of the reporting seeds
    python -m research.emoji MANIFEST report     the chosen settings on the reporting seeds
    python -m research.emoji MANIFEST tables     research/results/emoji.json and docs/figures/emoji_alignment.svg

Resumable: a model whose folder is complete is not made again. One process with one thread.
"""

from __future__ import annotations

import argparse
from functools import cache
from time import monotonic
from typing import Any

import numpy as np
import torch
from benchmarks.machine import machine, read_json, write_json
from research.paths import DOCS, RESULTS, RUNS
from research.worlds import spread

import efface
from efface import stats
from efface.auditing import representations, signals
from efface.auditing.audits.alignment_matrix import cross_matrix
from efface.auditing.audits.oracle_gap import OracleGap
from efface.auditing.evidence import Cost, Evidence
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.verdict import judge
from efface.errors import EffaceError
from efface.training import defaults
from efface.training.checkpoint import Checkpoint
from efface.training.networks.backbones import Backbone
from efface.training.networks.text import TextEncoder
from efface.training.objectives import Clip
from efface.training.optim import Optim, OptimizerType
from efface.training.recipe import Recipe

HOME, RESULT = RUNS / "emoji", RESULTS / "emoji.json"
PICTURE = DOCS / "figures" / "emoji_alignment.svg"
FORGET = {"random": "@random:0.1", "flags": "@group:country-flag"}
SELECTION, REPORTING = (0,), (10, 11, 12)
SIZES: dict[str, Any] = {"train": 1000, "valid": 300, "holdout": 1200, "test": 400}
WATCH = ObservationSettings(gradient=False, views=3, bank=300, cap=400, test_cap=400)
EPOCHS = 40


def adam(lr: float = 1e-3) -> dict[str, Any]:
    return {"optim": {"rule": "adamw", "lr": lr, "weight_decay": 1e-4, "clip": 5.0}}


GRID: dict[str, dict[str, Any]] = {
    "finetune, 1e-3": {"name": "finetune", **adam()},
    "finetune, 3e-3": {"name": "finetune", **adam(3e-3)},
    "gradient_ascent, 3e-4": {"name": "gradient_ascent", **adam(3e-4)},
    "gradient_ascent, 1e-3": {"name": "gradient_ascent", **adam()},
    "gradient_ascent, 3e-3": {"name": "gradient_ascent", **adam(3e-3)},
    "neggrad, .95": {"name": "neggrad", "beta": 0.95, **adam()},
    "neggrad, .8": {"name": "neggrad", "beta": 0.8, **adam()},
    "neggrad, .7": {"name": "neggrad", "beta": 0.7, **adam()},
    "neggrad, .6": {"name": "neggrad", "beta": 0.6, **adam()},
    "gradient_constraint, .1": {"name": "gradient_constraint", "weight": 0.1, **adam()},
    "gradient_constraint, 1": {"name": "gradient_constraint", "weight": 1.0, **adam()},
    "gradient_constraint, 1, 3e-3": {"name": "gradient_constraint", "weight": 1.0, **adam(3e-3)},
    "gradient_constraint, 10": {"name": "gradient_constraint", "weight": 10.0, **adam()},
    "alignment_calibration, 10": {"name": "alignment_calibration", "beta": 10.0, **adam()},
    "alignment_calibration, 20": {"name": "alignment_calibration", "beta": 20.0, **adam()},
    "alignment_calibration, 50": {"name": "alignment_calibration", "beta": 50.0, **adam()},
    "alignment_calibration, 50, alpha 0": {"name": "alignment_calibration", "beta": 50.0, "alpha": 0.0, **adam()},
    "ssd, 20": {"name": "ssd", "alpha": 20.0},
    "ssd, 10": {"name": "ssd", "alpha": 10.0},
    "ssd, 5": {"name": "ssd", "alpha": 5.0},
    "ssd, 2": {"name": "ssd", "alpha": 2.0},
    "salun, .25": {"name": "salun", "weight": 0.25, **adam()},
    "salun, 1": {"name": "salun", "weight": 1.0, **adam()},
    "neggrad, .7, 6 epochs": {"name": "neggrad", "beta": 0.7, "epochs": 6, **adam()},
    "gradient_constraint, 1, 6 epochs": {"name": "gradient_constraint", "weight": 1.0, "epochs": 6, **adam()},
    "alignment_calibration, 20, 6 epochs": {"name": "alignment_calibration", "beta": 20.0, "epochs": 6, **adam()},
    "salun, .5, 6 epochs": {"name": "salun", "weight": 0.5, "epochs": 6, **adam()},
}
DRAWN = ("neggrad", "alignment_calibration", "ssd", "salun")
"""Methods shown in the picture."""
KEPT = 2 / 3
"""Share of the original's recall@1 on retained pairs that a setting must leave to be chosen."""


@cache
def data_of(manifest: str) -> Any:
    return efface.load(manifest, size=32)


@cache
def divided(manifest: str, kind: str, seed: int) -> Any:
    return efface.split(data_of(manifest), forget=FORGET[kind], seed=seed, **SIZES)


def recipe_of(manifest: str) -> Recipe:
    return defaults.default_recipe(
        data_of(manifest),
        Clip(dim=64, text=TextEncoder(depth=1, buckets=2048)),
        backbone=Backbone(width=16, stride=2),
        epochs=EPOCHS,
        batch_size=128,
        optim=Optim(rule=OptimizerType.ADAMW, lr=2e-3, warmup=0.05, weight_decay=1e-4),
    )


def original(manifest: str, seed: int) -> Checkpoint:
    """The original of one seed, from which both forget sets are unlearned."""
    folder = HOME / f"seed-{seed}" / "original"
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        split = divided(manifest, "random", seed)
        efface.pretrain(data_of(manifest), split, recipe=recipe_of(manifest), seed=seed, device="cpu").save(folder)
    return Checkpoint.load(folder)


def make(manifest: str, kind: str, seed: int, label: str, settings: dict[str, Any] | None = None) -> None:
    """Make a model and save its observations: ``original``, ``oracle-K``, or with ``settings`` an unlearned one."""
    folder, began = HOME / f"seed-{seed}" / kind / label, monotonic()
    if (folder / "cell.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    data, split, start = data_of(manifest), divided(manifest, kind, seed), original(manifest, seed)
    cell: dict[str, Any] = {"label": label, "settings": settings}
    try:
        if label == "original":
            made = start
        elif settings is None:
            own_seed = 1000 * int(label[-1]) + seed
            made = efface.unlearn(start, data, split, "retrain", seed=own_seed, device="cpu")
        else:
            fields = dict(settings)
            made = efface.unlearn(start, data, split, fields.pop("name"), device="cpu", **fields)
    except EffaceError as error:  # a method that diverges is a result
        cell["error"] = str(error)
    else:
        efface.observe(made, data, split, WATCH, device="cpu").save(folder / "observations.npz")
        cell["cost"] = vars(made.training_cost)
    write_json(folder / "cell.json", cell)
    print(f"{monotonic() - began:6.0f} s  seed {seed}  {kind}  {label}  {cell.get('error', '')}", flush=True)


def seen(kind: str, seed: int, label: str) -> Observations:
    return Observations.load(HOME / f"seed-{seed}" / kind / label / "observations.npz")


def there(kind: str, seed: int) -> list[str]:
    return sorted(path.parent.name for path in (HOME / f"seed-{seed}" / kind).glob("*/cell.json"))


def measure(kind: str, seed: int, label: str) -> dict[str, Any]:
    """The measurements of one model."""
    cell = read_json(HOME / f"seed-{seed}" / kind / label / "cell.json")
    if "error" in cell:
        return cell
    subject, before = seen(kind, seed, label), seen(kind, seed, "original")
    names = [name for name in there(kind, seed) if name.startswith("oracle") and name != label]
    oracles = tuple(seen(kind, seed, name) for name in names)
    found: dict[str, Any] = {}
    parts = ("forget", "holdout")
    for signal in signals.prespecified_signals(subject):
        found[f"{signal}.a0"] = stats.auc(*(signals.scores(subject, part, signal) for part in parts))
        if oracles:
            found[f"{signal}.a1"] = stats.auc(
                *(signals.calibrated_scores(subject, oracles, part, signal) for part in parts)
            )
        pair = signals.score_pair(subject, "retain", signal)
        found[f"{signal}.retained"] = stats.auc(*pair) if pair else None
    found["pair.similarity.a0"] = stats.auc(*(signals.scores(subject, p, "pair.similarity") for p in parts))
    for part in ("forget", "retain", "test"):
        found[f"recall1.{part}"] = representations.mean_retrieval_recall(subject, part, 1)
    shot, votes = representations.zero_shot(subject, "test"), representations.knn_accuracy(subject, "test")
    found["zero_shot"] = shot[0] / shot[1] if shot else None
    found["knn"] = votes[0][0] / votes[0][1] if votes else None
    matrices = [np.diag(cross_matrix(o.of("forget", "image"), o.of("forget", "text"))) for o in (before, subject)]
    found["forget_score"] = float((matrices[0] - matrices[1]).mean())
    if oracles:
        spent = read_json(HOME / f"seed-{seed}" / kind / names[0] / "cell.json")["cost"]
        costs = {"subject": Cost(**cell["cost"]), "oracle": Cost(**spent)}
        evidence = Evidence(before, subject, oracles, costs)
        found["average_gap"] = OracleGap().findings(evidence)[0].value
        found["examples"] = cell["cost"]["examples"] / spent["examples"]
        found["verdict"] = judge(evidence).word
    return cell | {"found": found}


def chosen() -> tuple[str, ...]:
    """The chosen setting of each method, by the selection seed.

    Of the settings that keep ``KEPT`` of recall@1 on retained pairs, the one whose A1 of pairs is closest to 0.5.
    """
    found = {label: measure("random", SELECTION[0], label).get("found") for label in ("original", *GRID)}
    original = found.pop("original") or {}
    best: dict[str, tuple[float, str]] = {}
    for label, row in found.items():
        if row and row["recall1.retain"] >= KEPT * original["recall1.retain"]:
            name = GRID[label]["name"]
            best[name] = min(best.get(name, (1.0, "")), (abs(row["pair.margin.a1"] - 0.5), label))
    return tuple(label for _, label in best.values())


def rows(kind: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Mean and spread over the seeds of every model that was made for each of them."""
    table: dict[str, Any] = {}
    made = {label for seed in seeds for label in there(kind, seed)}
    for label in (label for label in ("original", "oracle-1", *GRID) if label in made):
        cells = [measure(kind, seed, label) for seed in seeds if label in there(kind, seed)]
        good = [cell["found"] for cell in cells if "found" in cell]
        figures = [key for key in good[0] if key != "verdict"] if good else []
        table[label] = {
            "n": len(good),
            "settings": cells[0]["settings"],
            "errors": [cell["error"] for cell in cells if "error" in cell],
            "verdicts": [found["verdict"] for found in good if "verdict" in found],
            **{key: spread(found.get(key) for found in good) for key in figures},
        }
    return table


def picture(kind: str, seed: int, labels: tuple[str, ...], shown: int = 20, cell: int = 7) -> str:
    """SVG of the alignment matrices (images × captions) of the same forgotten pairs under several models."""
    side, gap, parts = shown * cell, 16, []
    for number, label in enumerate(labels):
        observed, left = seen(kind, seed, label), number * (side + gap)
        some = np.sort(signals.random_order_by_key(observed.of("forget", "keys"))[:shown])
        matrix = cross_matrix(observed.of("forget", "image")[some], observed.of("forget", "text")[some])
        parts.append(f'<text x="{left}" y="12" font-size="10">{label.partition(",")[0]}</text>')
        for (i, j), value in np.ndenumerate(matrix):
            shade = f"{min(value, 1):.2f}"
            if value < 0.01:
                continue
            place = f'x="{left + j * cell}" y="{18 + i * cell}"'
            parts.append(f'<rect {place} width="{cell}" height="{cell}" fill-opacity="{shade}"/>')
    wide, high = len(labels) * (side + gap) + gap, side + 18 + gap
    size = f'viewBox="{-gap} 0 {wide} {high}" width="{wide}" height="{high}"'
    style = 'role="img" font-family="sans-serif" fill="#14506e"'
    title = "<title>Cosines of forgotten images, in rows, and their captions, in columns, by model</title>"
    paper = f'<rect class="paper" x="{-gap}" width="{wide}" height="{high}" rx="6" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{title}{paper}'
    return "\n".join([head, *parts, "</svg>", ""])


def tables() -> None:
    result: dict[str, Any] = {"machine": machine(), "selection_seeds": SELECTION, "reporting_seeds": REPORTING}
    result |= {"chosen": chosen(), "kept": KEPT}
    result["selection"] = {"random": rows("random", SELECTION)}
    result["reporting"] = {kind: rows(kind, REPORTING) for kind in FORGET}
    write_json(RESULT, result)
    drawn = [label for label in chosen() if GRID[label]["name"] in DRAWN]
    PICTURE.write_text(picture("random", REPORTING[0], ("original", *drawn, "oracle-1")), encoding="utf-8")
    print(f"Written: {RESULT.name}, {PICTURE.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("stage", choices=("select", "train", "report", "tables"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.stage == "tables":
        tables()
        return
    seeds, kinds = (SELECTION, ("random",)) if arguments.stage == "select" else (REPORTING, tuple(FORGET))
    labels = tuple(GRID) if arguments.stage == "select" else chosen() if arguments.stage == "report" else ()
    for kind in kinds:
        for label in ("original", "oracle-1", *labels):
            for seed in seeds:
                make(arguments.manifest, kind, seed, label, GRID.get(label))


if __name__ == "__main__":
    main()
