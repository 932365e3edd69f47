"""Shards: retrain the shards that had a forgotten example, each from its last stage that never saw one.

    θ_r = fit(recipe.start(seed), R, recipe), with every stage read whose examples are all in R

R: retained examples. A stage is known by the digest of all that its weights depend on (recipe, seed, its examples, the
stages before it), so reading it gives the weights that training it would give. The result is therefore that of a
training from the beginning on R alone: on the CPU, with the same number of threads and versions, bit for bit.

Source      Bourtoule et al., Machine Unlearning, S&P 2021.
Departures  shard and slice of an example follow from its key or group and the seed, not from the order of the data:
            otherwise deleting one example would move others. Where no stages were kept, all are trained.
Tests cover a stage that saw a forgotten example; other examples that change their shard; a seed other than the
            original's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.training.loop import Run, fit
from efface.training.model import Model
from efface.training.random_start import require_random_start
from efface.unlearning.protocol import MethodInputs, Needs


@dataclass(frozen=True, kw_only=True)
class RetrainShards:
    """Retraining of single shards: it has no settings, because the recipe has them all."""

    needs: ClassVar[Needs] = Needs.RETAIN | Needs.RECIPE | Needs.SHARDS
    exact: ClassVar[bool] = True

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Train from a fresh start, and read what was kept of the stages; ``model`` is not used."""
        require_random_start(inputs.recipe)
        return fit(inputs.recipe.start(run.seed).to(run.device), inputs.retain, inputs.recipe, run)
