"""One model of an audit, and the files in which its observations are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efface import api, config
from efface.auditing.evidence import Cost
from efface.auditing.observations import Observations
from efface.auditing.observers.observe import ObservationSettings
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import READ_ONLY
from efface.runs import artifacts
from efface.runs.run import Progress
from efface.training.checkpoint import META, Checkpoint, read_meta

OBSERVATIONS_FILE = "observations.npz"


@dataclass(frozen=True, eq=False)
class AuditedModel:
    """One model of an audit: its weights, what is known about it, and where its observations are stored."""

    meta: dict[str, Any]
    weights: Path
    load: Callable[[], Checkpoint]
    observations_file: Path
    claim: str = ""
    """What the user states about it without proof; empty if everything was checked."""

    @property
    def cost(self) -> Cost:
        """The cost of making it."""
        spent = self.meta["cost"]
        return Cost(spent["steps"], spent["examples"], spent["seconds"])

    def observe(
        self, data: Data, split: Split, watch: ObservationSettings, device: str, progress: Progress
    ) -> Observations:
        """Observe the model on a split, or read the stored observations if they were made with the same settings."""
        stored = self.stored_observations(split.digest(data), watch)
        if stored is not None:
            return stored
        progress.say(f"Observing {self.weights.parent.name}")
        observed = api.observe(self.load(), data, split, watch, device=device)
        observed.meta["watch"] = _stamp(watch)
        try:
            artifacts.save_observations(self.observations_file, observed)
        except EffaceError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in READ_ONLY:
                raise
            progress.say(f"The observations are not kept: {self.observations_file.parent} cannot be written.")
        return observed

    def stored_observations(self, split: str, watch: ObservationSettings) -> Observations | None:
        """The stored observations on the split with this digest, if they were made with the same settings."""
        if not self.observations_file.exists():
            return None
        stored = Observations.load(self.observations_file)
        made_for = (stored.model, stored.split, stored.meta.get("watch"))
        return stored if made_for == (self.meta["digest"], split, _stamp(watch)) else None

    def beside(self, name: str) -> AuditedModel:
        """The same model with its observations in another file of the same folder."""
        return replace(self, observations_file=self.observations_file.with_name(name))


def _stamp(watch: ObservationSettings) -> Any:
    return json.loads(json.dumps(config.dump(watch)))


def observations_file_name(split: str) -> str:
    """Name of the file for observations on a split other than the run's own."""
    return f"observations-{split[:8]}.npz"


def observations_path(folder: Path, meta: Mapping[str, Any] | None, split: str) -> Path:
    """Where a run folder stores the observations of its model on the split with this digest.

    ``meta``: the run's ``meta.json``; None where the folder has none any more.
    """
    own = meta is not None and meta["split"] == split
    return folder / (OBSERVATIONS_FILE if own else observations_file_name(split))


def find_observations(folder: Path, split: str) -> Path:
    """Call :func:`observations_path` for a folder that is not opened and may no longer exist."""
    return observations_path(folder, read_meta(folder) if (folder / META).exists() else None, split)


def oracle_observations_path(run: Path, digest: str) -> Path:
    """Where a run stores the observations of a foreign reference with this digest."""
    return run / f"oracle-{digest[:8]}-{OBSERVATIONS_FILE}"
