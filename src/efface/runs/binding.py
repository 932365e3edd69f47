"""What stored observations are bound to: weights, split, views, settings, and the pixels and labels of the examples.

Observations are used again only if all of it is what it was when they were made, if the file has the digest that it
says, and if the model gives the same numbers for a few examples. Otherwise the model is observed anew, and that is
said; a file that was edited is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efface import config
from efface.auditing.criteria import Criteria
from efface.auditing.observations import OUTDATED, Observations
from efface.auditing.observers.observe import select_positions
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.data.split import Split
from efface.training.augment import Views

OBSERVATIONS_FILE = "observations.npz"
BOUND = {
    "watch": "settings",
    "drawn": "views",
    "examples": "pictures, labels or captions",
    "withheld": "withheld pictures",
}
"""What ``Observations.meta`` says about how they were made: its names and what they are called in messages."""


def examples_digest(data: Data, positions: np.ndarray) -> str:
    """SHA-256 of keys, pixels, labels and captions of the examples at ``positions``, in the order of their keys."""
    sha = hashlib.sha256(repr((data.shape, data.classes)).encode())
    for row in positions[np.argsort(data.keys[positions], kind="stable")].tolist():
        label = None if data.y is None else int(data.y[row])
        text = None if data.text is None else data.text[row]
        sha.update(repr((str(data.keys[row]), label, text)).encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(data.x[row]).data)
    return sha.hexdigest()


@dataclass
class Binder:
    """Tells what observations of a split must be bound to; pixels are read once for each split."""

    data: Data
    watch: ObservationSettings
    views: Views
    """Views of the original, through which every model is observed."""
    recheck: bool = False
    """Whether nothing that is stored is used."""
    keep: bool = False
    """Whether files that are there already stay: for verbs that observe in another way than the audit did."""
    withheld: Data | None = None
    """Pictures of the auditor's own (:mod:`efface.runs.withheld_data`), which are observed as well."""
    _examples: dict[str, str] = field(default_factory=dict)

    def facts(self, split: Split) -> dict[str, Any]:
        """What ``meta`` of observations on this split must say."""
        digest = split.digest(self.data)
        if digest not in self._examples:
            rows = select_positions(split, self.watch, self.data)
            self._examples[digest] = examples_digest(
                self.data, np.unique(np.concatenate([*rows.values(), split.valid]))
            )
        own = {} if self.withheld is None else {"withheld": self.withheld_digest()}
        return {**self.settings(), "examples": self._examples[digest], **own}

    def withheld_digest(self) -> str:
        """Digest of the auditor's own pictures; an empty string without any."""
        if self.withheld is None:
            return ""
        if "withheld" not in self._examples:
            self._examples["withheld"] = examples_digest(self.withheld, np.arange(len(self.withheld)))
        return self._examples["withheld"]

    def settings(self) -> dict[str, Any]:
        """What ``meta`` says about settings and views."""
        return json.loads(json.dumps({"watch": config.dump(self.watch), "drawn": config.dump(self.views)}))

    def difference(self, stored: Observations, model: str, split: Split, *, pictures: bool = True) -> str:
        """Name what stored observations were made with otherwise; empty if they are of this very case.

        ``pictures``: whether the pictures are compared; False if some of them are gone.
        """
        if stored.meta.get(OUTDATED):
            return "an older efface made the file, which nothing protects from changes"
        if stored.model != model:
            return "they are of other weights"
        if stored.split != split.digest(self.data):
            return "they are of another split"
        facts = self.facts(split) if pictures else self.settings()
        others = [BOUND[name] for name, value in facts.items() if stored.meta.get(name) != value]
        return f"they were made with other {', '.join(others)}" if others else ""


def forgotten_digest(data: Data, split: Split) -> dict[str, str]:
    """Digests of the pictures that a request is about, for the description of the run that answers it."""
    return {part: examples_digest(data, getattr(split, part)) for part in ("forget", "holdout")}


def fix_criteria(criteria: Criteria | None, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria of a request, or else those that its start was made with, as they are stored before any audit."""
    if criteria is None and "criteria" in inherited:
        return {"criteria": inherited["criteria"]}
    return {"criteria": json.loads(json.dumps(config.dump(criteria or Criteria())))}


def fixed_criteria(meta: Mapping[str, Any]) -> Criteria:
    """The criteria that were fixed when a run was made; the defaults for a run of 0.1.0, which fixed none."""
    return config.build(Criteria, (meta.get("fixed") or {}).get("criteria") or {}, path="criteria.")


def withheld_file(home: Path, model: str, withheld: str) -> Path:
    """Where observations are stored that hold pictures of an auditor's own as well."""
    return home / f"{model[:8]}-withheld-{withheld[:8]}.npz"


def stored_file(folder: Path, home: Path, meta: Mapping[str, Any], split: str) -> Path:
    """Where the observations of a model are stored: in its own folder if they are of its own split.

    Others list examples that its folder knows nothing of: they are stored in ``home``, the folder of the audited run.
    """
    if meta["split"] == split:
        return folder / OBSERVATIONS_FILE
    own = folder.resolve() == home.resolve()
    return home / (f"observations-{split[:8]}.npz" if own else f"{meta['digest'][:8]}-observations-{split[:8]}.npz")
