"""CLIP: an image and its caption agree, against every other caption and every other image of the batch.

    ℓ(θ; x_i) = ½ [ -s·u_i·v_i + log Σ_j e^{s·u_i·v_j} ] + ½ [ -s·u_i·v_i + log Σ_j e^{s·u_j·v_i} ]

u_i: normalized embedding of a random view of image i, v_i: of its caption; j runs over the batch, i included;
s = e^scale is learned with the rest, and held at or below ``most`` after every step.

Source      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
            arXiv 2103.00020.
Departures  one device: the batch is all there is to compare with. Towers and batches are as small as one likes.
Tests kill  one direction only; a scale that is not learned, or has no bound; a mean taken too early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.networks.text import TextEncoder
from efface.training.objectives.shared import cosine_distance, normalize_rows, random_derangement


class Projection(nn.Module):
    """A linear map without bias, named as open_clip has it."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(dim, out) / math.sqrt(dim))

    def forward(self, features: Tensor) -> Tensor:
        """[B, dim] -> [B, out]."""
        return features @ self.proj


def clip_repulsion(logits: Tensor) -> Tensor:
    """½ [ log Σ_j e^{logits_ij} + log Σ_j e^{logits_ji} ] of square logits [images, captions]; per example, [B]."""
    return (logits.logsumexp(1) + logits.logsumexp(0)) / 2


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A projection of each tower into one space, a text tower and a scale; the state is the weights alone."""

    needs_labels: ClassVar[bool] = False
    contrasts_pairs: ClassVar[bool] = True
    needs_captions: ClassVar[bool] = True
    temperature: float = 0.07
    """1/s at the start."""
    most: float = 100.0
    """Largest s."""
    dim: int = 128
    """Width of the space that images and captions share."""
    text: TextEncoder = field(default_factory=TextEncoder)
    """The text tower."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A projection on the backbone, a text tower beside it, and the scale."""
        model = Model(backbone, Projection(dim, self.dim), self, mean, std)
        model.text = self.text.build(self.dim)
        model.scale = nn.Parameter(torch.tensor(math.log(1 / self.temperature)))
        return model

    def pairs(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalized embeddings of the first views and of the captions, [B, d] each."""
        return normalize_rows(model(batch.view(0))), normalize_rows(model.encode_text(batch.captions()))

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Both directions averaged, [B]."""
        u, v = self.pairs(model, batch)
        logits = get_logit_scale(model) * u @ v.T
        return LossOutput(clip_repulsion(logits) - logits.diagonal())

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Both directions as a function of the image; captions, other images and the scale are constants.

        So a gradient constraint is met by the image tower, and not by turning the temperature.
        """
        with torch.no_grad():
            u, v = self.pairs(model, batch)
            s = get_logit_scale(model)
            others = (s * v @ u.T).fill_diagonal_(-torch.inf)

        def per_example(x: Tensor) -> Tensor:
            logits = s * normalize_rows(model(x)) @ v.T
            own = logits.diagonal()
            back = torch.cat([others, own[:, None]], -1).logsumexp(-1)
            return (logits.logsumexp(-1) + back) / 2 - own

        return per_example

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Anchors are images, partners captions; both directions averaged."""
        u = normalize_rows(model(batch.view(0)))
        v, further = normalize_rows(model.encode_text([*batch.captions(), *others.captions()])).tensor_split(
            [len(batch)]
        )
        logits = get_logit_scale(model) * u @ v.T
        return ContrastiveTerms(u, logits.diagonal(), clip_repulsion(logits), further)

    @torch.no_grad()
    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """The scale is held at or below ``most``."""
        if model.scale is not None:
            model.scale.clamp_(max=math.log(self.most))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - cosine of the images, and of the captions, averaged, [B]."""
        (image, caption), (other_image, other_caption) = a.chunk(2, -1), b.chunk(2, -1)
        return (cosine_distance(image, other_image) + cosine_distance(caption, other_caption)) / 2

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Another image's caption."""
        captions = batch.captions()
        return batch.copy_with(text=[captions[int(row)] for row in random_derangement(len(batch), rng)])

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """There is neither twin nor queue, and the tokenizer knows no caption."""
        return {}


def get_logit_scale(model: Model) -> Tensor:
    """s of the model; CLIP's models always have one."""
    if model.scale is None:
        raise ValueError("a CLIP model without a scale")
    return model.scale.exp()
