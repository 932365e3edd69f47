"""Averaged weights: the mean of the weights of the last steps (Polyak and Juditsky 1992), in place of the last alone.

A penalty that draws to one point from both sides overshoots it again and again while steps are large; where a run ends
is where that swing happens to be. The mean over the last half lies in its middle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efface.training.model import Model
from efface.training.running_statistics import RUNNING_BUFFERS, layers_with_statistics


class WeightAverage:
    """The mean of a model's weights, and of the running statistics of BatchNorm, over the steps that were added.

    A queue of keys is not averaged, for it belongs to the last step.

    Args:
        model: The model that is trained.

    """

    def __init__(self, model: Model) -> None:
        self.model, self.count, self.means = model, 0, list[Tensor]()

    @torch.no_grad()
    def add(self) -> None:
        """Add the weights as they are now."""
        self.count += 1
        if self.count == 1:
            self.means = [value.detach().clone() for value in self.averaged()]
        for mean, value in zip(self.means, self.averaged(), strict=True):
            mean.lerp_(value, 1 / self.count)

    @torch.no_grad()
    def take(self) -> None:
        """Set the model to the mean; without anything added it stays."""
        if self.count:
            for value, mean in zip(self.averaged(), self.means, strict=True):
                value.copy_(mean)

    def averaged(self) -> list[Tensor]:
        """What is averaged: all weights, then the mean and the variance of each BatchNorm."""
        norms = layers_with_statistics(self.model)
        return [*self.model.parameters(), *(one.get_buffer(name) for one in norms for name in RUNNING_BUFFERS)]
