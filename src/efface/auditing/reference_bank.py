"""The reference bank: scores of every example under models that were trained on random halves of the training data.

A bank is made once for an original and serves every later request. Its K models come in complementary pairs: a pair
divides the training examples in two halves, and each half trains one model. So every training example is *out* of
exactly K/2 models, of one in each pair, and what it scores there is what it would score had it never been seen.

    calibrated score of x  =  s(x) - mean of s_k(x) over the models k that never saw x

Never-trained examples are out of all models. For each pair one of the two models is drawn for them by their key, so
that their mean has the same number of terms and the same spread: under a model that never saw the forgotten examples,
calibrated scores of forgotten and never-trained examples are exchangeable, and their AUC is 0.5.

Nothing in a bank depends on a request. A bank can be divided before use: a method that takes targets from it gets the
pairs 0, 2, 4, ..., and the audit of what it made uses the pairs 1, 3, 5, ... (:meth:`ReferenceBank.part_for`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from efface.auditing.observations import OBSERVED_PARTS, WITHHELD, Observations
from efface.data.dataset import quote_first
from efface.errors import EffaceError

FEWEST_PAIRS = 1
"""A calibration needs at least one model of one pair that never saw an example."""


@dataclass(frozen=True, eq=False)
class ReferenceBank:
    """Scores of the same examples under K half-data models, and which model was trained on which examples."""

    original: str
    """Digest of the weights of the original that the bank was made for."""
    keys: np.ndarray
    """Keys of all examples, str [n]."""
    trained: np.ndarray
    """Which of them the original was trained on, bool [n]; the others are in no model."""
    inside: np.ndarray
    """Which examples each model was trained on, bool [K, n]; models 2p and 2p + 1 are the pair p."""
    scores: dict[str, np.ndarray]
    """Name of a signal to scores, float [K, n]; higher is more member-like, NaN where an example has no such score."""
    valid: np.ndarray
    """Which never-trained examples methods may use as a yardstick; only their margins are known, bool [n]."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """How the models were observed and trained: ``watch``, ``drawn``, ``valid``, ``unit``, ``epochs``."""

    def __post_init__(self) -> None:
        """Check that every pair divides exactly the trained examples in two."""
        models, n = self.inside.shape
        if models < 2 * FEWEST_PAIRS or models % 2 or n != len(self.keys) or len(self.trained) != n:
            raise EffaceError(
                f"{models} models on {n} examples are not a reference bank.", "Its models come in complementary pairs."
            )
        for pair in range(models // 2):
            first, second = self.inside[2 * pair], self.inside[2 * pair + 1]
            if (first & second).any() or not np.array_equal(first | second, self.trained):
                raise EffaceError(
                    f"The models {2 * pair} and {2 * pair + 1} of the reference bank are not a pair.",
                    "Each training example must have trained exactly one of the two.",
                    "Make the bank again: `efface references RUN --bank 8`.",
                )
        for name, values in self.scores.items():
            if values.shape != (models, n):
                raise EffaceError(f"{name} of the reference bank has the shape {values.shape}, not {(models, n)}.")

    @property
    def models(self) -> int:
        """The number of models K."""
        return len(self.inside)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Position of each key."""
        return {key: row for row, key in enumerate(self.keys.tolist())}

    @cached_property
    def chosen(self) -> np.ndarray:
        """The model of each pair whose score counts as "never saw it", as indices [K/2, n]."""
        pairs = self.models // 2
        outside = np.empty((pairs, len(self.keys)), dtype=np.int64)
        for pair in range(pairs):
            drawn = np.array([draw_side(key, pair) for key in self.keys.tolist()], dtype=np.int64)
            outside[pair] = 2 * pair + np.where(self.trained, self.inside[2 * pair].astype(np.int64), drawn)
        return outside

    def out_scores(self, signal: str) -> np.ndarray:
        """Scores of every example under the models that never saw it, one of each pair, [K/2, n]."""
        return np.take_along_axis(self.scores[signal], self.chosen, axis=0)

    def positions(self, keys: Sequence[str] | np.ndarray) -> np.ndarray:
        """Positions of examples by key, [m].

        Raises:
            EffaceError: The bank holds no scores of some of them.

        """
        known = self.rows
        missing = [str(key) for key in keys if str(key) not in known]
        if missing:
            raise EffaceError(
                f"The reference bank holds no scores of {len(missing)} examples of the audit.",
                f"Such as {quote_first(missing)}: it was made for other data or another split.",
                "Make a bank for this original: `efface references RUN --bank 8`.",
            )
        return np.array([known[str(key)] for key in keys], dtype=np.int64)

    def part_for(self, user: Literal["method", "audit"]) -> ReferenceBank:
        """Return the pairs that a method may have used, or those that are left for the audit.

        Raises:
            EffaceError: The bank has fewer than two pairs.

        """
        pairs = np.arange(self.models // 2)
        kept = pairs[pairs % 2 == (0 if user == "method" else 1)]
        if self.models < 4:
            raise EffaceError(
                "A reference bank of two models cannot be divided between a method and an audit.",
                "What a method was given may not judge it.",
                "Add models: `efface references RUN --bank 8`.",
            )
        return self.select_pairs(kept)

    def select_pairs(self, pairs: Sequence[int] | np.ndarray) -> ReferenceBank:
        """Return the bank with some of its pairs only."""
        models = np.concatenate([(2 * pair, 2 * pair + 1) for pair in pairs])
        scores = {name: values[models] for name, values in self.scores.items()}
        return ReferenceBank(self.original, self.keys, self.trained, self.inside[models], scores, self.valid, self.meta)

    def calibrate(self, observed: Observations) -> tuple[Observations, ...]:
        """Return what the models that never saw them score on the examples of some observations.

        Each of the K/2 results holds, for every example, its score under one model that never saw it (another model for
        other examples), so that audits can use them as references of these examples.

        Args:
            observed: Observations of the audited model.

        """
        found: list[dict[str, np.ndarray]] = [{} for _ in range(self.models // 2)]
        for part in OBSERVED_PARTS:
            if part in ("test", "valid", WITHHELD) or not observed.count(part):
                continue  # no audit scores them, or no model of the bank saw them
            keys = observed.of(part, "keys")
            rows = self.positions(keys)
            if observed.has(part, "labels"):  # without them a classifier's scores belong to no example
                for one in found:
                    one[f"{part}/labels"] = observed.of(part, "labels")
            for signal in self.scores:
                for one, scores in zip(found, self.out_scores(signal)[:, rows], strict=True):
                    one[f"{part}/keys"] = keys
                    one[f"{part}/score.{signal}"] = scores
        return tuple(
            Observations(f"out-{number}-{self.digest}", observed.split, arrays, {"spaces": list(observed.spaces)})
            for number, arrays in enumerate(found)
        )

    def targets(self, keys: Sequence[str] | np.ndarray, signal: str) -> np.ndarray:
        """Mean score of examples in the models that never saw them, less the mean of ``valid`` there, float64 [m].

        Raises:
            EffaceError: The bank has no such signal, or holds none of the ``valid`` examples that methods compare with.

        """
        if signal not in self.scores or not self.valid.any():
            raise EffaceError(
                f"The reference bank has no targets in {signal}.",
                "It was made by an older efface, or for another kind of model.",
                "Make it again: `efface references RUN --bank 8`.",
            )
        level = np.array([np.nanmean(row[self.valid]) for row in self.scores[signal]], dtype=np.float64)
        lifted = self.scores[signal] - level[:, None]
        return np.take_along_axis(lifted, self.chosen, axis=0)[:, self.positions(keys)].mean(axis=0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that the bank holds."""
        sha = hashlib.sha256(f"{self.original}\0".encode())
        for key in self.keys.tolist():
            sha.update(f"{key}\0".encode("utf-8", "surrogatepass"))
        for array in (self.trained, self.inside):
            sha.update(np.packbits(array).tobytes())
        for name in sorted(self.scores):
            sha.update(name.encode() + np.ascontiguousarray(self.scores[name], dtype=np.float32).tobytes())
        return sha.hexdigest()


def draw_side(key: str, pair: int) -> int:
    """Draw one of the two models of a pair for a never-trained example, 0 or 1; depends on key and pair only."""
    return hashlib.blake2b(f"{pair}\0{key}".encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] & 1


def draw_halves(units: Sequence[str], pairs: int, seed: int) -> np.ndarray:
    """Divide units in two halves, once for each pair: True for those of the first model, bool [pairs, u].

    Args:
        units: What is divided, each name once: examples, groups of them, or classes.
        pairs: The number of pairs.
        seed: Seed of the draw. More pairs later leave the earlier ones as they are.

    """
    halves = np.zeros((pairs, len(units)), dtype=bool)
    for pair in range(pairs):
        numbers = np.array([_draw_number(unit, pair, seed) for unit in units], dtype=np.uint64)
        halves[pair, np.argsort(numbers, kind="stable")[: len(units) // 2]] = True
    return halves


def _draw_number(unit: str, pair: int, seed: int) -> int:
    text = f"{seed}\0{pair}\0{unit}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
