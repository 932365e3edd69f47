"""Observe a model: run it on every part of a split and store its outputs as arrays.

The model runs in evaluation mode in float32, and is left bit-identical. What it shows of single examples:
:mod:`efface.auditing.observers.model_observer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.auditing.observations import COMPANIONS, WITHHELD, Observations
from efface.auditing.observers.batchnorm import estimate_statistics_anew, has_running_statistics
from efface.auditing.observers.model_observer import CONTROL_PART, ModelObserver, seed_of_key
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.data.matching import find_companions
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.augment import Views
from efface.training.model import Model
from efface.training.processes import ONE

Observed = Callable[[int, int], None]
"""Receives how many examples are observed, and of how many."""
RENEWED = {"forget": "renewed-forget", "holdout": "renewed-holdout"}
"""Parts that are also observed with BatchNorm statistics estimated anew, and under which names; see
:mod:`efface.auditing.observers.batchnorm`."""
RENEWED_PARTS = "renewed"
"""Both of them together, among ``parts``."""
RENEWAL_BATCH = 256
"""Images per batch of that estimate."""


def observe_model(
    model: Model,
    data: Data,
    split: Split,
    views: Views,
    settings: ObservationSettings = ObservationSettings(),
    *,
    parts: Collection[str] | None = None,
    scratch: Path | None = None,
    withheld: Data | None = None,
    on_observed: Observed = lambda done, total: None,
) -> Observations:
    """Observe every part of a split through one model; :mod:`efface.auditing.observations` lists the arrays.

    Args:
        model: The model; it is left bit-identical.
        data: The data set.
        split: Its split.
        views: Distribution of the random views, as in the model's training.
        settings: How to observe.
        parts: Parts of the split to observe; all by default.
        scratch: A folder for arrays of more than 16 MiB (:mod:`efface.auditing.observers.rows`), so that memory use
            does not grow with the number of examples. Nothing stays there.
        withheld: Pictures of the auditor's own of the same shape, observed like the holdout.
        on_observed: Called with how many examples are done, and of how many, after each batch.

    Returns:
        The observations.

    Raises:
        EffaceError: If ``valid`` is too small for a bank, or an image-text model meets data without captions.

    Example:
        >>> observed = observe_model(checkpoint.model, data, split, checkpoint.recipe.views)
        >>> observed.of("forget", "backbone.margin")

    """
    if len(split.valid) < 8:
        raise EffaceError(
            f"An audit needs a bank of unseen examples, and `valid` has {len(split.valid)}.",
            remedy="Set split.valid to at least 8 examples (better 500) when pretraining.",
        )
    if model.objective.needs_captions and data.text is None:
        raise EffaceError(f"An image-text model is observed through captions, and {data.name} has none.")
    rows = select_positions(split, settings, data)
    arrays: dict[str, np.ndarray] = {}
    with _evaluation_mode(model):
        observer = ModelObserver(model, data, views, settings, scratch)
        bank = sample_by_key(data, split.valid, settings.bank)  # the same, however many examples are observed
        observer.build_bank(bank)
        looked = {part: found for part, found in rows.items() if len(found) and (parts is None or part in parts)}
        total = sum(map(len, looked.values()))
        observer.report = lambda seen: on_observed(seen, total)
        for part, positions in rows.items():
            if part in looked:
                found = observer.part(part, positions, signals=part not in ("test", "valid"))
                if part == "valid" and settings.valid:
                    found |= observer.leave_one_out_margins(positions)
                arrays |= {f"{part}/{name}": value for name, value in found.items()}
        if observer.captioned and data.classes:
            names = [settings.prompt.replace("{}", name) for name in data.classes]
            arrays["prompts/text"] = observer.embed_text(names).cpu().numpy()
        if (parts is None or RENEWED_PARTS in parts) and has_running_statistics(model) and len(rows["retain"]) > 1:
            arrays |= _observe_renewed(observer, rows, bank)
        if withheld is not None and (parts is None or WITHHELD in parts):
            arrays |= _observe_withheld(observer, withheld)
    return Observations(model.digest(), split.digest(data), arrays, _meta(observer, split, rows))


def _observe_renewed(
    observer: ModelObserver, rows: Mapping[str, np.ndarray], bank: np.ndarray
) -> dict[str, np.ndarray]:
    """Observe forget and holdout through a copy whose BatchNorm statistics are estimated anew on retained images."""
    drawn = rows["retain"]
    batches = np.array_split(drawn, max(1, len(drawn) // RENEWAL_BATCH))
    views = (torch.cat([observer.views_of(part, 1)[:, 0] for part in observer.chunks(batch)]) for batch in batches)
    renewed = estimate_statistics_anew(observer.model, views)
    second = ModelObserver(
        renewed, observer.data, observer.views, replace(observer.settings, gradient=False), observer.scratch
    )
    second.build_bank(bank)
    found: dict[str, np.ndarray] = {}
    for part, name in RENEWED.items():
        if len(rows[part]):
            arrays = second.part(name, rows[part], signals=True)
            found |= {f"{name}/{key}": value for key, value in arrays.items() if key != "features"}
    return found


def _observe_withheld(observer: ModelObserver, withheld: Data) -> dict[str, np.ndarray]:
    """Observe other data against the observer's own bank."""
    second = ModelObserver(
        observer.model, withheld, observer.views, replace(observer.settings, gradient=False), observer.scratch
    )
    second.banks, second.bank_keys, second.captions = observer.banks, observer.bank_keys, observer.captions
    rows = sample_by_key(withheld, np.arange(len(withheld)), observer.settings.cap)
    return {f"{WITHHELD}/{name}": value for name, value in second.part(WITHHELD, rows, signals=True).items()}


@contextmanager
def _evaluation_mode(model: Model) -> Iterator[None]:
    """Put the model in evaluation mode and float32; restore the mode of each module afterwards."""
    training, bf16, world = {m: m.training for m in model.modules()}, model.bf16, model.world
    model.eval()
    model.bf16, model.world = False, ONE
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        model.bf16, model.world = bf16, world


def _meta(observer: ModelObserver, split: Split, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Describe how the arrays were computed."""
    return {
        "spaces": observer.spaces,
        "classifier": observer.classifier,
        "classes": list(observer.data.classes),
        "views": observer.settings.views,
        "temperature": observer.settings.temperature,
        "bank": len(observer.bank_keys),
        "random": bool(split.provenance.get("random", True)),
        "matched": split.provenance.get("matched"),
        "official_test": observer.data.official is not None and bool((observer.data.official == "test").any()),
        "running_statistics": has_running_statistics(observer.model),
        **count_observed(split, rows),
    }


def count_observed(split: Split, rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Count the examples of each part: those that are observed (``sizes``), and all of them (``whole``)."""
    return {
        "sizes": {part: len(positions) for part, positions in rows.items()},
        "whole": {part: len(getattr(split, CONTROL_PART.get(part, part))) for part in rows if part != COMPANIONS},
    }


def select_positions(split: Split, settings: ObservationSettings, data: Data) -> dict[str, np.ndarray]:
    """Select the positions of each part to observe: all of forget and holdout, a random sample of large other parts.

    The sample is drawn by key from the whole part, so it depends neither on the order of the data nor on where a class
    is stored.
    """
    cap = settings.cap
    caps = {"retain": cap, "spare": cap, "valid": cap, "test": settings.test_cap}
    chosen: dict[str, np.ndarray] = {}
    for part in ("forget", "holdout", "retain", "spare", "valid", "test"):
        positions = getattr(split, part)
        if len(positions) > caps.get(part, len(positions)):
            positions = sample_by_key(data, positions, caps[part])
        chosen[part] = positions
    chosen["control"] = sample_by_key(data, split.test, cap)
    if split.provenance.get("by_group") and split.provenance.get("matched") != "group":
        unseen = np.concatenate([chosen["spare"], min(chosen["test"], chosen["control"], key=len)])
        companions = find_companions(data, split.forget, unseen)
        chosen |= {COMPANIONS: companions} if len(companions) else {}
    return chosen


def sample_by_key(data: Data, positions: np.ndarray, count: int) -> np.ndarray:
    """Draw ``count`` of the positions, sorted; the draw depends on the keys only."""
    rank = np.array([seed_of_key(str(key), "sample") for key in data.keys[positions]], dtype=np.uint64)
    return np.sort(positions[np.argsort(rank, kind="stable")[:count]])
