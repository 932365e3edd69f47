"""The recipe: all that a training run is made with, so that retraining repeats it exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from efface.errors import EffaceError
from efface.training.augment import Views
from efface.training.model import Model, Objective
from efface.training.networks.backbones import Backbone
from efface.training.optim import Optim


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint was trained: enough to train it again on other examples."""

    objective: Objective
    backbone: Backbone = field(default_factory=Backbone)
    channels: int = 3
    size: tuple[int, int] = (32, 32)
    """Height and width of the images."""
    classes: int = 0
    epochs: int = 100
    batch_size: int = 256
    optim: Optim = field(default_factory=Optim)
    views: Views = field(default_factory=Views)
    mean: float | tuple[float, ...] = 0.5
    """Subtracted from images in [0, 1], one number or one per channel; a constant, so that nothing about the data
    hides in it."""
    std: float | tuple[float, ...] = 0.25
    """Divides images after the mean is gone."""

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != self.channels:
                raise EffaceError(
                    f"recipe.{name} has {len(value)} numbers, and the images have {self.channels} channels.",
                    remedy="Give one number, or one for each channel.",
                )

    def start(self, seed: int) -> Model:
        """A fresh, untrained model: the same weights for the same seed, whatever was drawn before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = self.backbone.build(self.channels, self.size)
            width = int(getattr(backbone, "dim"))  # noqa: B009  (every backbone has it; nn.Module hides it)
            mean, std = (torch.tensor(value).expand(self.channels).clone() for value in (self.mean, self.std))
            model = self.objective.build_model(backbone, width, self.classes, mean, std)
        if model.channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return model
