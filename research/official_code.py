"""Official code beside ours: small networks and batches, differences of losses and steps, and imports in isolation.

Used by :mod:`research.against_official`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn

from efface.training.batch import Batch
from efface.training.loop import LossTermsFunction, Run, train_step
from efface.training.model import Model
from efface.training.optim import Optim, Schedule

SIDE, CLASSES, RATE = 8, 3, 0.05
ALWAYS = (
    *("lightning", "lightning.pytorch", "torchmetrics", "torchmetrics.classification"),
    *("pruner", "imagenet", "arg_parser", "dataset", "trainer", "models"),
)
UNNEEDED = (
    *ALWAYS,
    *("lightning.pytorch.loggers", "lightning.pytorch.callbacks", "wandb", "matplotlib", "matplotlib.pyplot"),
    *("seaborn", "tqdm", "lmdb", "pyarrow", "pandas", "datasets", "einops"),
)
"""Modules that official code imports and no comparison needs."""
Row = dict[str, Any]


# ---- what is compared ----


def images(count: int, seed: int) -> Tensor:
    """Noise images, [count, 1, SIDE, SIDE]."""
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def batch_of(count: int, seed: int, views: dict[int, Tensor] | None = None) -> Batch:
    """Noise images with labels, whose views are noise as well, or those given."""
    clean = images(count, seed)
    return Batch(
        clean,
        lambda number: (views or {}).get(number, images(count, 100 * seed + number + 1)),
        torch.arange(count),
        torch.arange(count) % CLASSES,
        [f"picture {row}" for row in range(count)],
    )


def network(objective: Any, seed: int = 0) -> Model:
    """A small smooth network without BatchNorm in its backbone, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 16), nn.Tanh())
        return objective.build_model(backbone, 16, CLASSES, torch.zeros(1), torch.ones(1)).eval()


def differ(ours: Tensor, theirs: Tensor, model: Model) -> Row:
    """Difference of two losses, and the largest one of their gradients over the largest gradient."""
    weights = model.trainable_parameters()
    both = [torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True) for loss in (ours, theirs)]
    parts = [
        (torch.zeros_like(w) if a is None else a, torch.zeros_like(w) if b is None else b)
        for w, a, b in zip(weights, *both, strict=True)
    ]
    scale = max(float(b.abs().max()) for _, b in parts)
    return {
        "loss": abs(float(ours.detach()) - float(theirs.detach())) / max(1.0, abs(float(theirs.detach()))),
        "gradient": max(float((a - b).abs().max()) for a, b in parts) / scale,
    }


def step(model: Model, batch: Batch, terms: LossTermsFunction, only: Any = None) -> list[Tensor]:
    """The weights after one of our optimizer steps: SGD with momentum, without weight decay."""
    optim = Optim(lr=RATE, momentum=0.9, weight_decay=0.0, schedule=Schedule.CONSTANT).build(model, 1)
    train_step(model, batch, terms, optim, Run(), only=only)
    return [weight.detach().clone() for weight in model.trainable_parameters()]


def apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of two lists of weights, over the largest weight."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)


# ---- importing official code ----


@contextlib.contextmanager
def official(folder: Path) -> Iterator[None]:
    """Make the modules of a repository importable, and forget them afterwards: several have the same names."""
    before, loaded = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    stubs = {name: MagicMock() for name in UNNEEDED if name in ALWAYS or not loadable(name)}
    stubs["lightning"].LightningModule = nn.Module
    try:
        with patch.dict(sys.modules, stubs), patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self):
            yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - loaded:
            place = getattr(sys.modules[name], "__file__", None)
            if place and Path(place).is_relative_to(folder):
                del sys.modules[name]


def loadable(name: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def load(name: str) -> Any:
    """Import a module of the repository that is open."""
    return importlib.import_module(name)


class Part(nn.Module):
    """A function as a module, such as our network's features inside an official model.

    Its one parameter is not used: some code averages the parameters of two modules, and needs at least one.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.unused = function, nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


# ---- defaults ----


def option_default(file: Path, option: str) -> Any:
    """The last default of an ``add_argument`` call in a file, read without running it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and any(isinstance(a, ast.Constant) and a.value == option for a in node.args):
            found += [(node.lineno, keyword.value) for keyword in node.keywords if keyword.arg == "default"]
    if not found:
        raise LookupError(f"{file.name} has no default of {option}")
    return ast.literal_eval(max(found, key=lambda one: one[0])[1])


def assigned_value(file: Path, name: str) -> float:
    """The first number that a notebook or script assigns to ``name``."""
    found = re.search(rf"{re.escape(name)} = ([0-9.e-]+)", file.read_text(encoding="utf-8"))
    if found is None:
        raise LookupError(f"{file.name} assigns nothing to {name}")
    return float(found.group(1))
