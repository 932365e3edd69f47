"""Checkpoints: weights with their recipe and lineage, and the saved state of an unfinished training run."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface import config
from efface.errors import EffaceError
from efface.files import META, WEIGHTS, read_json
from efface.schema import (
    Count,
    HexDigest,
    NotNegative,
    SeedNumber,
    StoredModel,
    Tally,
    first_problem,
    parse_record,
    show_value,
    type_adapter,
)
from efface.training.history import SearchHistory, StoppingResult, as_dict, from_dict
from efface.training.loop import TrainingCost
from efface.training.model import Model
from efface.training.networks.weight_kinds import require_float32
from efface.training.objectives import CHOICES
from efface.training.optim import ScheduledOptimizer
from efface.training.processes import current_world
from efface.training.recipe import Recipe

CHECKPOINT_FORMAT = 1
"""Version of ``meta.json``."""
CONTENT = "content_digest"
"""The entry of ``meta.json`` that binds all others; files of 0.1.0 have none."""
RESTORE_RUN = "Restore the folder from its source, or make it again."


class StoredCost(StoredModel):
    """The cost in a ``meta.json``."""

    steps: Tally
    examples: Tally
    seconds: NotNegative


class CheckpointMeta(StoredModel):
    """The content of a ``meta.json``."""

    format: Annotated[int, Ge(1), Le(CHECKPOINT_FORMAT)]
    digest: HexDigest
    recipe: dict[str, Any]
    seed: SeedNumber
    parent: HexDigest | None = None
    method: dict[str, Any] | None = None
    origin: str = ""
    exact: bool = False
    split: HexDigest | Literal[""]
    cost: StoredCost
    identity: HexDigest | Literal[""] = ""
    purged: dict[str, str] = Field(default_factory=dict)
    trained: bool = True
    stopped: StoppingResult | None = None
    search: SearchHistory | None = None
    fixed: dict[str, Any] = Field(default_factory=dict)
    handed_back: dict[str, HexDigest] = Field(default_factory=dict)

    @model_validator(mode="after")
    def fits_itself(self) -> CheckpointMeta:
        """Refuse values that contradict each other."""
        stopped, search = self.stopped, self.search
        trials = () if search is None else search.trials
        methods = [one for one in (self.method, *(trial.method for trial in trials)) if one is not None]
        first_problem(
            [
                (not all(isinstance(one.get("name"), str) for one in methods), "a method with its name"),
                (stopped is not None and not stopped.looks, "early stopping with at least one check"),
                (search is not None and not 0 <= search.chosen < len(trials), "a search with the trial it chose"),
            ]
        )
        return self


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model, with how it was made.

    Example:
        >>> checkpoint = Checkpoint.load(Path("runs/original"))
        >>> features = checkpoint.model.features(images)

    """

    model: Model
    recipe: Recipe
    """How it was trained. Retraining uses the same recipe, so that the oracle cannot differ by accident."""
    seed: int = 0
    parent: str | None = None
    """Digest of the checkpoint it was unlearned from; ``None`` for an original."""
    method: dict[str, Any] | None = None
    """Name and hyper-parameters of the unlearning method; ``None`` for an original."""
    origin: str = ""
    """The package that provides the method; empty for efface's own: see :mod:`efface.unlearning.plugins`."""
    exact: bool = False
    """Whether it was trained without the forget set: an oracle."""
    split: str = ""
    """Digest of the split it was made with."""
    training_cost: TrainingCost = field(default_factory=TrainingCost)
    """What training or unlearning cost."""
    purged: dict[str, str] = field(default_factory=dict)
    """What was done with state that remembers training images, by the name of the part."""
    trained: bool = True
    """Whether the recipe says how it was trained; ``False`` if it only describes the shape of foreign weights."""
    stopped: StoppingResult | None = None
    """When and why early stopping ended the method, if it was used: see :mod:`efface.unlearning.early_stopping`."""
    search: SearchHistory | None = None
    """The trials, if the method was chosen by a search: see :mod:`efface.unlearning.search`."""
    identity: str = ""
    """Digest of the record of the pictures it was made with, ``identity.npz``; empty if they were not recorded."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """What was fixed before any audit: ``criteria`` of the verdict, and digests of the ``pictures`` of the request."""
    handed_back: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that were written in another library's layout, by their path in the run folder."""

    def __post_init__(self) -> None:
        """Refuse a model in double or half precision: nothing here trains, unlearns or reads one."""
        require_float32(self.model, "The model")

    def in_parts(self, micro_batch: int | None) -> Checkpoint:
        """The same checkpoint, of whose batches so many images go through the network at once; None: as it is."""
        if micro_batch is None:
            return self
        self.model.set_micro_batch(micro_batch)
        return replace(self, recipe=replace(self.recipe, micro_batch=micro_batch))

    def save(self, folder: Path) -> None:
        """Write weights and metadata into a folder, made if need be; of several processes, only the first one writes.

        Raises:
            OSError: If the weights cannot be written, for example because the disk is full.

        """
        if not current_world().leads:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        try:
            save_file(weights, folder / WEIGHTS)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
        meta = self.meta()
        described = meta | {CONTENT: content_digest(meta)}
        (folder / META).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")

    def meta(self) -> dict[str, Any]:
        """Collect everything but the weights, as plain values for ``meta.json``; ``digest`` identifies the weights."""
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
            "identity": self.identity,
            "fixed": self.fixed,
            **({"handed_back": self.handed_back} if self.handed_back else {}),
        }

    @staticmethod
    def load(folder: Path, meta: dict[str, Any] | None = None) -> Checkpoint:
        """Load what :meth:`save` wrote.

        Raises:
            EffaceError: If a file is missing, damaged or of a newer format, if the weights do not fit the recipe or
                the digest, or if they are not all finite.

        """
        folder = Path(folder)
        meta = read_meta(folder) if meta is None else meta
        recipe = recipe_of(folder, meta)
        model = load_weights(recipe.start(meta["seed"]), read_weights(folder / WEIGHTS), str(folder))
        if model.digest() != meta["digest"]:
            raise EffaceError(
                f"The weights in {folder} are not the ones that its {META} describes.",
                f"Digest expected: {meta['digest'][:16]}; found: {model.digest()[:16]}.",
                "Restore the folder from its source, or make it again.",
            )
        kept = {key: meta[key] for key in ("seed", "parent", "method", "origin", "exact", "split", "purged", "trained")}
        kept["identity"] = meta.get("identity", "")
        kept |= {
            key: from_dict(kind, meta.get(key))
            for key, kind in (("stopped", StoppingResult), ("search", SearchHistory))
        }
        kept |= {key: dict(meta.get(key) or {}) for key in ("fixed", "handed_back")}
        return Checkpoint(model, recipe, training_cost=TrainingCost(**meta["cost"]), **kept)


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the ``meta.json`` of a run folder.

    Raises:
        EffaceError: If the folder or the file is missing, or if a newer efface wrote it.

    """
    if not Path(folder).exists():
        raise EffaceError(f"There is no checkpoint at {folder}.", remedy="Check the path, or run `efface pretrain`.")
    if not (Path(folder) / META).exists():
        raise EffaceError(
            f"{folder} is not a run folder: it has no {META}.", remedy="Name the folder that --out was given."
        )
    path, what = Path(folder) / META, "checkpoint's description"
    stored = read_json(path, what, remedy=RESTORE_RUN)
    version = stored.get("format")
    if isinstance(version, int) and version > CHECKPOINT_FORMAT:
        raise EffaceError(
            f"{path} was written by a newer efface: its format is {show_value(version)}.", remedy="Upgrade efface."
        )
    if CONTENT in stored and stored[CONTENT] != content_digest(stored):
        raise EffaceError(
            f"{path} was edited or damaged.",
            "What it says about the weights does not match its own digest.",
            "Restore it from a backup, or make the run again.",
        )
    meta = parse_record(CheckpointMeta, stored, path, what, RESTORE_RUN).model_dump() | stored
    recipe_of(Path(folder), meta)
    return meta


def recipe_of(folder: Path, meta: dict[str, Any]) -> Recipe:
    """Build the recipe of a ``meta.json`` that was read from a folder; an error names the file."""
    try:
        return config.build(Recipe, meta["recipe"], CHOICES, "recipe.")
    except EffaceError as error:
        raise EffaceError(f"{folder / META} is damaged: {error.what}", error.why, RESTORE_RUN) from error


def content_digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of what ``meta.json`` says, the digest of the weights included; independent of the order of its keys."""
    content = {key: value for key, value in meta.items() if key != CONTENT}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a ``.safetensors`` file."""
    if not path.is_file():
        raise EffaceError(f"There is no checkpoint at {path}.", remedy="Check the path.")
    try:
        return load_file(path)
    except PermissionError as error:
        raise EffaceError(f"{path} cannot be read.", str(error), "Check its permissions.") from error
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise EffaceError(f"{path} is damaged or truncated.", str(error), "Fetch it again.") from error


def load_weights(model: Model, weights: dict[str, Tensor], source: str) -> Model:
    """Load weights into a model, in place.

    Args:
        model: The model.
        weights: Name to tensor, as in the model's state dict.
        source: Where the weights come from, for error messages.

    Raises:
        EffaceError: If a name or shape does not match, or if a number is not finite.

    """
    expected = model.state_dict()
    missing, surplus = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    shapes = [
        f"{name}: {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected.keys() & weights.keys()
        if weights[name].shape != expected[name].shape
    ]
    if missing or surplus or shapes:
        raise EffaceError(
            f"The weights in {source} belong to another architecture.",
            f"Missing: {_list_names(missing)}. Unexpected: {_list_names(surplus)}. "
            f"Of another shape: {_list_names(sorted(shapes))}.",
            "Set the backbone, width, image size and objective that it was trained with.",
        )
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise EffaceError(
            f"The weights in {source} are not all finite numbers.",
            f"NaN or infinite in {len(broken)} tensors: {_list_names(sorted(broken))}.",
            "Go back to a checkpoint from before the training diverged.",
        )
    model.load_state_dict(weights)
    return model


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"


@dataclass(frozen=True)
class EpochStore:
    """Keeps the latest epoch of a training run in one file: a :class:`ResumeStore`."""

    path: Path
    say: Callable[[str], None] | None = None
    """Receives a message if the file cannot be used, and training starts again; without it, that is an error."""

    def save(self, model: Model, optimizer: ScheduledOptimizer, epoch: int, cost: TrainingCost) -> None:
        """Replace the saved state atomically: after a kill, the file holds either the old or the new state."""
        current_world().lead(lambda: self._write(model, optimizer, epoch, cost))

    def _write(self, model: Model, optimizer: ScheduledOptimizer, epoch: int, cost: TrainingCost) -> None:
        temporary = self.path.with_suffix(".tmp")
        state = {"model": model.state_dict(), "optimizer": optimizer.state(), "epoch": epoch, "tally": vars(cost)}
        buffer = io.BytesIO()  # torch's own writer reports a full disk as a RuntimeError
        torch.save(state, buffer)
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, self.path)

    def restore(self, model: Model, optimizer: ScheduledOptimizer) -> tuple[int, TrainingCost] | None:
        """Load the latest saved epoch into model and optimizer; return ``None`` if there is none that can be used.

        A damaged file, or one of another training, is named and left aside: training then starts from the beginning.
        Without ``say`` it is an error. Of several processes the first one reads the file for all of them.
        """
        content = current_world().lead(lambda: self.path.read_bytes() if self.path.exists() else None)
        if content is None:
            return None
        before = copy.deepcopy((model.state_dict(), optimizer.state()))
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            epoch, taken = (int(value) for value in (state["epoch"], state["optimizer"]["taken"]))
            type_adapter(Count).validate_python(min(epoch, taken))
            cost = parse_record(StoredCost, state["tally"], f"the cost in {self.path}", "cost", "")
            load_weights(model, state["model"], str(self.path))
            optimizer.restore(state["optimizer"])
        except MemoryError:
            raise
        except Exception as error:  # torch raises what it likes, and a half-loaded state must not be trained on
            if self.say is None:
                raise EffaceError(
                    f"{self.path} is damaged: the training cannot be resumed.",
                    f"It is cut, or another file: {error}",
                    "Delete it to start again from the first epoch.",
                ) from error
            model.load_state_dict(before[0])
            optimizer.restore(before[1])
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.say(f"{self.path} is damaged and was ignored: training starts from the beginning. ({reason[:120]})")
            return None
        return epoch, TrainingCost(cost.steps, cost.examples, cost.seconds)
