"""What changes when the attacker is stronger: the best and the worst methods of the half-hour bench at A0, A1 and A2.

    python -m research.attackers make --pairs 24     train the models of one world of examples/half-hour.yaml
    python -m research.attackers measure             write research/results/attackers.json
    python -m research.attackers counts              add to it how many references are enough
    make docs                                        docs/results/attackers.md

    U-LiRA's accuracy   (share of unlearned models with Λ > 0 + share of retrained ones with Λ <= 0) / 2

World: the first reporting seed of the grid. The audited model is that seed's original, unlearned by the method. Pair k
is an original with another training seed on the same examples, unlearned by every method, and a model retrained with
seed k. Settings are those selected by the bench; if a method is in the grid but not yet in its results, its setting is
selected here by the same rule on the same seed. Resumable: a model that was observed is not made again; a diverging
original ends the run. The threshold Λ = 0 is fixed in advance, so the accuracy is not fitted to these models.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from benchmarks.machine import machine, read_json, write_json
from research.paths import EXAMPLES, RESULTS, ROOT, RUNS

from efface import api, config, stats
from efface.auditing import signals
from efface.auditing.attacks import model_pairs
from efface.auditing.audits.ceiling import Ceiling
from efface.auditing.audits.membership import Membership
from efface.auditing.audits.per_example import PerExample
from efface.auditing.audits.populations import Populations, PopulationScores
from efface.auditing.evidence import Evidence, Finding
from efface.auditing.observations import Observations
from efface.auditing.observers import observe
from efface.auditing.verdict import judge
from efface.bench.grid import Grid
from efface.bench.plan import FamilyPlan, load_divided, plan_bench
from efface.bench.selection import best_setting, score_setting
from efface.data.dataset import Data
from efface.data.split import Split, select_forget_set
from efface.runs.references import FIRST_SEED
from efface.training.checkpoint import META, Checkpoint
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe

GRID, BENCH = EXAMPLES / "half-hour.yaml", RESULTS / "half_hour.json"
HOME, RESULT = RUNS / "attackers", RESULTS / "attackers.json"
METHODS = ("salun", "margin_matching", "finetune", "gradient_constraint", "ssd")
UNTOUCHED, RETRAINED = "original", "retrained"
COUNTS, DRAWS = (1, 2, 4, 8, 16), 50
FEW = 8
"""Number of references at A1."""
FULL = ("forget", "holdout", "retain", "spare", "valid", "test")
REFERENCE, PAIR = ("forget", "holdout", "retain"), ("forget", "retain")
"""Parts that are observed of a retrained model, and of the unlearned model paired with it."""
ATTACKS = ("auc", "calibrated.auc", "lira.auc", "bayes.auc", "rmia.auc", "rmia.tpr_at_1_in_100")


@dataclass(frozen=True, eq=False)
class Setup:
    """The world, and how each of its models is made."""

    home: Path

    @cached_property
    def grid(self) -> Grid:
        """The grid of the bench."""
        return config.build(Grid, config.read(GRID))

    @cached_property
    def planned(self) -> FamilyPlan:
        """The plan of its only family."""
        return next(iter(plan_bench(self.grid).families.values()))

    @property
    def seed(self) -> int:
        """Seed of the split, the forget set and the audited original."""
        return self.grid.seeds.reporting[0]

    @cached_property
    def recipe(self) -> Recipe:
        """The training recipe of an original."""
        return config.build(Recipe, self.planned.recipe, CHOICES, "recipe.")

    def division(self, seed: int) -> tuple[Data, Split]:
        """The data, and the split with its forget set."""
        data, split = load_divided(self.planned, seed)
        return data, select_forget_set(split, data, next(iter(self.planned.forget.values())), seed)

    @cached_property
    def divided(self) -> tuple[Data, Split]:
        """The data and split of the world."""
        return self.division(self.seed)

    def methods(self) -> dict[str, dict[str, Any]]:
        """The setting of each method: selected by the bench, or here if the bench has none."""
        result = read_json(BENCH)
        ranking = {line["label"]: line["setting"] for line in result["ranking"][0]["methods"]}
        listed = result["settings"][self.planned.name]
        return {
            name: listed[name][ranking[name]] if name in ranking else self.selected(name)["setting"] for name in METHODS
        }

    def selected(self, name: str) -> dict[str, Any]:
        """The setting of a method with the lowest leak + drop on the selection seed, as the bench would select it."""
        path = self.home / f"selected-{name}.json"
        if not path.exists():
            seed = self.grid.seeds.selection[0]
            data, split = self.division(seed)
            start = api.pretrain(data, split, recipe=self.recipe, seed=seed, device="cpu")
            before = look(start, data, split, self.grid.watch, ("forget", "retain", "valid"))
            listed = next(entry for entry in self.planned.entries if entry.label == name).settings
            totals = []
            for setting in listed:
                after = look(apply(start, data, split, setting), data, split, self.grid.watch, ("forget", "valid"))
                totals.append(score_setting(before, after).total)
            chosen = best_setting([{"score": [total]} for total in totals], "score") or 0
            done = {"setting": listed[chosen], "chosen": chosen, "scores": totals, "seed": seed}
            write_json(path, done)
        return read_json(path)

    def folder(self, name: str, number: int | None) -> Path:
        """Folder of the audited model (``number`` None) or of a model of a pair."""
        return self.home / ("trial" if number is None else f"pair-{number}") / name

    def make(self, name: str, number: int | None) -> None:
        """Make and observe a model, unless that was done before."""
        folder, trial = self.folder(name, number), number is None
        if (folder / "observations.npz").exists():
            return
        data, split = self.divided
        began, parts = monotonic(), FULL if trial else REFERENCE if name == RETRAINED else PAIR
        if name == UNTOUCHED:
            made = self.original(number)
        elif name == RETRAINED:  # on trial: the bench's own second oracle, which is no pair's
            seed = 2000 + self.seed if number is None else self.seed + FIRST_SEED + number
            made = api.unlearn(self.original(None), data, split, "retrain", seed=seed, device="cpu")
        else:
            made = apply(self.original(number), data, split, self.methods()[name])
        seen = look(made, data, split, self.grid.watch, parts)
        folder.mkdir(parents=True, exist_ok=True)
        seen.save(folder / "partial.npz")
        (folder / "partial.npz").replace(folder / "observations.npz")
        print(f"{folder.parent.name} {name}: {monotonic() - began:.1f} s", flush=True)

    def original(self, number: int | None) -> Checkpoint:
        """The audited original or that of a pair; trained if it does not exist."""
        folder = self.folder(UNTOUCHED, number)
        if not (folder / META).exists():
            data, split = self.divided
            seed = self.seed if number is None else self.seed + FIRST_SEED + number
            made = api.pretrain(data, split, recipe=self.recipe, seed=seed, device="cpu")
            folder.mkdir(parents=True, exist_ok=True)
            made.save(folder)
        return Checkpoint.load(folder)

    def seen(self, name: str, number: int | None) -> Observations:
        """The stored observations of a model."""
        return Observations.load(self.folder(name, number) / "observations.npz")

    def pairs(self) -> list[int]:
        """Numbers of the complete pairs, without a gap."""
        names, found = (UNTOUCHED, RETRAINED, *METHODS), []
        while all((self.folder(name, len(found)) / "observations.npz").exists() for name in names):
            found.append(len(found))
        return found


def apply(start: Checkpoint, data: Data, split: Split, setting: dict[str, Any]) -> Checkpoint:
    """Unlearn ``start`` by the method and fields of a setting."""
    fields = dict(setting)
    return api.unlearn(start, data, split, fields.pop("name"), device="cpu", **fields)


def look(
    made: Checkpoint, data: Data, split: Split, how: observe.ObservationSettings, parts: tuple[str, ...]
) -> Observations:
    """Observe some parts of a model with the bench's settings."""
    return observe.observe_model(made.model, data, split, made.recipe.views, how, parts=parts)


def make(setup: Setup, pairs: int) -> None:
    """Make the audited models, then one pair after the other, so that an interrupted run leaves complete pairs."""
    torch.set_num_threads(1)
    for number in (None, *range(pairs)):
        for name in (UNTOUCHED, RETRAINED, *METHODS):
            setup.make(name, number)


# ---- attacks ----


def accuracy(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """U-LiRA's accuracy at Λ = 0, over all models and examples; 0.5 is chance."""
    high, low = model_pairs.likelihood_ratios(unlearned, retrained)
    return (float((high > 0).mean()) + float((low <= 0).mean())) / 2


def shown(found: Finding) -> dict[str, Any]:
    """The fields of a finding that the page shows."""
    row = {key: getattr(found, key) for key in ("value", "interval", "original", "oracle", "n")}
    return row | {key: found.details[key] for key in ("half", "discoveries") if key in found.details}


def screened(evidence: Evidence) -> dict[str, Any]:
    """Levels A0 and A1: the verdict with its signals, and the result of each attack with and without references."""
    verdict, names = judge(evidence), signals.prespecified_signals(evidence.subject)
    wanted = {f"membership.{name}.{attack}" for name in names for attack in ATTACKS}
    kept = {f.name: shown(f) for f in Membership().findings(evidence) if f.name in wanted and f.value is not None}
    if evidence.oracles:
        kept |= {f.name: shown(f) for f in PerExample().findings(evidence) if f.value is not None}
    judged = {
        one.signal: {"value": one.value, "low": one.low, "high": one.high, "word": one.word, "needed": one.needed}
        | {"power": one.power, "powered": one.powered}
        for one in verdict.signals
    }
    said = {"word": verdict.word, "sentence": verdict.sentence, "references": len(evidence.oracles)}
    return said | {"utility_drop": verdict.utility_drop, "signals": judged, "findings": kept}


def compared(evidence: Evidence) -> dict[str, Any]:
    """Level A2: unlearned against retrained models on every margin, on F and on R, which nobody arguments to forget."""
    count = evidence.pairs
    found = {f.name: shown(f) for f in Populations(least=count).findings(evidence) if f.value is not None}
    for name in signals.prespecified_signals(evidence.subject):
        made = PopulationScores(evidence, name, f"populations.{name}.")
        more = made.finding("ulira.accuracy", accuracy, "closer", "")
        found[more.name] = shown(more)
        epsilon = model_pairs.example_epsilons(*made.of("forget"))
        found[f"populations.{name}.sure"] = {"value": float(np.isinf(epsilon).mean()), "n": [len(epsilon)]}
    return found


def measure(setup: Setup) -> None:
    """Audit every method at every level and write the result."""
    numbers, untouched = setup.pairs(), setup.seen(UNTOUCHED, None)
    references = tuple(setup.seen(RETRAINED, number) for number in numbers)
    rows: dict[str, Any] = {}
    for label in (UNTOUCHED, *METHODS, RETRAINED):
        began, subject = monotonic(), setup.seen(label, None)
        levels = {"A0": (), "A1": references[:FEW], "all references": references}
        rows[label] = {level: screened(Evidence(untouched, subject, held)) for level, held in levels.items()}
        if label != RETRAINED:
            unlearned = tuple(setup.seen(label, number) for number in numbers)
            rows[label]["A2"] = compared(Evidence(untouched, subject, references, unlearned=unlearned))
        print(f"{label}: {monotonic() - began:.0f} s", flush=True)
    largest = model_pairs.largest_divergence(len(numbers))
    result = {
        "machine": machine(),
        "made by": "python -m research.attackers make",
        "pairs": len(numbers),
        "world": {"grid": GRID.name, "seed": setup.seed, "examples": setup.divided[1].sizes()},
        "settings": setup.methods(),
        "selected here": {"margin_matching": setup.selected("margin_matching")},
        "ceilings": {
            **{f.name: f.value for f in Ceiling().findings(Evidence(untouched, setup.seen(RETRAINED, None)))},
            "example epsilon": model_pairs.largest_epsilon(len(numbers)),
            "klom": largest,
        },
        "rows": rows,
    }
    write_json(RESULT, result)
    print(f"Written: {RESULT.relative_to(ROOT)}: {len(numbers)} pairs")


def counts(setup: Setup) -> None:
    """AUC of the calibrated score by number of references: mean and spread over random draws of references."""
    rng, numbers = np.random.default_rng(0), setup.pairs()
    references = [setup.seen(RETRAINED, number) for number in numbers]
    found: dict[str, Any] = {}
    for label in (UNTOUCHED, RETRAINED):
        subject = setup.seen(label, None)
        for name in signals.prespecified_signals(subject):
            row = found.setdefault(name, {}).setdefault(label, {})
            for count in COUNTS:
                chosen = [rng.choice(len(references), count, replace=False) for _ in range(DRAWS)]
                aucs = [calibrated(subject, [references[i] for i in draw], name) for draw in chosen]
                row[str(count)] = {"mean": float(np.mean(aucs)), "sd": float(np.std(aucs, ddof=1))}
    result = read_json(RESULT)
    result["counts"] = {"draws": DRAWS, "signals": found}
    write_json(RESULT, result)


def calibrated(subject: Observations, references: list[Observations], name: str) -> float:
    """AUC of F against H after subtracting the references' mean score."""
    return stats.auc(*(signals.calibrated_scores(subject, references, part, name) for part in ("forget", "holdout")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("make", "measure", "counts"))
    parser.add_argument("--pairs", type=int, default=32)
    arguments = parser.parse_args()
    setup = Setup(HOME)
    if arguments.stage == "make":
        make(setup, arguments.pairs)
    elif arguments.stage == "counts":
        counts(setup)
    else:
        measure(setup)


if __name__ == "__main__":
    main()
