"""Checkpoint: weights with their recipe and lineage; and the saved state of a training run that was cut."""

from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface import config
from efface.errors import EffaceError
from efface.files import read_json
from efface.training.history import SearchHistory, StoppingResult, as_dict, from_dict
from efface.training.loop import TrainingCost
from efface.training.model import Model
from efface.training.objectives import CHOICES
from efface.training.optim import ScheduledOptimizer
from efface.training.recipe import Recipe

CHECKPOINT_FORMAT = 1


WEIGHTS, META = "checkpoint.safetensors", "meta.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model with what is known about how it was made."""

    model: Model
    recipe: Recipe
    """How it was trained; retraining uses this very recipe, so that the oracle cannot differ by accident."""
    seed: int = 0
    parent: str | None = None
    """Digest of the checkpoint it was made from; ``None`` for an original."""
    method: dict[str, Any] | None = None
    """Name and hyper-parameters of the unlearning method; ``None`` for an original."""
    origin: str = ""
    """The package that the method came from; empty for those of efface: see :mod:`efface.unlearning.plugins`."""
    exact: bool = False
    """Whether it never saw the forget set: an oracle."""
    split: str = ""
    """Digest of the split it was made with."""
    training_cost: TrainingCost = field(default_factory=TrainingCost)
    """What it cost."""
    purged: dict[str, str] = field(default_factory=dict)
    """What was done with the state that remembers training images: part to action."""
    trained: bool = True
    """Whether the recipe is how it was trained, and not only the shape that foreign weights were put into."""
    stopped: StoppingResult | None = None
    """When and why it was stopped, if unseen examples were looked at: see :mod:`efface.unlearning.early_stopping`."""
    search: SearchHistory | None = None
    """What was tried, if the method was chosen by unseen examples: see :mod:`efface.unlearning.search`."""

    def save(self, folder: Path) -> None:
        """Write weights and meta data into an existing folder."""
        folder = Path(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        try:
            save_file(weights, folder / WEIGHTS)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
        (folder / META).write_text(json.dumps(self.meta(), indent=1) + "\n", encoding="utf-8")

    def meta(self) -> dict[str, Any]:
        """All that is known of it but the weights, JSON-able; ``digest`` names the weights."""
        return {
            "format": CHECKPOINT_FORMAT,
            "digest": self.model.digest(),
            "recipe": config.dump(self.recipe, CHOICES),
            "seed": self.seed,
            "parent": self.parent,
            "method": self.method,
            "origin": self.origin,
            "exact": self.exact,
            "split": self.split,
            "cost": vars(self.training_cost),
            "purged": self.purged,
            "trained": self.trained,
            "stopped": self.stopped and as_dict(self.stopped),
            "search": self.search and as_dict(self.search),
        }

    @staticmethod
    def load(folder: Path) -> Checkpoint:
        """Read what :meth:`save` wrote; damage, foreign shapes and NaN weights are errors."""
        folder = Path(folder)
        meta = read_meta(folder)
        recipe: Recipe = config.build(Recipe, meta["recipe"], CHOICES, "recipe.")
        model = load_weights(recipe.start(meta["seed"]), read_weights(folder / WEIGHTS), str(folder))
        if model.digest() != meta["digest"]:
            raise EffaceError(
                f"The weights in {folder} are not the ones its {META} speaks of.",
                f"Digest expected: {meta['digest'][:16]}; found: {model.digest()[:16]}.",
                "Restore the folder from where it came, or make it again.",
            )
        kept = {key: meta[key] for key in ("seed", "parent", "method", "origin", "exact", "split", "purged", "trained")}
        kept |= {
            key: from_dict(kind, meta.get(key))
            for key, kind in (("stopped", StoppingResult), ("search", SearchHistory))
        }
        return Checkpoint(model, recipe, training_cost=TrainingCost(**meta["cost"]), **kept)


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta.json`` of a run folder."""
    if not Path(folder).exists():
        raise EffaceError(f"There is no checkpoint at {folder}.", remedy="Check the path, or run `efface pretrain`.")
    if not (Path(folder) / META).exists():
        raise EffaceError(
            f"{folder} is not a run folder: it has no {META}.", remedy="Name the folder that --out was given."
        )
    meta = read_json(Path(folder) / META, "checkpoint's description")
    if not isinstance(meta.get("format"), int):
        raise EffaceError(f"{Path(folder) / META} is not a checkpoint's description.", "It has no format.")
    if meta["format"] > CHECKPOINT_FORMAT:
        raise EffaceError(f"{folder} was written by a newer efface (format {meta['format']}).", remedy="Upgrade.")
    return {"origin": ""} | meta  # runs of before other packages could bring a method


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a run's ``.safetensors`` file."""
    if not path.is_file():
        raise EffaceError(f"There is no checkpoint at {path}.", remedy="Check the path.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise EffaceError(f"{path} is damaged or truncated.", str(error), "Fetch it again.") from error


def load_weights(model: Model, weights: dict[str, Tensor], source: str) -> Model:
    """Put weights into a model: every name and shape must match, every number be finite."""
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name}: {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    if missing or surplus or shapes:
        raise EffaceError(
            f"The weights in {source} belong to another architecture.",
            f"Missing: {_some(missing)}. Unexpected: {_some(surplus)}. Of another shape: {_some(sorted(shapes))}.",
            "Set the backbone, width, image size and objective that it was trained with.",
        )
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EffaceError(
            f"The weights in {source} are not all finite numbers.",
            f"NaN or infinite in {len(broken)} tensors: {_some(sorted(broken))}.",
            "Go back to a checkpoint from before the training diverged.",
        )
    model.load_state_dict(weights)
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


@dataclass(frozen=True)
class EpochStore:
    """Keeps the newest epoch of a training run in one file, replaced atomically."""

    path: Path

    def save(self, model: Model, optimizer: ScheduledOptimizer, epoch: int, tally: TrainingCost) -> None:
        """Replace the saved state by this one: a kill leaves the old one or the new one, never half of one."""
        fresh = self.path.with_suffix(".tmp")
        state = {"model": model.state_dict(), "optimizer": optimizer.state(), "epoch": epoch, "tally": vars(tally)}
        buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError
        torch.save(state, buffer)
        fresh.write_bytes(buffer.getbuffer())
        os.replace(fresh, self.path)

    def restore(self, model: Model, optimizer: ScheduledOptimizer) -> tuple[int, TrainingCost] | None:
        """Put the newest saved epoch back; ``None`` where there is none."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.restore(state["optimizer"])
        return state["epoch"], TrainingCost(**state["tally"])
