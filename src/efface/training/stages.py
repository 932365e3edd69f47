"""The stages of a sharded training, each with an address: a digest of everything that its weights depend on.

Two stages with one address train the same weights. So a deletion is a training from the beginning without the deleted
examples, in which every stage whose address is unchanged is read from where it was kept; the first stage of a shard
that had one of them in its slices has another address, and so have all that follow it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from efface import config
from efface.data.dataset import quote_first
from efface.errors import EffaceError
from efface.training.batch import Subset
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe
from efface.training.shards import Shards, ShardUnit, derive_seed

ADDRESS_FORMAT = 1
CONTENT_BYTES = 16


@dataclass(frozen=True, eq=False)
class Stage:
    """One training of one shard: from the weights after the stage before, on all slices so far."""

    shard: int
    number: int
    """Number of its last slice, from 0."""
    subset: Subset
    """The examples of its slices."""
    recipe: Recipe
    """The recipe of one network, with the epochs of this stage."""
    seed: int
    address: str
    """SHA-256 of the recipe, the seeds, the precision, the examples of this stage and the address before it."""

    @property
    def name(self) -> str:
        """What its kept weights are called: places first, so that a folder of them is readable."""
        return f"shard{self.shard:03d}-slice{self.number:02d}-{self.address[:16]}"

    @property
    def trains(self) -> bool:
        """Whether there are enough examples for a step; otherwise the weights stay as they were."""
        return len(self.subset) >= getattr(self.recipe.objective, "smallest_batch", 1)


def plan_stages(subset: Subset, recipe: Recipe, seed: int, *, bf16: bool = False) -> Iterator[Stage]:
    """Yield the stages of a sharded training, shard by shard.

    Args:
        subset: The examples to train on, with their keys.
        recipe: The recipe, with ``shards``.
        seed: The seed of the training.
        bf16: Whether the networks run under bfloat16 autocast.

    Raises:
        EffaceError: The examples have no keys, or no groups where these are kept together.

    """
    shards = _shards_of(recipe)
    if subset.keys is None:
        raise EffaceError(
            "Sharded training needs the keys of the examples: they decide in which shard each belongs.",
            remedy="Make the subset with Subset.of(data, ...).",
        )
    ids = subset.ids.numpy()
    group = None if subset.group is None else subset.group[ids]
    shard, part = shards.assign(subset.keys[ids], group, seed)
    contents = digest_examples(subset)
    alone = replace(recipe, shards=None, epochs=shards.epochs(recipe.epochs))
    settings = config.dump(alone, CHOICES)
    if settings["micro_batch"] is None:
        del settings["micro_batch"]  # younger than the addresses of kept stages
    rules = {"format": ADDRESS_FORMAT, "recipe": settings, "bf16": bf16}
    for number in range(shards.count):
        address = ""
        for last in range(shards.slices):
            rows = np.flatnonzero((shard == number) & (part <= last))
            own = derive_seed(seed, number, last)
            facts: dict[str, Any] = {"start": derive_seed(seed, number), "seed": own, "before": address} | rules
            sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
            sha.update(b"".join(contents[row] for row in rows))
            address = sha.hexdigest()
            yield Stage(number, last, replace(subset, ids=torch.from_numpy(ids[rows])), alone, own, address)


def digest_examples(subset: Subset) -> list[bytes]:
    """Digest the key, pixels, label and caption of each example, in the order of the subset."""
    found: list[bytes] = []
    for row in subset.ids.tolist():
        label = None if subset.y is None else int(subset.y[row])
        text = None if subset.text is None else subset.text[row]
        key = None if subset.keys is None else str(subset.keys[row])
        sha = hashlib.blake2b(repr((key, label, text)).encode("utf-8", "surrogatepass"), digest_size=CONTENT_BYTES)
        sha.update(subset.x[row].contiguous().numpy().data)
        found.append(sha.digest())
    return found


def require_filled_shards(keys: np.ndarray, group: np.ndarray | None, recipe: Recipe, seed: int) -> None:
    """Raise unless every shard has enough examples in its first slice for a step of its training.

    Args:
        keys: Keys of the training examples, str [n].
        group: Their groups, or None.
        recipe: The recipe, with ``shards``.
        seed: The seed of the training.

    """
    shards = _shards_of(recipe)
    shard, part = shards.assign(keys, group, seed)
    counts = np.bincount(shard[part == 0], minlength=shards.count)
    least = getattr(recipe.objective, "smallest_batch", 1)
    few = [str(number) for number in np.flatnonzero(counts < least)]
    if few:
        what = "groups" if shards.unit is ShardUnit.GROUP and group is not None else "examples"
        units = len(np.unique(group)) if shards.unit is ShardUnit.GROUP and group is not None else len(keys)
        raise EffaceError(
            f"{len(few)} of {shards.count} shards would begin with fewer than {least} examples: {quote_first(few)}.",
            f"There are {units} {what} for {shards.count} shards of {shards.slices} slices.",
            "Set fewer shards (--shards) or a smaller recipe.shards.slices.",
        )


def estimate_steps(recipe: Recipe, count: int) -> int:
    """About how many optimizer steps a training takes on so many examples; exact without shards."""
    if recipe.shards is None:
        return recipe.epochs * -(-count // recipe.batch_size)
    parts, slices = recipe.shards.count, recipe.shards.slices
    sizes = [count / parts * (last + 1) / slices for last in range(slices)]
    epochs = recipe.shards.epochs(recipe.epochs)
    return parts * epochs * sum(int(-(-size // recipe.batch_size)) for size in sizes)


def _shards_of(recipe: Recipe) -> Shards:
    if recipe.shards is None:
        raise EffaceError("This recipe has no shards.", remedy="Train with --shards.")
    return recipe.shards
