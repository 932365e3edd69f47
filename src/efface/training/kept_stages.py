"""The weights after each stage of a sharded training, kept as files, and bound to the run by an index.

A run folder has them in ``shards/``: one ``.safetensors`` for each stage, and ``index.json`` with the address of each
and the digest of its weights. A later request starts from those whose stages never saw the examples to delete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from efface.errors import EffaceError
from efface.files import atomic_path, disk_errors, file_digest, read_json, write_text
from efface.schema import FirstFormat, HexDigest, Name, StoredModel, Tally
from efface.training.checkpoint import EpochStore, StoredCost, load_weights, read_weights
from efface.training.loop import TrainingCost
from efface.training.model import Model
from efface.training.stages import Stage

STAGE_FOLDER, STAGE_INDEX = "shards", "index.json"
_AGAIN = "Restore the folder from its source, or unlearn with --method retrain."


class KeptStage(StoredModel):
    """What an index says of one stage."""

    name: Name
    address: HexDigest
    weights: HexDigest
    """Digest of its named tensors."""
    examples: Tally
    """How many examples its slices have."""
    reused: bool
    """Whether it was taken over from the run that this one was made from."""
    cost: StoredCost
    """What training it cost, when it was trained."""


class StageIndex(StoredModel):
    """The content of ``index.json``."""

    format: FirstFormat = 1
    stages: tuple[KeptStage, ...]


@dataclass(eq=False)
class KeptStages:
    """Keeps the stages of a run in a folder; a :class:`~efface.training.loop.StageStore`.

    Args:
        folder: Where they are kept; created on first use.
        earlier: The index of the run that this one was made from, and its folder; its stages may be taken over.

    """

    folder: Path
    earlier: tuple[Path, StageIndex] | None = None
    found: list[KeptStage] = field(default_factory=list)
    """The stages so far, in order."""

    def restore(self, stage: Stage, part: Model) -> TrainingCost | None:
        """Load the weights after a stage; None if they were never trained.

        Returns:
            What it cost this run to train them: nothing if they are taken over from an earlier run.

        Raises:
            EffaceError: The file of an earlier run is missing, damaged, or not the one in its index.

        """
        path = self._path(stage)
        known = self._earlier(stage)
        if known is not None:
            folder, entry = known
            source = folder / f"{stage.name}.safetensors"
            _load(part, source, entry.weights)
            if not path.exists():
                self.folder.mkdir(exist_ok=True)
                with atomic_path(path) as fresh:
                    shutil.copyfile(source, fresh)
            self.found.append(entry.model_copy(update={"reused": True, "examples": len(stage.subset)}))
            return TrainingCost()
        entry = _describe(path, stage)
        if entry is None or part_digest(path) != entry.weights:
            return None  # cut: it is trained again
        load_weights(part, read_weights(path), str(path))
        self.found.append(entry)
        return TrainingCost(entry.cost.steps, entry.cost.examples, entry.cost.seconds)

    def epochs(self, stage: Stage) -> EpochStore:
        """Keeps the latest epoch of a stage that is being trained."""
        self.folder.mkdir(exist_ok=True)
        return EpochStore(self.folder / f"{stage.name}.pt")

    def save(self, stage: Stage, part: Model, cost: TrainingCost) -> None:
        """Keep the weights after a stage, atomically, and drop its latest epoch."""
        self.folder.mkdir(exist_ok=True)
        entry = KeptStage(
            name=stage.name,
            address=stage.address,
            weights=part.digest(),
            examples=len(stage.subset),
            reused=False,
            cost=StoredCost(steps=cost.steps, examples=cost.examples, seconds=cost.seconds),
        )
        tensors = {name: value.detach().cpu().contiguous() for name, value in part.state_dict().items()}
        with atomic_path(self._path(stage)) as fresh:
            save_file(tensors, fresh, {"stage": entry.model_dump_json()})
        self.epochs(stage).path.unlink(missing_ok=True)
        self.found.append(entry)

    def write_index(self) -> str:
        """Write the index of all stages, remove what is not in it, and return the digest of the file."""
        names = {f"{one.name}.safetensors" for one in self.found} | {STAGE_INDEX}
        for other in self.folder.iterdir():
            if other.name not in names:
                other.unlink()
        content = StageIndex(stages=tuple(self.found)).model_dump(mode="json")
        write_text(self.folder / STAGE_INDEX, json.dumps(content, indent=1) + "\n")
        return file_digest(self.folder / STAGE_INDEX)

    def _path(self, stage: Stage) -> Path:
        return self.folder / f"{stage.name}.safetensors"

    def _earlier(self, stage: Stage) -> tuple[Path, KeptStage] | None:
        if self.earlier is None:
            return None
        folder, index = self.earlier
        entry = next((one for one in index.stages if one.address == stage.address), None)
        return None if entry is None else (folder, entry)


def read_index(run: Path, digest: str) -> StageIndex:
    """Read the index of a run's kept stages.

    Args:
        run: The run folder.
        digest: SHA-256 of the index, as the run's description has it.

    Raises:
        EffaceError: It is missing, damaged, or another one.

    """
    path = Path(run) / STAGE_FOLDER / STAGE_INDEX
    content = read_json(path, "index of kept stages", schema=StageIndex, remedy=_AGAIN)
    if file_digest(path) != digest:
        raise EffaceError(f"{path} is not the one that the run was made with.", "It was edited or replaced.", _AGAIN)
    return StageIndex.model_validate(content)


def part_digest(path: Path) -> str:
    """Digest of the named tensors of a file; empty if it cannot be read."""
    from efface.training.model import digest

    try:
        return digest(read_weights(path))
    except EffaceError:
        return ""


def _load(part: Model, path: Path, digest: str) -> None:
    """Load kept weights, which must be those of the index."""
    load_weights(part, read_weights(path), str(path))
    if part.digest() != digest:
        raise EffaceError(
            f"The weights in {path} are not the ones that its index describes.",
            f"Digest expected: {digest[:16]}; found: {part.digest()[:16]}.",
            _AGAIN,
        )


def _describe(path: Path, stage: Stage) -> KeptStage | None:
    """What a file of this run says of itself; None if there is none, or it was cut."""
    if not path.exists():
        return None
    try:
        with disk_errors(path), safe_open(path, "pt") as file:
            facts: dict[str, Any] = file.metadata() or {}
        found = KeptStage.model_validate_json(facts["stage"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    return found if found.address == stage.address else None
