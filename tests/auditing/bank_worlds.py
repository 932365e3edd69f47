"""Worlds of known truth for reference banks and rehearsals: scores are drawn, no model is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efface.auditing import signals
from efface.auditing.observations import Observations
from efface.auditing.reference_bank import ReferenceBank, draw_halves

SIGNALS = ("backbone.margin", "projector.margin")


@dataclass(frozen=True)
class World:
    """Score of an example under a model = its difficulty + memory if the model saw it + noise."""

    rng: np.random.Generator
    keys: np.ndarray
    trained: np.ndarray
    difficulty: np.ndarray
    memory: float

    @staticmethod
    def of(seed: int, trained: int = 400, unseen: int = 400, memory: float = 1.0) -> World:
        rng = np.random.default_rng(seed)
        keys = np.array([f"e{i:05d}" for i in range(trained + unseen)])
        return World(rng, keys, np.arange(len(keys)) < trained, rng.normal(0, 2, len(keys)), memory)

    def scores(self, seen: np.ndarray, strength: float | None = None) -> dict[str, np.ndarray]:
        """Scores of every example under a new model that saw some of them."""
        strength = self.memory if strength is None else strength
        return {name: self.difficulty + strength * seen + self.rng.normal(0, 1, len(self.keys)) for name in SIGNALS}

    def bank(self, models: int = 8) -> ReferenceBank:
        """A bank of this world."""
        first = draw_halves(self.keys[self.trained].tolist(), models // 2, 0)
        inside = np.zeros((models, len(self.keys)), dtype=bool)
        for pair in range(models // 2):
            inside[2 * pair, self.trained] = first[pair]
            inside[2 * pair + 1, self.trained] = ~first[pair]
        each = [self.scores(row) for row in inside]
        stacked = {name: np.stack([one[name] for one in each]).astype(np.float32) for name in SIGNALS}
        return ReferenceBank(
            "0" * 64,
            self.keys,
            self.trained,
            inside,
            stacked,
            np.zeros(len(self.keys), dtype=bool),
            {"unit": "example"},
        )

    def observe(
        self, forget: np.ndarray, seen: np.ndarray, extra: float = 0.0, model: str = "m", strength: float | None = None
    ) -> Observations:
        """Observe a model that saw ``seen``; the forgotten examples score higher by ``extra``."""
        found = self.scores(seen, strength)
        rows = {
            "forget": np.flatnonzero(forget),
            "retain": np.flatnonzero(self.trained & ~forget),
            "holdout": np.flatnonzero(~self.trained)[::2],
            "control": np.flatnonzero(~self.trained)[1::2],
        }
        arrays: dict[str, np.ndarray] = {}
        for part, at in rows.items():
            arrays[f"{part}/keys"] = self.keys[at]
            for name, values in found.items():
                shift = extra if part == "forget" else 0.0
                arrays[f"{part}/{signals.READY}{name}"] = values[at] + shift
                arrays[f"{part}/{signals.READY}{name.split('.')[0]}.alignment"] = values[at] + shift
        features = np.random.default_rng(0).normal(size=(len(rows["holdout"]), 8)).astype(np.float32)
        arrays["holdout/features"] = features  # what the utility gate looks at: the same for every model
        return Observations(model, "s", arrays, {"spaces": ["backbone", "projector"], "random": True})

    def draw(self, count: int) -> np.ndarray:
        """Choose examples to forget, bool [n]."""
        chosen = np.zeros(len(self.keys), dtype=bool)
        chosen[self.rng.choice(np.flatnonzero(self.trained), count, replace=False)] = True
        return chosen

    def sets(self, count: int, size: int) -> list[np.ndarray]:
        """Disjoint sets of trained examples, each bool [n]."""
        order = self.rng.permutation(np.flatnonzero(self.trained))[: count * size].reshape(count, size)
        return [np.isin(np.arange(len(self.keys)), one) for one in order]
