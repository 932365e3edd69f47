"""The recipe: everything that determines a training run but data and seed, so that retraining repeats it exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, Positive, Real, Whole
from efface.training.augment import Views
from efface.training.model import Model, Objective
from efface.training.networks.backbones import Backbone
from efface.training.optim import Optim
from efface.training.sharded_model import ShardedModel
from efface.training.shards import Shards, derive_seed


def require_batch_size(objective: Objective, size: int | None, name: str) -> None:
    """Raise an error if the loss of an objective cannot be computed on so few examples; ``name``: of the setting."""
    least = getattr(objective, "smallest_batch", 1)
    if size is not None and size < least:
        raise EffaceError(
            f"{name} cannot be {size} with {type(objective).__name__}.",
            "Its loss compares the examples of a batch with each other, or normalizes over them.",
            f"Set it to {least} or more; more is better.",
        )


class ColorOrder(StrEnum):
    """The order of the colors that a network is given."""

    RGB = "rgb"
    BGR = "bgr"


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """How a checkpoint was trained; enough to train it again on other examples.

    Example:
        >>> recipe = Recipe(objective=SimClr(), epochs=200)
        >>> model = fit(recipe.start(seed=0), train, recipe, Run(seed=0))

    """

    objective: Objective
    backbone: Backbone = field(default_factory=Backbone)
    channels: Count = 3
    size: tuple[Count, Count] = (32, 32)
    """Height and width of the images."""
    classes: Whole = 0
    epochs: Count = 100
    batch_size: Count = 256
    optim: Optim = field(default_factory=Optim)
    views: Views = field(default_factory=Views)
    mean: Real | tuple[Real, ...] = 0.5
    """Subtracted from images in [0, 1], one number or one per channel; constants, so that they hold no information
    about the data."""
    std: Positive | tuple[Positive, ...] = 0.25
    """Images are divided by it after the mean is subtracted, one number or one per channel."""
    shards: Shards | None = None
    """Train several networks on examples of their own, so that a few can be deleted exactly; None: one network."""
    order: ColorOrder = ColorOrder.RGB
    """``rgb``, or ``bgr`` for a network that is given blue, green, red, as OpenCV reads pictures; mean and standard
    deviation are in the network's order."""
    micro_batch: Count | None = None
    """Images that go through the network at once, to save memory; None: the whole batch. The gradient is that of the
    whole batch, except that BatchNorm normalizes over so many images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_batch_size(self.objective, self.batch_size, "recipe.batch_size")
        if self.order is ColorOrder.BGR and self.channels != 3:
            raise EffaceError(
                f"recipe.order cannot be bgr: the images have {self.channels} channels.", remedy="Leave it out."
            )
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) != self.channels:
                raise EffaceError(
                    f"recipe.{name} has {len(value)} numbers, and the images have {self.channels} channels.",
                    remedy="Give one number, or one for each channel.",
                )

    def start(self, seed: int) -> Model:
        """Build an untrained model; its weights depend on recipe and seed alone, not on the global generator."""
        if self.shards is not None:
            alone = replace(self, shards=None)
            return ShardedModel([alone.start(derive_seed(seed, shard)) for shard in range(self.shards.count)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = self.backbone.build(self.channels, self.size)
            width = int(getattr(backbone, "dim"))  # noqa: B009  (every backbone has it, but its type is nn.Module)
            mean, std = (torch.tensor(value).expand(self.channels).clone() for value in (self.mean, self.std))
            model = self.objective.build_model(backbone, width, self.classes, mean, std)
        model.reversed_colors = self.order is ColorOrder.BGR
        model.micro_batch = self.micro_batch
        if model.channels_last:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return model
