"""CLIP: an image and its caption agree, in contrast to every other caption and image in the batch.

    ℓ(θ; x_i) = ½ [ -s·u_i·v_i + log Σ_j e^{s·u_i·v_j} ] + ½ [ -s·u_i·v_i + log Σ_j e^{s·u_j·v_i} ]

u_i: normalized embedding of a random view of image i, v_i: of its caption; j runs over the batch, i included;
s = e^scale is learned, and clipped to at most ``most`` after every step.

Source      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
            arXiv 2103.00020.
Departures  none but size: towers and batches may be small; with several processes a batch is that of all of them.
Tests cover one direction only; a scale that is not learned, or is not bounded; a mean taken too early.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from efface.schema import LayerWidth, Positive
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.networks.text import TextEncoder
from efface.training.objectives.shared import BaseObjective, cosine_distance, normalize_rows, random_derangement


class Projection(nn.Module):
    """A linear map without bias, with the parameter name of open_clip."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(dim, out) / math.sqrt(dim))

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, dim] to embeddings [B, out]."""
        return features @ self.proj


def clip_repulsion(logits: Tensor) -> Tensor:
    """Compute ½ [ log Σ_j e^{l_ij} + log Σ_j e^{l_ji} ] of square logits l [images, captions]; per example, [B]."""
    return (logits.logsumexp(1) + logits.logsumexp(0)) / 2


@dataclass(frozen=True, kw_only=True)
class Clip(BaseObjective):
    """CLIP with a linear projection of the image tower, a text tower and a learned scale."""

    contrasts_pairs: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = True
    temperature: Positive = 0.07
    """Initial value of 1/s."""
    most: Positive = 100.0
    """Upper bound of s."""
    dim: LayerWidth = 128
    """Width of the joint embedding space of images and captions."""
    linear: bool = False
    """Whether the projection of the images is a linear layer, as in transformers, and no matrix, as in open_clip: the
    same map, stored the other way round."""
    text: TextEncoder = field(default_factory=TextEncoder)
    """The text tower."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build a model with a projection on the backbone, a text tower and the scale."""
        projection = nn.Linear(dim, self.dim, bias=False) if self.linear else Projection(dim, self.dim)
        model = Model(backbone, projection, self, mean, std)
        model.text = self.text.build(self.dim)
        model.scale = nn.Parameter(torch.tensor(math.log(1 / self.temperature)))
        return model

    def pairs(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute normalized embeddings of the first views and of the captions, [B, d] each."""
        return normalize_rows(model(batch.view(0))), normalize_rows(model.encode_text(batch.captions()))

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute the loss of both directions, averaged, [B]."""
        u, v = self.pairs(model, batch)
        logits = get_logit_scale(model) * u @ v.T
        return LossOutput(clip_repulsion(logits) - logits.diagonal())

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Vary the image, in both directions; captions, other images and the scale are constants.

        With a constant scale, a gradient constraint changes the image tower rather than the temperature.
        """
        with torch.no_grad():
            u, v = self.pairs(model, batch)
            s = get_logit_scale(model)
            others = (s * v @ u.T).fill_diagonal_(-torch.inf)

        def per_example(x: Tensor) -> Tensor:
            logits = s * normalize_rows(model(x)) @ v.T
            own = logits.diagonal()
            backward = torch.cat([others, own[:, None]], -1).logsumexp(-1)
            return (logits.logsumexp(-1) + backward) / 2 - own

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Take images as anchors and captions as partners; both directions averaged."""
        u = normalize_rows(model(batch.view(0)))
        v, partners = normalize_rows(model.encode_text([*batch.captions(), *others.captions()])).tensor_split(
            [len(batch)]
        )
        logits = get_logit_scale(model) * u @ v.T
        return ContrastiveTerms(u, logits.diagonal(), clip_repulsion(logits), partners)

    @torch.no_grad()
    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Clip the scale to at most ``most``."""
        if model.scale is not None:
            model.scale.clamp_(max=math.log(self.most))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute 1 - cosine of the images and of the captions, averaged, [B]."""
        (image, caption), (other_image, other_caption) = a.chunk(2, -1), b.chunk(2, -1)
        return (cosine_distance(image, other_image) + cosine_distance(caption, other_caption)) / 2

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Take the caption of another image."""
        captions = batch.captions()
        return batch.copy_with(text=[captions[int(row)] for row in random_derangement(len(batch), rng)])


def get_logit_scale(model: Model) -> Tensor:
    """Return s of the model; every CLIP model has one."""
    if model.scale is None:
        raise ValueError("a CLIP model without a scale")
    return model.scale.exp()
