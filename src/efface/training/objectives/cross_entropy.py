"""Cross-entropy: a classifier, trained with labels.

    ℓ(θ; x, y) = -log softmax(h(f(t x)))_y

h: the linear head; t: one random view. Disagreement of two classifiers is Hinton's
T² · KL(softmax(a/T) ‖ softmax(b/T)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.model import Model
from efface.training.objectives.shared import no_pairs_error


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """A linear head over the classes; the state is the weights alone."""

    needs_labels: ClassVar[bool] = True
    contrasts_pairs: ClassVar[bool] = False
    needs_captions: ClassVar[bool] = False
    temperature: float = 1.0
    """Temperature T of the distance between two classifiers; the loss itself has none."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """A linear head of ``classes`` outputs."""
        if classes < 2:
            raise EffaceError(
                "cross_entropy needs labels of at least two classes.",
                f"This data has {classes}.",
                "Use data with labels, or a label-free objective: simclr, moco, byol.",
            )
        return Model(backbone, nn.Linear(dim, classes), self, mean, std)

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Cross-entropy of the first view, [B]."""
        return LossOutput(F.cross_entropy(model(batch.view(0)), batch.labels(), reduction="none"))

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The loss of each image is a function of that image alone."""
        return lambda x: F.cross_entropy(model(x), batch.labels(), reduction="none")

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """A classifier compares no pairs: an error."""
        raise no_pairs_error("A classifier")

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """There is neither twin nor queue."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """T² · KL(softmax(a/T) ‖ softmax(b/T)), [B] >= 0."""
        log_a, log_b = F.log_softmax(a / self.temperature, -1), F.log_softmax(b / self.temperature, -1)
        return self.temperature**2 * (log_a.exp() * (log_a - log_b)).sum(-1)

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Each label becomes another one, uniformly among the labels of the batch that differ from it.

        An example is left as it is only where the whole batch has one label.
        """
        y = batch.labels()
        pool = y.unique()
        if len(pool) < 2:
            return batch
        place = torch.searchsorted(pool, y)
        shift = torch.randint(1, len(pool), (len(y),), generator=rng).to(y.device)
        return batch.copy_with(y=pool[(place + shift) % len(pool)])

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """There is neither twin nor queue."""
        return {}
