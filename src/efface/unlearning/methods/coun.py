"""CoUn: fine-tune with a contrastive term, so that forgotten images are drawn along with the retained ones.

    L(θ) = mean_{x∈R} [ ℓ(θ; x) + λ · ( ℓ(z → Z') + ℓ(z' → Z) ) ]

R: retained examples; ℓ: the objective that the checkpoint was trained with; z, z': normalized features of two views,
Z, Z' those of the batch: see :mod:`efface.training.objectives.with_contrast`. Any other method can take the place of
fine-tuning (``base``): the term is then added to the loss of retained examples in that method.

Source      Khalil, Setayesh and Li, CoUn: Empowering Machine Unlearning via Contrastive Learning, 2025,
            arXiv 2509.16391.
Departures  λ is 1 where the paper tunes it in [0.1, 6]; the base method's own rate falls to 0, not to 1e-4; encoders
            can be fine-tuned with it too. In mixed batches the term is taken over the retained rows alone.
Tests cover a term over forgotten examples; an objective that stays wrapped; λ = 0 that is not the base method.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import NotNegative, Positive
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives.with_contrast import WithContrast
from efface.unlearning.methods.finetune import Finetune
from efface.unlearning.protocol import Method, MethodInputs, Needs, RequestSizes, count_planned_steps


@dataclass(frozen=True, kw_only=True)
class Coun(Settings):
    """CoUn: the weight and temperature of its term, and the method that it is added to."""

    needs: ClassVar[Needs] = Needs.RETAIN
    exact: ClassVar[bool] = False
    base: Method = field(default_factory=Finetune)
    """The method whose loss gets the term; what it needs, this needs too."""
    weight: NotNegative = 1.0
    """Weight λ of the contrastive term; 0 is the base method."""
    tau: Positive = 0.1
    """Temperature τ of the term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if Needs.RECIPE in self.base.needs:
            raise EffaceError(
                f"coun cannot run on {type(self.base).__name__}: it trains a fresh model by the original's recipe.",
                "So there is no loss that the contrastive term can be added to.",
                "Choose another method.base, such as finetune or neggrad.",
            )
        object.__setattr__(self, "needs", type(self).needs | self.base.needs)

    def count_steps(self, sizes: RequestSizes) -> int | None:
        """As many as the base method takes."""
        return count_planned_steps(self.base, sizes)

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Run the base method on a model whose loss has the term, then remove the term again."""
        retained = torch.zeros(len(inputs.retain.x), dtype=torch.bool)
        retained[inputs.retain.ids] = True
        plain, means = model.objective, list[Tensor]()
        model.objective = WithContrast(plain, self.weight, self.tau, retained, lambda term: means.append(term.mean()))
        try:
            model = self.base.unlearn(model, replace(inputs, needs=self.base.needs), run)
        finally:
            model.objective = plain
        if means:
            run.log_values("coun", {"first": float(means[0]), "last": float(means[-1])}, losses=len(means))
        elif self.weight:
            raise EffaceError(
                f"The term of coun was never used: {type(self.base).__name__} took no step with it.",
                "It takes no step at all, or no step that reads the loss of retained examples.",
                "Choose another method.base, such as finetune or neggrad, or run the method by itself.",
            )
        return model
