"""Observe a model: run it on every part of a split and store its outputs as arrays.

The random views of an example are seeded by its key, so they are the same for every model, batch size and order. The
model runs in evaluation mode in float32, and is left bit-identical.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efface.auditing.observations import COMPANIONS, WITHHELD, Observations
from efface.auditing.observers.batchnorm import estimate_statistics_anew, has_running_statistics
from efface.auditing.observers.rows import RowArrays
from efface.config import Settings
from efface.data.dataset import Data
from efface.data.matching import find_companions
from efface.data.split import Split
from efface.errors import EffaceError
from efface.schema import Count, PairCount, Positive
from efface.training.augment import Views, uniform
from efface.training.gradients import input_norms
from efface.training.model import Model
from efface.training.processes import ONE, current_world

Observed = Callable[[int, int], None]
"""Receives how many examples are observed, and of how many."""
PROJECTOR_SPACE = "projector"
"""Name of the space after the projection head."""
CONTROL_PART = {"control": "test"}
"""The control of the holdout is a sample of the test part, observed like the holdout."""
RENEWED = {"forget": "renewed-forget", "holdout": "renewed-holdout"}
"""Parts that are also observed with BatchNorm statistics estimated anew, and under which names; see
:mod:`efface.auditing.observers.batchnorm`."""
RENEWED_PARTS = "renewed"
"""Both of them together, among ``parts``."""
RENEWAL_BATCH = 256
"""Images per batch of that estimate."""


@dataclass(frozen=True, kw_only=True)
class ObservationSettings(Settings):
    """How examples are observed; must be the same for all models that are compared."""

    views: PairCount = 10
    """Random views per example."""
    temperature: Positive = 0.1
    """Temperature τ of the contrastive margin."""
    bank: Count = 1024
    """Number of valid examples in the bank to which the margin compares."""
    cap: Count = 2000
    """Largest number of retained, spare, valid and control examples (a random sample); forget, holdout: all."""
    test_cap: Count = 5000
    """Largest number of test examples."""
    prompt: str = "{}"
    """Template for class names, for the zero-shot accuracy of image-text models; {} is the name."""
    gradient: bool = True
    """Whether to measure gradient norms (a backward pass per example)."""
    valid: bool = False
    """Whether to compute margins of valid examples, each against the bank without itself; selection needs them."""
    batch_size: Count = 64
    """Examples per batch; affects the speed only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{}" not in self.prompt:
            raise EffaceError(f"The prompt '{self.prompt}' has no place for a name.", remedy="Write {} for the name.")


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
        observer = _Observer(model, data, views, settings, scratch)
        observer.build_bank(sample_by_key(data, rows["valid"], settings.bank))
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
            arrays |= _observe_renewed(observer, rows)
        if withheld is not None and (parts is None or WITHHELD in parts):
            arrays |= _observe_withheld(observer, withheld)
    return Observations(model.digest(), split.digest(data), arrays, _meta(observer, split, rows))


def _observe_renewed(observer: _Observer, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Observe forget and holdout through a copy whose BatchNorm statistics are estimated anew on retained images."""
    drawn = rows["retain"]
    batches = np.array_split(drawn, max(1, len(drawn) // RENEWAL_BATCH))
    views = (torch.cat([observer.views_of(part, 1)[:, 0] for part in observer.chunks(batch)]) for batch in batches)
    renewed = estimate_statistics_anew(observer.model, views)
    second = _Observer(
        renewed, observer.data, observer.views, replace(observer.settings, gradient=False), observer.scratch
    )
    second.build_bank(sample_by_key(observer.data, rows["valid"], observer.settings.bank))
    found: dict[str, np.ndarray] = {}
    for part, name in RENEWED.items():
        if len(rows[part]):
            arrays = second.part(name, rows[part], signals=True)
            found |= {f"{name}/{key}": value for key, value in arrays.items() if key != "features"}
    return found


def _observe_withheld(observer: _Observer, withheld: Data) -> dict[str, np.ndarray]:
    """Observe other data against the observer's own bank."""
    second = _Observer(
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


def _meta(observer: _Observer, split: Split, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
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
    rank = np.array([_seed(str(key), "sample") for key in data.keys[positions]], dtype=np.uint64)
    return np.sort(positions[np.argsort(rank, kind="stable")[:count]])


def bank_logsumexp(close: Tensor, own: Tensor | None = None) -> Tensor:
    """Compute the logsumexp over the bank of similarities [b, v, K], mean over the views: [b].

    ``own`` is each example's row in the bank, or -1. That row is left out, and log(K / (K - 1)) is added to correct for
    the smaller bank.
    """
    if own is None:
        return close.logsumexp(-1).mean(1)
    members, size = (own >= 0).nonzero()[:, 0], close.shape[-1]
    close[members, :, own[members]] = -torch.inf
    return close.logsumexp(-1).mean(1) + (own >= 0) * math.log(size / (size - 1))


class _Observer:
    """Computes the arrays of one model: its bank, spaces and signals."""

    def __init__(
        self, model: Model, data: Data, views: Views, settings: ObservationSettings, scratch: Path | None
    ) -> None:
        self.model, self.data, self.views, self.settings, self.scratch = model, data, views, settings, scratch
        self.classifier, self.captioned = model.objective.needs_labels, model.objective.needs_captions
        self.spaces = ["backbone"] if self.classifier else ["backbone", PROJECTOR_SPACE]
        self.device = model.mean.device
        self.banks: Mapping[str, Tensor] = {}
        self.bank_keys: np.ndarray = np.array([])
        self.captions = torch.empty(0)
        self.report: Callable[[int], None] | None = None
        self.seen = 0

    @torch.no_grad()
    def build_bank(self, positions: np.ndarray) -> None:
        """Embed one random view of each bank example in each space, and its caption, normalized, [K, d]."""
        self.bank_keys = self.data.keys[positions]
        embedded = [self.embed(self.views_of(rows, 1)[:, 0]) for rows in self.chunks(positions)]
        self.banks = {space: torch.cat([F.normalize(z[space], dim=-1) for z in embedded]) for space in self.spaces}
        if self.captioned:
            self.captions = F.normalize(self.embed_text(self.texts(positions)), dim=-1)

    def chunks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the positions in batches."""
        for start in range(0, len(positions), self.settings.batch_size):
            yield positions[start : start + self.settings.batch_size]

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return the captions of image-text data; an empty list without captions."""
        return [self.data.text[row] for row in rows] if self.data.text is not None else []

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Return the text tower's embeddings, [b, d]."""
        size = self.settings.batch_size
        return torch.cat([self.model.encode_text(captions[at : at + size]) for at in range(0, len(captions), size)])

    def images(self, rows: np.ndarray) -> Tensor:
        """Return the un-augmented images in [0, 1], [b, C, H, W]."""
        return torch.from_numpy(np.ascontiguousarray(self.data.x[rows])).to(self.device).float().div_(255)

    def views_of(self, rows: np.ndarray, count: int) -> Tensor:
        """Return ``count`` random views of each image, seeded by its key, [b, count, C, H, W]."""
        clean = self.images(rows)
        seeds = [_seed(str(key), "views") for key in self.data.keys[rows]]
        drawn = torch.cat([uniform(count, torch.Generator().manual_seed(seed)) for seed in seeds])
        params = self.views.params(drawn, clean.shape[1:]).to(self.device)
        augmented = self.views.apply(clean.repeat_interleave(count, 0), params)
        return augmented.view(len(rows), count, *clean.shape[1:])

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """Return the un-normalized embeddings [b, d] of images [b, C, H, W] in every space."""
        features = self.model.features(x)
        if self.classifier:
            return {"backbone": features}
        return {"backbone": features, PROJECTOR_SPACE: self.model.project(features)}

    def part(self, part: str, positions: np.ndarray, *, signals: bool) -> dict[str, np.ndarray]:
        """Compute all arrays of one part."""
        arrays: dict[str, np.ndarray] = {"keys": self.data.keys[positions]}
        if self.data.y is not None:
            arrays["labels"] = self.data.y[positions]
        start, held = 0, None
        for found in current_world().share_out(self.chunks(positions), lambda rows: self.look(part, rows, signals)):
            held = held or RowArrays(len(positions), found, self.scratch)
            held.write(start, found)
            start += len(found["features"])
            self.seen += len(found["features"])
            if self.report:
                self.report(self.seen)
        return arrays if held is None else arrays | held.finish()

    def look(self, part: str, rows: np.ndarray, signals: bool) -> dict[str, np.ndarray]:
        """Compute the arrays of some examples of a part."""
        found = self.clean(rows) | (self.signals(rows, gradient=part not in CONTROL_PART) if signals else {})
        return {name: value.cpu().numpy() for name, value in found.items()}

    def leave_one_out_margins(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the margins of examples that may be in the bank, each against the bank without itself.

        A bank with one row less lowers the logsumexp by log(K / (K - 1)); :func:`bank_logsumexp` corrects for it.
        """
        keys, bank_rows = self.data.keys, {key: row for row, key in enumerate(self.bank_keys.tolist())}
        found: dict[str, list[np.ndarray]] = {}
        for rows in self.chunks(positions):
            own = torch.tensor([bank_rows.get(key, -1) for key in keys[rows].tolist()], device=self.device)
            views = self.views_of(rows, self.settings.views)
            arrays = self.similarities(views, own) | (self.agreement(rows, views, own) if self.captioned else {})
            for name, value in arrays.items():
                if name.endswith(".margin"):
                    found.setdefault(name, []).append(value.cpu().numpy())
        return {name: np.concatenate(values) for name, values in found.items()}

    @torch.no_grad()
    def clean(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Compute features of the un-augmented images, and logits or image and caption embeddings."""
        features = self.model.features(self.images(rows))
        found = {"features": features}
        if self.classifier:
            found["logits"] = self.model.project(features)
        if self.captioned:
            found |= {"image": self.model.project(features), "text": self.embed_text(self.texts(rows))}
        return found

    def signals(self, rows: np.ndarray, *, gradient: bool = True) -> dict[str, Tensor]:
        """Compute the membership signals of every space for each example."""
        views = self.views_of(rows, self.settings.views)
        found = self.similarities(views) | (self.agreement(rows, views) if self.captioned else {})
        if self.settings.gradient and gradient:
            found["gradient_norm"] = self.input_gradient_norm(rows, views)
        return found

    @torch.no_grad()
    def similarities(self, views: Tensor, own: Tensor | None = None) -> dict[str, Tensor]:
        """Compute pair cosines, margin and norm from views [b, v, C, H, W].

        ``own`` is each image's row in the bank, or -1.
        """
        count, tau = views.shape[1], self.settings.temperature
        upper = torch.triu_indices(count, count, 1, device=views.device)
        found: dict[str, Tensor] = {}
        for space, flat in self.embed(views.flatten(0, 1)).items():
            z = F.normalize(flat, dim=-1).view(len(views), count, -1)
            pairs = (z @ z.transpose(1, 2))[:, upper[0], upper[1]]
            bank = bank_logsumexp(z @ self.banks[space].T / tau, own)
            found[f"{space}.pairs"] = pairs
            found[f"{space}.margin"] = pairs.mean(1) / tau - bank
            found[f"{space}.norm"] = flat.norm(dim=-1).view(len(views), count).mean(1)
        return found

    @torch.no_grad()
    def agreement(self, rows: np.ndarray, views: Tensor, own: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the cosine of image and caption, and its margin over the bank's captions: means over views, [b].

        ``own`` is each example's row in the bank, or -1.
        """
        v = F.normalize(self.embed_text(self.texts(rows)), dim=-1)
        u = F.normalize(self.embed(views.flatten(0, 1))[PROJECTOR_SPACE], dim=-1).view(len(rows), -1, v.shape[1])
        cosine, tau = (u * v[:, None]).sum(-1).mean(1), self.settings.temperature
        bank = bank_logsumexp(u @ self.captions.T / tau, own)
        return {"pair.similarity": cosine, "pair.margin": cosine / tau - bank}

    def input_gradient_norm(self, rows: np.ndarray, views: Tensor) -> Tensor:
        """Compute ‖∂ℓ/∂x‖₂, [b].

        ℓ is the cross-entropy of the un-augmented image, or -log p of the second view (or the caption) among the bank.
        """
        if self.classifier and self.data.y is not None:
            y = torch.from_numpy(np.maximum(self.data.y[rows], 0)).to(self.device)
            return input_norms(lambda x: F.cross_entropy(self.model(x), y, reduction="none"), self.images(rows))
        space, tau = self.spaces[-1], self.settings.temperature
        bank = self.captions if self.captioned else self.banks[space]
        with torch.no_grad():
            partner = self.embed_text(self.texts(rows)) if self.captioned else self.embed(views[:, 1])[space]
            positive = F.normalize(partner, dim=-1)

        def loss(x: Tensor) -> Tensor:
            z = F.normalize(self.embed(x)[space], dim=-1)
            match = (z * positive).sum(-1, keepdim=True) / tau
            return torch.cat([match, z @ bank.T / tau], -1).logsumexp(-1) - match[:, 0]

        return input_norms(loss, views[:, 0])


def _seed(key: str, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{key}".encode(), digest_size=7).digest())
