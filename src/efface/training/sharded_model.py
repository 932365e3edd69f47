"""The model of a sharded training: several networks side by side, used as one.

The features of an image are those of all networks, one after the other; so are the embeddings of their projectors, each
of length one, so that the cosine of two images is the mean of the networks' cosines. The logits of classifiers are the
logarithm of the mean probabilities. The loss of an example is the mean of the networks' losses, its own shard's among
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model, Objective, Tower


@dataclass(frozen=True)
class ShardedObjective:
    """The objective of the networks, as one of them all. It trains none of them: each is trained by itself."""

    base: Objective

    @property
    def needs_labels(self) -> bool:
        """As the networks' objective."""
        return self.base.needs_labels

    @property
    def contrasts_pairs(self) -> bool:
        """False: the loss of several networks is no loss of one embedding of pairs."""
        return False

    @property
    def needs_captions(self) -> bool:
        """As the networks' objective."""
        return self.base.needs_captions

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build one of the networks."""
        return self.base.build_model(backbone, dim, classes, mean, std)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute the mean of the networks' losses for each example, [B]."""
        losses = [self.base.loss(part, batch).per_example for part in _parts_of(model)]
        return LossOutput(torch.stack(losses).mean(0))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return that mean as a function of the anchor views."""
        losses = [self.base.anchor_loss(part, batch) for part in _parts_of(model)]
        return lambda x: torch.stack([loss(x) for loss in losses]).mean(0)

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Raise an error: see :attr:`contrasts_pairs`."""
        raise EffaceError(
            "The loss of a model that was trained in shards has no parts that attract and repel.",
            remedy="Unlearn exactly with --method shards.",
        )

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Move the momentum encoders; queues stay as they are."""
        for part in _parts_of(model):
            self.base.after_step(part, None)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """As the networks' objective, on joint embeddings or logits."""
        return self.base.distance(a, b)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """As the networks' objective."""
        return self.base.corrupt_targets(batch, rng)

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Purge each network."""
        batches = list(retain)
        found = [self.base.purge(part, batches) for part in _parts_of(model)]
        return {f"shard{number} {name}": done for number, one in enumerate(found) for name, done in one.items()}


class ShardedModel(Model):
    """Several networks side by side, as the modules ``shard0``, ``shard1`` ...

    Args:
        parts: The networks, all of one recipe.

    Example:
        >>> model = replace(recipe, shards=Shards(count=4)).start(seed=0)
        >>> model.features(images).shape[1] == 4 * model.parts[0].features(images).shape[1]
        True

    """

    def __init__(self, parts: Sequence[Model]) -> None:
        nn.Module.__init__(self)
        for number, part in enumerate(parts):
            self.add_module(f"shard{number}", part)
        self.objective = ShardedObjective(parts[0].objective)
        self.channels_last = False  # each network sees to its own images
        self._shared = None

    @property
    def parts(self) -> list[Model]:
        """The networks."""
        return [module for module in self.children() if isinstance(module, Model)]

    def features(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Compute the features of all networks, [B, S * dim]."""
        _require_no_tower(tower)
        return torch.cat([part.features(x) for part in self.parts], 1)

    def forward(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Compute the combined output of images, as :meth:`project` does of their features."""
        return self.project(self.features(x, tower), tower)

    def project(self, features: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Apply each network's head to its features: joint embeddings [B, S * d], or joint logits [B, classes]."""
        _require_no_tower(tower)
        parts = self.parts
        outputs = [part.project(own) for part, own in zip(parts, features.chunk(len(parts), 1), strict=True)]
        if self.objective.needs_labels:
            return torch.stack([F.log_softmax(one, -1) for one in outputs]).logsumexp(0)
        return torch.cat([F.normalize(one, dim=-1) for one in outputs], 1)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Compute the captions' joint embeddings, [B, S * d]."""
        return torch.cat([F.normalize(part.encode_text(captions), dim=-1) for part in self.parts], 1)

    def attention(self, x: Tensor) -> Tensor:
        """Compute the mean of the networks' attention maps."""
        return torch.stack([part.attention(x) for part in self.parts]).mean(0)

    def add_momentum_encoder(self) -> None:
        """Add one to each network."""
        for part in self.parts:
            part.add_momentum_encoder()

    def update_ema(self, momentum: float) -> None:
        """Update those of all networks."""
        for part in self.parts:
            part.update_ema(momentum)

    def __getattr__(self, name: str) -> Any:
        """What the networks have: their constants, and their backbones and heads as lists."""
        if name in ("mean", "std"):
            return getattr(self.parts[0], name)
        if name in ("backbone", "head"):
            return nn.ModuleList([getattr(part, name) for part in self.parts])
        if name == "text":
            return self.parts[0].text
        if name in ("predictor", "momentum_encoder", "queue", "scale"):
            return None
        return super().__getattr__(name)

    @property
    def bf16(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the networks run under bfloat16 autocast."""
        return self.parts[0].bf16

    @bf16.setter
    def bf16(self, value: bool) -> None:
        for part in self.parts:
            part.bf16 = value


class Combination(StrEnum):
    """How the embeddings of several networks become one."""

    CONCAT = "concat"
    """Side by side, S times as wide."""
    MEAN = "mean"
    """Their mean, each scaled to length one; as wide as that of one network."""


def combine_parts(z: Tensor, model: Model, combination: Combination) -> Tensor:
    """Combine the embeddings of a model's networks.

    Args:
        z: Embeddings by the model, [B, S * d].
        model: The model; one network has nothing to combine.
        combination: How.

    Raises:
        EffaceError: An average is asked for, and the model is a single network.

    """
    if combination is Combination.CONCAT:
        return z
    if not isinstance(model, ShardedModel):
        raise EffaceError(
            "The embedding of a single network cannot be averaged.",
            "Only a model that was trained in shards has several.",
            "Leave out --set combine=mean.",
        )
    return average_parts(z, len(model.parts))


def average_parts(z: Tensor, count: int) -> Tensor:
    """Average the embeddings of several networks, each scaled to length one: [B, S * d] to [B, d].

    Networks that were trained apart have no common axes, so that an average keeps less than all of them side by side.
    """
    return torch.stack([F.normalize(own, dim=-1) for own in z.chunk(count, 1)]).mean(0)


def _parts_of(model: Model) -> list[Model]:
    if not isinstance(model, ShardedModel):
        raise TypeError(f"The objective of sharded training was given a {type(model).__name__}.")
    return model.parts


def _require_no_tower(tower: Model | Tower | None) -> None:
    if tower is not None:
        raise TypeError("A model of several networks has no tower of its own: ask one of its parts.")
