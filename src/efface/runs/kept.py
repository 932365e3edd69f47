"""Where the runs of a sharded training keep their stages, and which of an earlier run a request may start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from efface.runs.run import Common
from efface.training.checkpoint import Checkpoint
from efface.training.kept_stages import STAGE_FOLDER, KeptStages, read_index
from efface.training.recipe import Recipe
from efface.unlearning.methods import Method, RetrainShards

SHARDS = "shards"
"""The entry of a checkpoint's ``fixed`` that binds the index of its kept stages."""


def open_kept_stages(
    folder: Path, recipe: Recipe, start: Path | None = None, checkpoint: Checkpoint | None = None
) -> KeptStages | None:
    """Open the store of a run that is being made; None if the recipe has no shards.

    Args:
        folder: The unfinished run folder.
        recipe: The recipe.
        start: The run folder whose kept stages may be taken over; None: all stages are trained.
        checkpoint: Its checkpoint.

    Raises:
        EffaceError: The kept stages of ``start`` are missing or are not those that it was made with.

    """
    if recipe.shards is None:
        return None
    if start is None or checkpoint is None:
        return KeptStages(folder / STAGE_FOLDER)
    digest = checkpoint.fixed.get(SHARDS)
    if not isinstance(digest, str):
        raise EffaceError(
            f"{start} has no kept stages to start from.",
            "It was not made by pretrain --shards or from such a run.",
            "Unlearn with --method retrain, which trains all shards again.",
        )
    return KeptStages(folder / STAGE_FOLDER, (Path(start) / STAGE_FOLDER, read_index(start, digest)))


def with_own_seed(common: Common, method: Method | None, checkpoint: Checkpoint) -> Common:
    """The settings of a request: retraining single shards repeats the original's seed.

    Raises:
        EffaceError: Another seed was asked for.

    """
    if not isinstance(method, RetrainShards):
        return common
    if common.seed not in (0, checkpoint.seed):
        raise EffaceError(
            f"Shards cannot be retrained with the seed {common.seed}.",
            f"The kept stages were trained with {checkpoint.seed}, and with another seed none could be used.",
            "Leave --seed out; with --method retrain any seed trains all shards again.",
        )
    return replace(common, seed=checkpoint.seed)


def bind_stages(store: KeptStages | None) -> dict[str, Any]:
    """Write the index of the kept stages, and return the entry of ``fixed`` that binds it."""
    return {} if store is None else {SHARDS: store.write_index()}
