"""A complete run from a foreign checkpoint: SimCLR trained with lightly, unlearned and audited on the command line.

    python -m research.foreign [FOLDER]

500 images of Fashion-MNIST (halved to 14x14, three channels), lightly's own ResNet-9 as a Sequential of its children,
lightly's projection head and loss, SGD with a cosine schedule: over-fitted, and saved as a bare state dict. Only the
random views are efface's instead of lightly's (batched tensors: minutes instead of an hour on one core). Two more runs
of the same script without the forgotten images are the references. Results: research/results/foreign.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import machine, read_json, write_json
from research.paths import RESULTS
from torch import Tensor, nn

import efface
from efface.training.augment import Views

TRAIN, FORGET, UNSEEN = 500, 100, 4000
EPOCHS, BATCH, RATE, TAU = 200, 125, 0.06, 0.1
SIZES = {"valid": 500, "holdout": 2000, "test": 1000}
VIEWS = Views(crop=(0.5, 1.0), brightness=0.4, contrast=0.4, saturation=0, hue=0, grayscale=0)
METHODS: dict[str, list[str]] = {
    "finetune": ["--set", "method.epochs=10", "--set", "method.batch_size=100"],
    "gradient_constraint": ["--set", "method.epochs=10", "--set", "method.batch_size=100"],
}


def pictures(home: Path) -> dict[str, Any]:
    """Write a user's files: images with keys, the keys that were trained on, the keys to forget."""
    data = efface.load("fashion-mnist", limit=TRAIN + UNSEEN)
    pool = np.flatnonzero(data.official == "train")
    half = data.x[pool].reshape(-1, 1, 14, 2, 14, 2).mean((3, 5)).round().astype(np.uint8)
    keys, order = data.keys[pool], np.random.default_rng(0).permutation(len(pool))
    assert data.y is not None
    np.savez(home / "pictures.npz", x=half.repeat(3, 1), y=data.y[pool], keys=keys)
    trained, forgotten = keys[order[:TRAIN]], keys[order[:FORGET]]
    (home / "trained.txt").write_text("\n".join(trained) + "\n", encoding="utf-8")
    (home / "forget.txt").write_text("\n".join(forgotten) + "\n", encoding="utf-8")
    rows = {"all": order[:TRAIN], "kept": order[FORGET:TRAIN]}
    return {name: torch.from_numpy(half.repeat(3, 1)[one]) for name, one in rows.items()}


class SimCLR(nn.Module):
    """SimCLR assembled from lightly's modules, as in its documentation."""

    def __init__(self) -> None:
        from lightly.models.modules.heads import SimCLRProjectionHead
        from lightly.models.resnet import ResNetGenerator

        super().__init__()
        children = list(ResNetGenerator("resnet-9", width=1 / 8).children())[:-1]
        self.backbone = nn.Sequential(*children, nn.AdaptiveAvgPool2d(1))
        self.projection_head = SimCLRProjectionHead(64, 64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Projections of images."""
        return self.projection_head(self.backbone(x).flatten(start_dim=1))


def train(x: Tensor, seed: int, path: Path) -> dict[str, float]:
    """Train SimCLR with lightly and save the state dict to ``path``; returns seconds, steps and the last loss."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(seed)
    model, criterion, rng = SimCLR().train(), NTXentLoss(temperature=TAU), torch.Generator().manual_seed(seed)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    began, value = time.perf_counter(), float("nan")
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // BATCH * BATCH].split(BATCH):
            clean = x[rows].float() / 255
            loss = criterion(*(model((VIEWS(clean, rng) - mean) / std) for _ in range(2)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
    torch.save(model.state_dict(), path)
    return {"seconds": round(time.perf_counter() - began, 1), "steps": steps, "last_loss": round(value, 4)}


def efface_cli(*words: object) -> dict[str, Any]:
    """Run one command in its own process; returns its words, exit code, output and seconds."""
    arguments = [str(word) for word in words]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "efface", *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"{arguments}: {done.returncode}\n{done.stderr}")
    seconds = round(time.perf_counter() - began, 1)
    return {"exit": done.returncode, "out": done.stdout, "said": done.stderr, "seconds": seconds, "words": arguments}


def judged(run: Path) -> dict[str, Any]:
    """Verdict and findings of an audited run, from its record."""
    record = read_json(run / "record.json")
    verdict = record["verdict"]
    return {
        "word": verdict["word"],
        "level": verdict["level"],
        "sentence": verdict["sentence"],
        "signals": verdict["signals"],
        "claims": {name: facts["claim"] for name, facts in record["checkpoints"].items() if facts["claim"]},
        "findings": {
            one["name"]: {"value": one["value"], "original": one["original"], "oracle": one["oracle"]}
            for one in record["findings"]
            if one["name"].startswith(("membership.", "utility.", "collateral."))
        },
        "purged": record["checkpoints"]["subject"]["purged"],
    }


def main() -> None:
    """Train three models with lightly, then run each method on the command line."""
    torch.set_num_threads(1)
    home = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/foreign")
    home.mkdir(parents=True, exist_ok=True)
    images = pictures(home)
    made: dict[str, Any] = {}
    for name, rows, seed in (("simclr", "all", 0), ("reference-1", "kept", 1), ("reference-2", "kept", 2)):
        note = home / f"{name}.json"
        if not note.exists():
            (home / name).mkdir(exist_ok=True)
            write_json(note, train(images[rows], seed, home / name / f"{name}.pth"))
        made[name] = read_json(note)
        print(name, made[name], flush=True)
    start = home / "simclr" / "simclr.pth"
    views = json.dumps({key: value for key, value in vars(VIEWS).items() if key != "crop"} | {"crop": VIEWS.crop})
    words = ["--data", home / "pictures.npz", "--set", f"split={json.dumps(SIZES)}", "--device", "cpu"]
    words += ["--set", f"split.trained={home / 'trained.txt'}", "--set", f"recipe.views={views}"]
    oracles = [word for n in (1, 2) for word in ("--oracle", home / f"reference-{n}" / f"reference-{n}.pth")]
    results: dict[str, Any] = {"inspect": efface_cli("inspect", start)}
    for method, more in METHODS.items():
        out = home / f"forgotten-{method}"
        named = ["--forget", home / "forget.txt", "--method", method, *more]
        unlearned = efface_cli("unlearn", start, *words, *named, "--out", out, "--force", "--quiet")
        audited = efface_cli("audit", out, *oracles, "--device", "cpu", "--set", "watch.gradient=false", "--quiet")
        results[method] = {"unlearn": unlearned, "audit": audited, "verdict": judged(out)}
        print(method, audited["exit"], results[method]["verdict"]["sentence"], flush=True)
    whole = {"machine": machine(), "settings": settings(), "trained": made, **results}
    write_json(RESULTS / "foreign.json", whole, hide=home)


def settings() -> dict[str, Any]:
    """The sizes and hyperparameters of this experiment."""
    return {"train": TRAIN, "forget": FORGET, "epochs": EPOCHS, "batch": BATCH, "rate": RATE, "tau": TAU, **SIZES}


if __name__ == "__main__":
    main()
