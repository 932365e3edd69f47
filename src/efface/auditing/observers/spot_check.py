"""Check stored observations against the model: observe a few examples again, drawn at random at each check.

A digest tells whether a file was edited by somebody who did not know better. Who knows better computes the digest
again. But no file can hold another model's scores of most examples and agree with this model on examples that nobody
could foresee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from efface.auditing.observations import COMPANIONS, WITHHELD, Observations
from efface.auditing.observers.model_observer import CONTROL_PART
from efface.auditing.observers.observe import RENEWED_PARTS, count_observed, observe_model, select_positions
from efface.auditing.observers.settings import ObservationSettings
from efface.data.array_files import row_chunks
from efface.data.dataset import Data
from efface.data.split import Split
from efface.data.split_parts import no_positions
from efface.training.augment import Views
from efface.training.model import Model

CHECKED = 16
"""Examples of each part that are observed again. If half of a part were forged, 2^-16 is the chance to miss it."""
TOLERANCE = 0.02
"""Largest difference in standard deviations of the array: other hardware differs by less, and a change by as little
moves no AUC by more than 0.006."""


def spot_check(
    stored: Observations,
    model: Model,
    data: Data,
    split: Split,
    views: Views,
    settings: ObservationSettings,
    withheld: Data | None = None,
) -> str:
    """Observe a few examples again, and say in what the stored observations differ; empty if in nothing.

    Args:
        stored: The observations to check.
        model: The model that they are said to be of.
        data: The data set.
        split: The split that they are said to be of.
        views: Distribution of the random views.
        settings: How they are said to have been observed.
        withheld: The auditor's own pictures that they are said to be of as well.

    """
    rows = select_positions(split, settings, data)
    few = _draw_few(rows, split)
    settings = replace(settings, valid=False)
    drawn = None if withheld is None else _draw_withheld(stored, withheld)
    parts = [*rows, *CONTROL_PART, WITHHELD]
    again = observe_model(model, data, few, views, settings, parts=parts, withheld=drawn)
    renewed = observe_model(model, data, replace(few, retain=split.retain), views, settings, parts=[RENEWED_PARTS])
    arrays = again.arrays | renewed.arrays
    expected = again.meta | count_observed(split, rows)
    if any(stored.meta.get(name) != value for name, value in expected.items()):
        return "they were made in another way than they say"
    extra = [
        name for name in stored.arrays.keys() - arrays.keys() if not (name.endswith(".margin") and "valid/" in name)
    ]
    for name in sorted((arrays.keys() - stored.arrays.keys()) | set(extra)):
        return f"the array '{name}' is {'missing' if name in arrays else 'unknown'}"
    places: dict[str, np.ndarray] = {}
    for name in arrays:
        part, slash, what = name.partition("/")
        if slash and what == "keys":
            places[part] = _find_rows(stored.of(part, "keys"), arrays[name])
    for name, value in arrays.items():
        if not _agrees(stored.arrays[name], places.get(name.partition("/")[0]), value):
            return f"the array '{name}' holds numbers that the model does not give"
    return ""


def _draw_few(rows: Mapping[str, np.ndarray], split: Split) -> Split:
    """Draw a few of the observed examples of each part, but keep ``valid``, which the bank is made of."""
    both = {**rows, "test": min(rows["test"], rows["control"], key=len)}  # one sample is a part of the other
    random = np.random.default_rng()
    few = {
        part: np.sort(random.permutation(both[part])[:CHECKED])
        for part in ("forget", "holdout", "retain", "spare", "test")
    }
    companions = random.permutation(rows.get(COMPANIONS, no_positions()))[:CHECKED]  # found anew in these parts
    few |= {part: np.union1d(few[part], np.intersect1d(companions, both[part])) for part in ("spare", "test")}
    return replace(split, **few)


def _draw_withheld(stored: Observations, withheld: Data) -> Data | None:
    """Draw a few of the withheld pictures that were observed; None if none were, which is then found missing."""
    held = set(stored.of(WITHHELD, "keys").tolist()) if stored.has(WITHHELD, "keys") else set[str]()
    rows = np.array([row for row, key in enumerate(withheld.keys.tolist()) if key in held or not held], dtype=np.int64)
    chosen = np.sort(np.random.default_rng().permutation(rows)[:CHECKED])
    return withheld.take(chosen) if len(chosen) else None


def _find_rows(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows of some keys among stored ones, and the number of these; -1: not there, or a stored key repeats."""
    place = {key: row for row, key in enumerate(keys.tolist())}
    unique = len(place) == len(keys)
    rows = [place.get(key, -1) if unique else -1 for key in wanted.tolist()]
    return np.array([*rows, len(keys)], dtype=np.int64)


def _agrees(stored: np.ndarray, places: np.ndarray | None, again: np.ndarray) -> bool:
    """Whether a stored array agrees with what was observed again; ``places``: see :func:`_find_rows`."""
    held = stored
    if places is not None:
        if places.min() < 0 or len(stored) != places[-1]:
            return False
        held = stored[places[:-1]]
    if held.shape != again.shape:
        return False
    if again.dtype.kind != "f":
        return bool((held == again).all())
    allowed = TOLERANCE * _spread(stored) + 1e-5 * float(np.abs(again).max(initial=0))
    return bool((np.abs(held - again) <= allowed).all())


def _spread(x: np.ndarray) -> float:
    """The standard deviation of all numbers of an array, computed a part at a time."""
    if not x.size:
        return 0.0
    rows = np.atleast_1d(x)
    mean = sum(float(rows[part].sum(dtype=np.float64)) for part in row_chunks(rows)) / x.size
    squares = (float(np.square(rows[part] - mean, dtype=np.float64).sum()) for part in row_chunks(rows))
    return float(np.sqrt(sum(squares) / x.size))
