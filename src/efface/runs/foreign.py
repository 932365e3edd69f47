"""Start a run from another library's checkpoint, and write the result back in its layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from efface import config
from efface.data.dataset import Data
from efface.data.split import Split
from efface.interop import checkpoint_file
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.containers import weights_file
from efface.interop.export_weights import export_checkpoint
from efface.interop.import_weights import import_model
from efface.interop.recipe import infer_recipe
from efface.interop.sanity_check import compare_with_random, require_better_than_random
from efface.runs.run import Common, Sizes, load_data
from efface.training import loop
from efface.training.batch import Subset
from efface.training.checkpoint import META, Checkpoint
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.objectives import CHOICES
from efface.training.recipe import Recipe

FOREIGN = {"data", "split", "objective", "recipe", "trust_pickle", "check", "fresh_head"}
"""Settings of unlearning that only a foreign checkpoint needs: a run folder knows."""


def foreign_start(path: Path, settings: Mapping[str, Any], seed: int) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """A foreign checkpoint as it was when a run was made from it; ``settings``: that run's request."""
    return _foreign(path, settings, seed, lambda sentence: None)


def _foreign(
    path: Path, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """A foreign checkpoint adopted; the file's own tensors are let go again, and read anew to be handed back."""
    return _adopted(_read(path, settings), settings, seed, say)


def _read(path: Path, settings: Mapping[str, Any]) -> ForeignCheckpoint:
    return checkpoint_file.read_foreign(path, trust_pickle=bool(settings.get("trust_pickle")))


def is_foreign(start: Path) -> bool:
    """Whether a path is a file of weights or another library's folder, and not a run folder."""
    return not (start / META).exists() and weights_file(start) is not None


def _adopted(
    file: ForeignCheckpoint, settings: Mapping[str, Any], seed: int, say: Callable[[str], None]
) -> tuple[Data, Split, Checkpoint, dict[str, Any]]:
    """Foreign weights in a model of our own: its shape from the file, changed by the settings."""
    data = load_data(settings)
    shape = infer_recipe(file, data, settings)
    recipe, seen, changed = shape.recipe, shape.seen, dict(settings.get("recipe") or {})
    adopted = import_model(file, recipe.start(seed), shape.objective, fresh_head=bool(settings.get("fresh_head")))
    if shape.guessed:
        say(
            f"{file.path.name}: nothing says what it was trained with; taken to be {shape.objective} "
            "(else: --objective)"
        )
    settled = {"mean", "std"} & changed.keys(), changed.get("backbone")
    guessed = [note for note in seen.notes if not settled[0 if note.startswith("normalization") else 1]]
    for note in (*file.layout.notes, *guessed, *adopted.notes):
        say(f"{file.path.name}: {note}")
    checkpoint = Checkpoint(adopted.model, recipe, seed=seed, trained=False)
    sizes = config.build(Sizes, settings.get("split") or {}, path="split.")
    split = sizes.divide(data, seed)
    if sizes.trained is None:
        say(
            f"{file.path.name}: nothing says what it was trained on; taken to be {len(split.train)} of {len(data)} "
            "images, and the rest as never seen (else: --set split.trained=FILE of keys)"
        )
    inherited = {"data": settings["data"], "split": settings.get("split") or {}, "recipe": config.dump(recipe, CHOICES)}
    inherited |= {key: True for key in ("trust_pickle", "fresh_head") if settings.get(key)}
    return data, split, checkpoint, inherited


def _random(recipe: Recipe, seed: int, device: torch.device) -> Model:
    return recipe.start(seed).to(device)


def _probe(path: Path, start: Checkpoint, data: Data, split: Split, common: Common) -> None:
    """Refuse an encoder that sees no more than the same network with random weights."""
    device, run = loop.resolve_device(common.device), Run(seed=common.seed)
    seeds = [run.rng("random", n).initial_seed() % 2**31 for n in range(3)]
    others = [partial(_random, start.recipe, seed, device) for seed in seeds]
    part = Subset.of(data, split.train, start.recipe.views, "probe", device)
    require_better_than_random(
        compare_with_random(start.model.to(device), others, part, run.rng("probe")), path, start.recipe
    )


def _hand_back(
    path: Path,
    settings: Mapping[str, Any],
    result: Checkpoint,
    data: Data,
    split: Split,
    common: Common,
    folder: Path,
) -> Checkpoint:
    """Write the result in the foreign layout too, and note what was done with each part of it."""
    out, run = folder / "foreign", Run(seed=common.seed)
    if out.exists():
        shutil.rmtree(out)  # of an attempt that was cut
    out.mkdir()
    retain = Subset.of(data, split.retain, result.recipe.views, "retain", loop.resolve_device(common.device))
    batches = retain.batches(256, run.rng("purge")) if len(retain) else ()
    notes = export_checkpoint(_read(path, settings), result.model, batches, run.rng("foreign"), out)
    return replace(result, purged=result.purged | notes)
