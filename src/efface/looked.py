"""One model of an audit: where its weights are, what is known of it, where what it shows is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface import api, config, evidence
from efface.audits import Cost
from efface.checkpoint import Checkpoint, read_meta
from efface.data import Data
from efface.errors import EffaceError
from efface.layouts.container import weights_file
from efface.observations import Observations
from efface.runs import Progress, foreign_start
from efface.splits import Split
from efface.watch import Watch

OBSERVED = "observations.npz"
CLAIM = "that it never saw the forgotten or the unseen examples is stated by the user, not checked"
"""Of an oracle that another library trained: nothing in its file says on what."""


@dataclass(frozen=True, eq=False)
class Model:
    """One model of an audit: where its weights are, what is known of it, where its observations are kept."""

    meta: dict[str, Any]
    weights: Path
    load: Callable[[], Checkpoint]
    observed: Path
    claim: str = ""
    """What is said of it that nobody checked."""

    @property
    def cost(self) -> Cost:
        """What it took to make."""
        spent = self.meta["cost"]
        return Cost(spent["steps"], spent["examples"], spent["seconds"])

    def look(self, data: Data, split: Split, watch: Watch, device: str, progress: Progress) -> Observations:
        """What it shows of a split: from its file where it was looked at in the same way before."""
        stamp = json.loads(json.dumps(config.dump(watch)))
        if self.observed.exists():
            found = Observations.load(self.observed)
            if (found.model, found.split, found.meta.get("watch")) == (self.meta["digest"], split.digest(data), stamp):
                return found
        progress.say(f"Looking at {self.weights.parent.name}")
        seen = api.observe(self.load(), data, split, watch, device=device)
        seen.meta["watch"] = stamp
        evidence.keep_observations(self.observed, seen)
        return seen


def foreign(run: Path, request: Mapping[str, Any], file: Path, split: str = "") -> Model:
    """A foreign checkpoint as the original of a run: read again as it was when the run was made.

    ``split``: digest of the split that it is to be looked at with, where that is not the run's own.
    """
    # The run has its split in its folder: the file of keys that it was made from need not be there any more.
    _, _, checkpoint, _ = foreign_start(file, {**request, "split": {}}, int(request["seed"]))
    if checkpoint.model.digest() != read_meta(run)["parent"]:
        raise EffaceError(f"{file} has changed since {run} was made from it.", remedy="Restore it, or unlearn again.")
    name = f"original-{elsewhere(split)}" if split else f"original-{OBSERVED}"
    return Model(checkpoint.meta(), weights_file(file) or file, lambda: checkpoint, run / name)


def elsewhere(split: str) -> str:
    """What a run's observations of another split than its own are called."""
    return f"observations-{split[:8]}.npz"
