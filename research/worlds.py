"""Small over-fitted worlds on Fashion-MNIST: originals, oracles and the observations of each model, in folders.

Shared by the experiments that compare methods. Every model is a task with its own folder. A task whose folder is
complete is not run again, so an experiment that was killed resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import read_json, write_json

import efface
from efface import stats
from efface.auditing import signals
from efface.auditing.audits.oracle_gap import OracleGap
from efface.auditing.evidence import Cost, Evidence
from efface.auditing.observations import Observations
from efface.auditing.observers.settings import ObservationSettings
from efface.auditing.representations import accuracy, knn_accuracy, linear_probe
from efface.data.dataset import Data
from efface.data.split import Split, select_matched_valid
from efface.errors import EffaceError
from efface.tasks import Task, run_tasks
from efface.training import defaults
from efface.training.augment import Views
from efface.training.checkpoint import Checkpoint
from efface.training.networks.backbones import Backbone
from efface.training.objectives import OBJECTIVES
from efface.training.optim import Optim, OptimizerType
from efface.training.recipe import Recipe

WATCH = ObservationSettings(gradient=False, cap=1000, test_cap=2000)


CLASSIFIERS = ("cross_entropy", "vit")


VIT = Backbone(
    name="timm:vit_tiny_patch16_224",
    options={"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4},
)


ADAMW = Optim(rule=OptimizerType.ADAMW, lr=1e-3, weight_decay=0.05, warmup=0.05)


CROPS = {"flip": True, "brightness": 0.4, "contrast": 0.4, "saturation": 0, "hue": 0, "grayscale": 0}


@cache
def divided(train: int, forget: str, seed: int) -> tuple[Data, Split]:
    """The data and its split; cached per process."""
    data = efface.load("fashion-mnist", limit=max(12_000, train + 6_000))
    if forget.startswith("@group:"):
        data = replace(data, group=brightness(np.asarray(data.x)))
    sizes: dict[str, Any] = {"train": train, "valid": 1000, "holdout": 2000, "test": 2000}
    return data, efface.split(data, forget=forget, seed=seed, **sizes)


def brightness(x: np.ndarray) -> np.ndarray:
    """Five groups of equal size by brightness, from ``light-0`` (darkest) to ``light-4``."""
    mean = x.reshape(len(x), -1).mean(1)
    return np.array([f"light-{rank}" for rank in np.searchsorted(np.quantile(mean, (0.2, 0.4, 0.6, 0.8)), mean)])


def unseen(split: Split, data: Data, kind: str) -> Split:
    """The split with another V: ``whole``, of F's ``kind``, ``fifty`` examples, or the even half of the classes."""
    whole = replace(split, provenance=split.provenance | {"matched": None})
    rows = {
        "whole": lambda: split.valid,
        "kind": lambda: select_matched_valid(split, data),
        "fifty": lambda: np.sort(np.random.default_rng(0).permutation(split.valid)[:50]),
        "half the classes": lambda: split.valid[labels(data)[split.valid] % 2 == 0],
    }
    return replace(whole, valid=rows[kind]())


def labels(data: Data) -> np.ndarray:
    """The labels of all examples."""
    assert data.y is not None
    return data.y


@dataclass(frozen=True)
class World:
    """One family of models on one split of the data."""

    family: str
    seed: int
    home: Path
    train: int = 500
    forget: str = "@random:0.2"
    epochs: int = 400

    @property
    def spaces(self) -> tuple[str, str]:
        """The two signals of the verdict: the margin in the backbone and in the projector or logits."""
        return "backbone.margin", "logits.margin" if self.family in CLASSIFIERS else "projector.margin"

    @property
    def folder(self) -> Path:
        """The folder of its models."""
        suffix = "" if self.forget == "@random:0.2" else f"-{self.forget.strip('@').replace(':', '-')}"
        return self.home / f"{self.family}-{self.train}x{self.epochs}{suffix}" / f"seed-{self.seed}"

    def data(self) -> tuple[Data, Split]:
        """Fashion-MNIST and the split; each seed trains on and forgets other images."""
        return divided(self.train, self.forget, self.seed)

    def recipe(self, data: Any) -> Recipe:
        """The training recipe: few images and many epochs, so that single images are memorized."""
        classes = {"simclr": {"temperature": 0.1}, "moco": {"temperature": 0.1, "queue": 1024}}
        labelled = self.family in CLASSIFIERS
        objective = OBJECTIVES["cross_entropy" if labelled else self.family](**classes.get(self.family, {}))
        vit = self.family == "vit"
        return defaults.default_recipe(
            data,
            objective,
            backbone=VIT if vit else Backbone(name="resnet8", width=16, stride=2),
            epochs=self.epochs,
            batch_size=100,
            optim=ADAMW if vit else Optim(lr=0.1 if labelled else 0.06, warmup=0.05),
            **({} if labelled else {"views": Views(crop=(0.5, 1.0), **CROPS)}),
        )

    def model(self, name: str) -> Checkpoint:
        """Load a model of this world that was made before."""
        return Checkpoint.load(self.folder / name)

    def seen(self, name: str) -> Observations:
        """The stored observations of a model."""
        return Observations.load(self.folder / name / "observations.npz")

    def oracles(self) -> list[str]:
        """Names of the oracles that exist."""
        return sorted(path.name for path in self.folder.glob("oracle-*") if (path / "cell.json").exists())


def make(world: World, name: str, recipe: dict[str, Any] | None = None) -> str:
    """Make and observe a model: ``original``, ``oracle-K``, or with ``recipe`` an unlearned one.

    Args:
        world: The world that the model belongs to.
        name: Its name, and its folder in the world.
        recipe: The method's ``name`` and fields; ``unseen`` selects another V, see :func:`unseen`.

    Returns:
        The name.

    """
    folder = world.folder / name
    if (folder / "cell.json").exists():
        return name
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    data, split = world.data()
    cell: dict[str, Any] = {"world": world.family, "seed": world.seed, "name": name, "recipe": recipe}
    try:
        if name == "original":
            made = efface.pretrain(data, split, recipe=world.recipe(data), seed=world.seed, device="cpu")
        elif recipe is None:
            turn = int(name.rpartition("-")[2])
            made = efface.unlearn(
                world.model("original"), data, split, "retrain", seed=1000 * turn + world.seed, device="cpu"
            )
        else:
            fields = dict(recipe)
            shown = unseen(split, data, fields.pop("unseen")) if "unseen" in fields else split
            made = efface.unlearn(world.model("original"), data, shown, str(fields.pop("name")), device="cpu", **fields)
    except EffaceError as error:  # a method that diverges is a result: it is recorded as one
        cell["error"] = str(error)
    else:
        efface.observe(made, data, split, WATCH, device="cpu").save(folder / "observations.npz")
        cell["cost"] = vars(made.training_cost)
        cell |= {key: value for key, value in made.meta().items() if key in ("method", "stopped", "search") and value}
        if recipe is None:
            made.save(folder)
    write_json(folder / "cell.json", cell)
    return name


@cache
def measure(world: World, name: str) -> dict[str, Any]:
    """Measurements of one model: membership AUC of F (A0, A1) and of R, utility, average gap, steps."""
    cell = read_json(world.folder / name / "cell.json")
    if "error" in cell:
        return cell
    subject, original = world.seen(name), world.seen("original")
    names = [one for one in world.oracles() if one != name]
    oracles = [world.seen(one) for one in names]
    found: dict[str, Any] = {}
    for signal in signals.prespecified_signals(subject):
        pairs = {part: [signals.scores(subject, p, signal) for p in (part, "holdout")] for part in ("forget", "retain")}
        calibrated = (
            [signals.calibrated_scores(subject, oracles, p, signal) for p in ("forget", "holdout")] if oracles else None
        )
        found[signal] = {
            "a0": stats.auc(*pairs["forget"]),
            "a1": None if calibrated is None else stats.auc(*calibrated),
            "retained": stats.auc(*pairs["retain"]),
        }
    votes, probe = knn_accuracy(subject, "test", (20,)), linear_probe(subject)
    top = accuracy(subject, "test")
    costs = {"subject": Cost(**cell["cost"])}
    if oracles:
        spent = read_json(world.folder / names[0] / "cell.json")["cost"]
        costs["oracle"] = Cost(**spent)
        cell["share_of_steps"] = cell["cost"]["steps"] / spent["steps"]
        gaps = OracleGap().findings(Evidence(original, subject, tuple(oracles), costs))
        cell["average_gap"] = gaps[0].value
    return cell | {
        "signals": found,
        "knn": votes[0][0] / votes[0][1] if votes else None,
        "probe": probe.right / probe.of if probe else None,
        "accuracy": top[0] / top[1] if top else None,
    }


def together(tasks: Sequence[tuple[Callable[..., str], tuple[Any, ...]]], jobs: int) -> None:
    """Run tasks in ``jobs`` processes with one thread each, print a line per task, and raise the first error."""
    labels = [" ".join(_word(one) for one in arguments if not isinstance(one, dict)) for _, arguments in tasks]
    run_tasks(
        [
            Task(f"{number}", function, arguments, label=label)
            for number, ((function, arguments), label) in enumerate(zip(tasks, labels, strict=True), 1)
        ],
        jobs=jobs,
        say=lambda sentence: print(sentence, flush=True),
    )


def _word(argument: Any) -> str:
    """An argument of a task in a line."""
    return f"{argument.family} {argument.seed}" if isinstance(argument, World) else str(argument)


def spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation and number of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "mean": float(np.mean(known)),
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }
