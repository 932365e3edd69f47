"""A small real world in which verdicts are decided, for forgeries: classifiers that know random labels by heart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from efface import api
from efface.auditing.observations import Observations
from efface.runs import audit, run, train
from efface.training.checkpoint import Checkpoint, content_digest

WATCH: dict[str, Any] = {"views": 2, "gradient": False, "bank": 60}
STILL: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "grayscale"), 0)
SETTINGS: dict[str, Any] = {
    "split": {"train": 400, "valid": 60, "holdout": 300, "test": 300},
    "objective": "cross_entropy",
    "recipe": {
        "backbone": {"name": "resnet8", "width": 8, "stride": 2},
        "epochs": 50,
        "batch_size": 50,
        "optim": {"lr": 0.1, "weight_decay": 0.0},
        "views": {"crop": (0.99, 1.0), "flip": False} | STILL,
    },
    "criteria": {"delta": 0.12, "max_utility_drop": 0.9},
    "device": "cpu",
}


def write_data(path: Path, seed: int = 0) -> None:
    """Random pictures with random labels: nothing can be learned, and all that a model knows it has memorized."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (1060, 1, 4, 4)).repeat(2, 2).repeat(2, 3).astype(np.uint8)
    np.savez(path, x=x, y=rng.integers(0, 3, 1060))


def make_runs(home: Path) -> None:
    """``original``; ``oracle``, which was retrained; ``lazy``, which forgot nothing."""
    write_data(home / "data.npz")
    train.pretrain_run(home / "original", SETTINGS | {"data": str(home / "data.npz")})
    lazily = {"name": "finetune", "epochs": 1, "optim": {"lr": 1e-4}}
    for name, method, seed in (("oracle", "retrain", 1), ("lazy", lazily, 0)):
        asked = {"forget": "@random:0.5", "method": method, "seed": seed, "device": "cpu"}
        train.unlearn_run(home / "original", home / name, asked)


def judge(folder: Path, *oracles: Path, say: list[str] | None = None, **more: Any) -> api.AuditResult:
    """Audit a run of this world; ``say`` collects what is said."""
    settings = {"watch": WATCH, "device": "cpu"} | more.pop("settings", {})
    progress = run.Progress(say=(say if say is not None else []).append)
    return audit.audit_run(folder, settings, oracles=oracles, progress=progress, **more)


def edit(
    path: Path, change: Callable[[dict[str, Any]], Any], digest: Callable[[dict[str, Any]], str] | None = None
) -> None:
    """Edit a JSON file, and compute its digest again where the forger knows how."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    if digest is not None:
        content["content_digest"] = digest(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def with_model(source: Path, folder: Path, checkpoint: Checkpoint) -> Path:
    """A copy of a run folder with other weights under the same story, all digests put right."""
    shutil.copytree(source, folder)
    (folder / "observations.npz").unlink(missing_ok=True)
    story = Checkpoint.load(source)
    replace(story, model=checkpoint.model).save(folder)
    return folder


def forged_observations(path: Path, header: Observations, **arrays: np.ndarray | None) -> None:
    """Write observations with other arrays under a model's own header, the digest computed again."""
    changed = header.arrays | {name.replace("__", "/"): value for name, value in arrays.items()}
    kept = {name: value for name, value in changed.items() if value is not None}
    Observations(header.model, header.split, kept, header.meta).save(path)


__all__ = ["content_digest", "edit", "forged_observations", "judge", "make_runs", "with_model"]
