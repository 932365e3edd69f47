"""Retraining: the original's own recipe, from a fresh start, on the retained examples alone.

    θ_r = fit(recipe.start(seed), R, recipe)

R: retained examples. The result never saw F: it is the retrained reference that all others are compared with.

Source      the definition of exact unlearning; see Cao and Yang, Towards Making Systems Forget, 2015.
Departures  none. With the original's seed and an unchanged set it reproduces the original bit for bit.
Tests cover another recipe than the original's; a start from the trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.training.loop import Run, fit
from efface.training.model import Model
from efface.training.random_start import require_random_start
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Retraining: it has no settings, because the recipe has them all."""

    needs: ClassVar[Needs] = Needs.RETAIN | Needs.RECIPE
    exact: ClassVar[bool] = True

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Train from a fresh start; ``model`` is not used."""
        require_random_start(inputs.recipe)
        return fit(inputs.recipe.start(run.seed).to(run.device), inputs.retain, inputs.recipe, run)
