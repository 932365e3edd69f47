"""Retraining: the original's own recipe, from a fresh start, on the retained examples alone.

    θ_r = fit(recipe.start(seed), R, recipe)

R: retained examples. The result never saw F: it is the oracle that everything else is compared with.

Source      the definition of exact unlearning; see Cao and Yang, Towards Making Systems Forget, 2015.
Departures  none. With the original's seed and an unchanged set it gives the original back, bit for bit.
Tests kill  another recipe than the original's; a start from the trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.training.loop import Run, fit
from efface.training.model import Model
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """The recipe has all the numbers; there is nothing to choose."""

    needs: ClassVar[Needs] = Needs.RETAIN | Needs.RECIPE
    exact: ClassVar[bool] = True

    def unlearn(self, model: Model, given: MethodInputs, run: Run) -> Model:
        """Train anew; of the model it is given nothing is used."""
        return fit(given.recipe.start(run.seed).to(run.device), given.retain, given.recipe, run)
