"""Synthetic worlds with a known truth: observations of models that remember their members by a known amount."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from efface.auditing import signals
from efface.auditing.observations import Observations

PAIRS = 45


class World:
    """Examples with labels, features that separate the classes, and a hardness that all models share.

    ``hardness`` hides membership at A0 and cancels at A1.
    """

    def __init__(
        self, seed=0, *, hardness=1.0, classes=5, dim=12, labelled=True, classifier=False, captioned=False, **sizes
    ):
        self.rng = np.random.default_rng(seed)
        self.sizes = {"forget": 200, "retain": 300, "holdout": 300, "test": 200, "valid": 100} | sizes
        self.labelled, self.classifier, self.dim, self.classes = labelled, classifier, dim, classes
        self.captioned, self.hard, self.y, self.x = captioned, {}, {}, {}
        self.centers = 2.0 * np.random.default_rng(seed + 1).normal(size=(classes, dim))
        for part, n in self.sizes.items():
            self.hard[part] = hardness * self.rng.normal(size=n)
            self.y[part] = np.arange(n) % classes
            self.x[part] = self.centers[self.y[part]] + self.rng.normal(size=(n, dim))

    def model(self, name, gain=None, *, noise=0.5, collapsed=False, projector=True, blur=0.3, split="s"):
        """Build observations of a model that scores ``part`` higher by ``gain[part]``."""
        gain = {"retain": 1.0} if gain is None else gain
        arrays = {}
        for part, n in self.sizes.items():
            if n == 0:
                continue
            arrays |= self.part(part, n, gain.get(part, 0.0), noise, collapsed, projector, blur)
        if self.captioned:
            arrays["prompts/text"] = self.centers.astype(np.float32)
        spaces = ["backbone", "projector"] if projector else ["backbone"]
        return Observations(name, split, arrays, {"spaces": spaces})

    def part(self, part, n, gain, noise, collapsed, projector, blur):
        """Build all arrays of one part."""
        rng, scale = self.rng, 0.0 if collapsed else 1.0
        made = {"keys": np.array([f"{part}/{i:05d}" for i in range(n)])}
        x = self.x[part] + blur * rng.normal(size=(n, self.dim))
        made["features"] = (np.ones_like(x) if collapsed else x).astype(np.float32)
        if self.labelled:
            made["labels"] = self.y[part]
        score = np.zeros(n)
        if self.classifier:
            logits = rng.normal(size=(n, self.classes))
            logits[np.arange(n), self.y[part]] += 2 + self.hard[part] + gain + noise * rng.normal(size=n)
            made["logits"] = (scale * logits).astype(np.float32)
        for space in ["backbone", "projector"] if projector else ["backbone"]:
            score = scale * (self.hard[part] + gain + noise * rng.normal(size=n))
            made[f"{space}.margin"] = score.astype(np.float32)
            made[f"{space}.norm"] = (3 + 0.3 * scale * (score + rng.normal(size=n))).astype(np.float32)
            if part not in ("test", "valid"):
                spread = scale * (0.05 * rng.normal(size=(n, PAIRS)) + 0.05 * score[:, None])
                made[f"{space}.pairs"] = np.clip(0.7 + spread, -1, 1).astype(np.float32)
        if self.captioned:
            near = gain + 0.3 * rng.normal(size=n)
            made["text"] = self.x[part].astype(np.float32)
            image = near[:, None] * self.x[part] + 2 * rng.normal(size=(n, self.dim))
            made["image"] = (np.ones_like(x) if collapsed else image).astype(np.float32)
            if part != "valid":
                made["pair.margin"] = (scale * (self.hard[part] + gain + noise * rng.normal(size=n))).astype(np.float32)
                made["pair.similarity"] = (0.1 * made["pair.margin"]).astype(np.float32)
        if part not in ("test", "valid"):
            made["gradient_norm"] = np.exp(-0.3 * scale * score).astype(np.float32)
        return {f"{part}/{name}": value for name, value in made.items()}

    def original(self, **more):
        return self.model("original", {"forget": 1.0, "retain": 1.0}, **more)

    def oracle(self, i=1, **more):
        return self.model(f"oracle {i}", {"retain": 1.0}, **more)


def with_arrays(observed: Observations, **changed) -> Observations:
    """Replace arrays: ``forget__labels=...`` replaces ``forget/labels``, and None removes it."""
    arrays = dict(observed.arrays)
    for name, value in changed.items():
        arrays.pop(name.replace("__", "/"), None)
        if value is not None:
            arrays[name.replace("__", "/")] = value
    return dataclasses.replace(observed, arrays=arrays)


def pair(observed: Observations, part: str, signal: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of ``part`` and of its non-members, which must exist."""
    found = signals.score_pair(observed, part, signal)
    assert found is not None
    return found


def by_name(findings) -> dict[str, Any]:
    """Index findings by their names, which must be unique."""
    named = {finding.name: finding for finding in findings}
    assert len(named) == len(findings)
    return named
