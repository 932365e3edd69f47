"""Trace of the forgotten examples against damage to the retained ones: every method on over-fitted encoders.

    python -m research.frontier train      originals and oracles of the reporting seeds
    python -m research.frontier report     every setting on the reporting seeds
    python -m research.frontier ablate     margin matching without each of its parts
    python -m research.frontier choose     the settings its defaults were chosen from, on the selection seeds
    python -m research.frontier tables     research/results/frontier.json

Worlds (originals, oracles) and cells are shared with :mod:`research.gradient_constraint`. Resumable: a model whose
folder is complete is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from benchmarks.machine import machine, write_json
from research import gradient_constraint
from research.gradient_constraint import HOME, WHOLE, at
from research.paths import RESULTS
from research.worlds import CLASSIFIERS, World, make, measure, spread, together

RESULT = RESULTS / "frontier.json"
SELECTION, REPORTING = (0, 1, 2, 3, 4), (10, 11, 12, 13, 14)
FAMILIES = ("simclr", "moco")
"""The families that the goal is stated for, with selection and ablation."""
FURTHER = ("byol", "cross_entropy", "vit")
EPOCHS = gradient_constraint.EPOCHS | {"byol": 400, "cross_entropy": 300, "vit": 300}
SETTINGS: dict[str, dict[str, Any]] = {
    "margin_matching": {"name": "margin_matching"},
    "finetune lr .1": WHOLE["finetune lr .1"],
    "neggrad lr .1": WHOLE["neggrad lr .1"],
    "gradient_constraint": {"name": "gradient_constraint"},
    "alignment_calibration": {"name": "alignment_calibration"},
    "alignment_calibration lr .06": {"name": "alignment_calibration", **at(0.06)},
    "l1_sparse lr .1": {"name": "l1_sparse", **at(0.1)},
    **{
        name: {"name": name}
        for name in ("coun", "gradient_ascent", "scrub", "random_labels", "salun", "bad_teacher", "ssd", "influence")
    },
}
"""Defaults, or the best learning rate where one was searched on other seeds."""
ENCODERS = ("alignment_calibration", "alignment_calibration lr .06")
"""Methods that do not apply to classifiers."""
LABELS: dict[str, dict[str, Any]] = {
    "margin_matching, logits": {"name": "margin_matching", "backbone": 0.0},
    "finetune": {"name": "finetune"},
    "neggrad": {"name": "neggrad"},
    "gradient_constraint weight .003": WHOLE["weight .003"],
    "contrastive_unlearning": {"name": "contrastive_unlearning"},
}
"""Further settings for classifiers: methods that need labels, and weaker settings."""
ADAMW = {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.05}
TRANSFORMER: dict[str, dict[str, Any]] = {
    "lethevit": {"name": "lethevit"},
    **{f"{n} AdamW": {"name": n, "optim": ADAMW} for n in ("finetune", "neggrad", "random_labels")},
}
"""For the transformer: its own method, and AdamW, since SGD at the learning rate of a ResNet damages it."""
TWICE = (
    *("finetune lr .1", "gradient_constraint", "alignment_calibration", "alignment_calibration lr .06"),
    *("neggrad lr .1", "coun", "random_labels"),
)
"""Baselines that also run with as many steps as margin matching takes by default: a tenth of the oracle's."""
ABLATION: dict[str, dict[str, Any]] = {
    "no hold": {"name": "margin_matching", "hold": 0.0},
    "output only": {"name": "margin_matching", "backbone": 0.0},
    "backbone only": {"name": "margin_matching", "output": 0.0},
    "no memory": {"name": "margin_matching", "memory": 0.0},
    "half the steps": {"name": "margin_matching", "epochs": 20},
}
"""Each part of margin matching removed."""
CHOICE: dict[str, dict[str, Any]] = {
    "margin_matching": {"name": "margin_matching"},
    "no memory": ABLATION["no memory"],
    "output 6": {"name": "margin_matching", "output": 6.0},
    "backbone 3, output 6": {"name": "margin_matching", "backbone": 3.0, "output": 6.0},
}
"""Settings compared on the selection seeds when the running mean of the gap was added."""


def worlds(families: list[str], seeds: Sequence[int] = REPORTING) -> list[World]:
    return [World(family, seed, HOME, epochs=EPOCHS[family]) for family in families for seed in seeds]


def train(families: list[str], seeds: Sequence[int], jobs: int) -> None:
    among = worlds(families, seeds)
    together([(make, (world, "original")) for world in among], jobs)
    together([(make, (world, f"oracle-{k}")) for world in among for k in (1, 2)], jobs)


def report(part: str, families: list[str], only: list[str] | None, jobs: int) -> None:
    tasks = []
    for family in families:
        settings, seeds = {"ablate": (ABLATION, REPORTING), "choose": (CHOICE, SELECTION)}.get(
            part, (settings_of(family), REPORTING)
        )
        chosen = {label: recipe for label, recipe in settings.items() if not only or label in only}
        tasks += [(make, (w, label, recipe)) for label, recipe in chosen.items() for w in worlds([family], seeds)]
    together(tasks, jobs)


def settings_of(family: str) -> dict[str, dict[str, Any]]:
    """Every setting of a family, without the ablation."""
    tenth, labelled = {"epochs": EPOCHS[family] // 10}, family in CLASSIFIERS
    found = SETTINGS | (LABELS if labelled else {}) | (TRANSFORMER if family == "vit" else {})
    found |= {f"{label}, 10 %": SETTINGS[label] | tenth for label in TWICE if label != "coun"}
    found["coun, 10 %"] = {"name": "coun", "base": {"name": "finetune", **tenth}}
    return {label: recipe for label, recipe in found.items() if not (labelled and label.startswith(ENCODERS))}


def retained(oracles: list[dict[str, Any]], signal: str) -> float:
    """Mean membership AUC of R over the oracles."""
    return sum(o["signals"][signal]["retained"] for o in oracles) / len(oracles)


def boxed(cell: dict[str, Any], oracles: list[dict[str, Any]]) -> dict[str, bool]:
    """Which criteria of the goal a model meets, compared with the mean of its oracles."""
    found = cell["signals"]
    known = [key for key in ("knn", "probe", "accuracy") if cell[key] is not None]
    useful = {key: sum(o[key] for o in oracles) / len(oracles) - 0.01 for key in known}
    return {
        **{f"F {s}": 0.45 <= one["a1"] <= 0.55 for s, one in found.items()},
        **{f"R {s}": abs(one["retained"] - retained(oracles, s)) <= 0.03 for s, one in found.items()},
        **{key: cell[key] >= least for key, least in useful.items()},
    }


def distance(cell: dict[str, Any], oracles: list[dict[str, Any]]) -> float:
    """The larger of |A1 of F - 1/2| and the drop of R's AUC below the oracles', over both spaces; lower is better."""
    found = cell["signals"].items()
    return max(max(abs(one["a1"] - 0.5), retained(oracles, s) - one["retained"]) for s, one in found)


def rows(among: Sequence[World], labels: Iterable[str]) -> dict[str, Any]:
    """Mean and spread of every model, and in how many seeds it meets each criterion of the goal."""
    table: dict[str, Any] = {}
    whole = [w for w in among if len(w.oracles()) > 1]
    for label in ["original", "oracle-1", "oracle-2", *labels]:
        made = [w for w in whole if (w.folder / label / "cell.json").exists()]
        cells = [(measure(w, label), [measure(w, name) for name in w.oracles()]) for w in made]
        good = [(cell, oracles) for cell, oracles in cells if "error" not in cell]
        if not cells:
            continue
        row: dict[str, Any] = {"n": len(cells), "errors": [cell["error"] for cell, _ in cells if "error" in cell]}
        row["seeds"] = [w.seed for w in made]
        for s in among[0].spaces:
            row[s] = {key: spread(c["signals"][s][key] for c, _ in good) for key in ("a0", "a1", "retained")}
            row[s]["each"] = [c["signals"][s]["a1"] for c, _ in good]
            row[s]["fall"] = [retained(oracles, s) - c["signals"][s]["retained"] for c, oracles in good]
        for key in ("knn", "probe", "accuracy", "average_gap", "share_of_steps"):
            row[key] = spread(cell.get(key) for cell, _ in good)
        known = {w.seed: pair for w, pair in zip(made, cells, strict=True) if "error" not in pair[0]}
        row["gap of each"] = {seed: cell["average_gap"] for seed, (cell, _) in known.items()}
        row["distance of each"] = {seed: distance(*pair) for seed, pair in known.items()}
        row["distance"] = spread(row["distance of each"].values())
        sides = [boxed(*pair) for pair in good]
        row["within"] = {side: sum(one[side] for one in sides) for side in (sides[0] if sides else ())}
        row["box"] = sum(all(one.values()) for one in sides)
        table[label] = row
    return table


def luck(among: Sequence[World], label: str) -> dict[str, Any]:
    """How the result of a method depends on how hard F is: correlation with the oracles' raw AUC of F, by space."""
    made = [w for w in among if (w.folder / label / "cell.json").exists()]
    found: dict[str, Any] = {}
    for s in among[0].spaces:
        hard = [sum(measure(w, o)["signals"][s]["a0"] for o in w.oracles()) / len(w.oracles()) for w in made]
        raw, left = ([measure(w, label)["signals"][s][key] for w in made] for key in ("a0", "a1"))
        found[s] = {
            "worlds": len(made),
            "oracles, raw": spread(hard),
            "raw": spread(raw),
            "a1": spread(left),
            "correlation": float(np.corrcoef(hard, left)[0, 1]) if len(made) > 2 else None,
        }
    return found


def tables() -> None:
    families = {family: rows(worlds([family]), [*settings_of(family), *ABLATION]) for family in (*FAMILIES, *FURTHER)}
    families = {family: table for family, table in families.items() if table}
    selection = {family: rows(worlds([family], SELECTION), CHOICE) for family in FAMILIES}
    result = {
        "machine": machine(),
        "reporting_seeds": REPORTING,
        "selection_seeds": SELECTION,
        "families": families,
        "selection": selection,
        "luck": {f: luck(worlds([f], SELECTION + REPORTING), "margin_matching") for f in families},
    }
    write_json(RESULT, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "report", "ablate", "choose", "tables"))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES + FURTHER)
    parser.add_argument("--only", nargs="+", help="labels of the settings to run")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.part == "train":
        for family in arguments.families:
            train([family], REPORTING if family in FURTHER else SELECTION + REPORTING, arguments.jobs)
    elif arguments.part == "tables":
        tables()
    else:
        report(arguments.part, arguments.families, arguments.only, arguments.jobs)


if __name__ == "__main__":
    main()
