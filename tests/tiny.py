"""Tiny data, models and subsets for tests: real networks of a few thousand weights, a few milliseconds per step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from efface.training.augment import Views
from efface.training.batch import Augment, Subset
from efface.training.model import Model
from efface.training.networks.backbones import Backbone
from efface.training.networks.text import TextEncoder
from efface.training.objectives import Barlow, Byol, Clip, CrossEntropy, Moco, SimClr, SimSiam, VicReg
from efface.training.optim import Optim
from efface.training.recipe import Recipe
from efface.unlearning.protocol import MethodInputs, Needs
from efface.unlearning.targets import MarginTargets

CLASSES, SIDE = 3, 8
SMALL: dict[str, Any] = {
    "barlow": Barlow(dim=8, weight=0.1),
    "byol": Byol(dim=8),
    "clip": Clip(temperature=0.2, dim=8, text=TextEncoder(width=8, depth=1, heads=2, context=4, buckets=32)),
    "cross_entropy": CrossEntropy(),
    "moco": Moco(queue=48, dim=8),
    "simclr": SimClr(temperature=0.2, dim=8),
    "simsiam": SimSiam(dim=8, bottleneck=4),
    "vicreg": VicReg(dim=8),
}

VIT = Backbone(
    name="timm:vit_tiny_patch16_224",
    options={"img_size": SIDE, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
)
"""A vision transformer with four patches."""


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make uint8 images [n, 1, SIDE, SIDE] of three classes (a bright row in noise) and their labels [n]."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    x = rng.uniform(0, 150, (n, 1, SIDE, SIDE))
    for row in range(n):
        x[row, 0, 2 * y[row] + 1] += 80
    return x.clip(0, 255).astype(np.uint8), y.astype(np.int64)


def captions(y: np.ndarray) -> tuple[str, ...]:
    """Make a caption for each image: its class and its number."""
    return tuple(f"{('low', 'middle', 'high')[label % 3]} stripe, number {row}" for row, label in enumerate(y))


def still(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment with the identity."""
    return x


def blurred(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augment with random noise."""
    return (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def recipe(name: str = "simclr", **changed: Any) -> Recipe:
    """Make a recipe for tiny images: a ResNet-8 of width 8."""
    fields: dict[str, Any] = {
        "objective": SMALL[name],
        "backbone": Backbone(name="resnet8", width=8, stride=1),
        "channels": 1,
        "size": (SIDE, SIDE),
        "classes": CLASSES,
        "epochs": 2,
        "batch_size": 16,
        "optim": Optim(lr=0.1),
        "views": Views(crop=(0.5, 1.0)),
    }
    return Recipe(**(fields | changed))


def parts(
    x: np.ndarray, y: np.ndarray, cuts: dict[str, tuple[int, int]], augment: Augment = still
) -> dict[str, Subset]:
    """Make a subset for each (first, last) range of rows."""
    pixels, labels = torch.from_numpy(x), torch.from_numpy(y)
    text = captions(y)
    keys = np.array([f"{row:05d}" for row in range(len(x))])
    return {
        name: Subset(pixels, torch.arange(a, b), augment, labels, text, name=name, keys=keys)
        for name, (a, b) in cuts.items()
    }


def given(method: Any, parts: dict[str, Subset], recipe: Recipe | None = None) -> MethodInputs:
    """Build the inputs of a method: the subsets that it needs, and the recipe."""
    targets = None
    if Needs.TARGETS in method.needs:
        ids = [parts[part].ids for part in ("forget", "valid")]
        own, unseen = ({space: torch.linspace(-0.1, 0.1, len(one)) for space in ("backbone", "output")} for one in ids)
        targets = MarginTargets(ids[0], own, "0" * 64, 0.1, ids[1], unseen)
    return MethodInputs(method.needs, parts, recipe, margin_targets=targets)


def linear_softmax(seed: int = 0) -> Model:
    """Make a linear classifier, logits = W x + b on raw pixels, whose gradients are known in closed form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(SIDE * SIDE, CLASSES)
    return Model(nn.Flatten(), head, CrossEntropy(), torch.zeros(1), torch.ones(1))
