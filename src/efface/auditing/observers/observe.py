"""Observe a model: the torch side of the border between models and evidence.

Every example is seen in the same random views whatever the model, the batch size or the order: the views are seeded
by the example's key. The model is in evaluation mode, in float32, and is left bit-identical.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efface.auditing.observations import Observations
from efface.data.dataset import Data
from efface.data.split import Split
from efface.errors import EffaceError
from efface.training.augment import ViewParams, Views
from efface.training.gradients import input_norms
from efface.training.model import Model

PROJECTOR_SPACE = "projector"


@dataclass(frozen=True, kw_only=True)
class ObservationSettings:
    """How examples are looked at; the same for every model that is compared."""

    views: int = 10
    """Random views per example."""
    temperature: float = 0.1
    """Temperature τ of the contrastive margin."""
    bank: int = 1024
    """How many valid examples serve as the margin's public bank."""
    cap: int = 2000
    """How many retained, spare and valid examples are looked at (a fixed random sample); forget and holdout: all."""
    test_cap: int = 5000
    """How many test examples are looked at."""
    prompt: str = "{}"
    """What the name of a class is put into, for zero-shot accuracy of image-text models."""
    gradient: bool = True
    """Whether the gradient norm is measured (a backward pass per example)."""
    valid: bool = False
    """Whether valid examples get margins too, each against the bank without itself: what choosing settings needs."""
    batch_size: int = 64
    """Examples looked at together; changes nothing but speed."""

    def __post_init__(self) -> None:
        if self.views < 2:
            raise EffaceError(f"{self.views} views cannot be compared.", "Alignment is about pairs.", "Set views >= 2.")
        if "{}" not in self.prompt:
            raise EffaceError(f"The prompt '{self.prompt}' has no place for a name.", remedy="Write {} for the name.")


def observe_model(
    model: Model,
    data: Data,
    split: Split,
    views: Views,
    watch: ObservationSettings = ObservationSettings(),
    *,
    parts: Collection[str] | None = None,
    scratch: Path | None = None,
) -> Observations:
    """Look at every part of the split through one model; see :mod:`efface.auditing.observations` for the arrays.

    ``views``: the random views to look through (the ones it was trained with). ``parts``: only these; by default all.
    ``scratch``: a folder for memory-mapped arrays, so that memory does not grow with the number of examples.
    """
    if len(split.valid) < 8:
        raise EffaceError(
            f"An audit needs a bank of unseen examples, and `valid` has {len(split.valid)}.",
            remedy="Set split.valid to at least 8 examples (better 500) when pretraining.",
        )
    if model.objective.needs_captions and data.text is None:
        raise EffaceError(f"An image-text model is looked at through captions, and {data.name} has none.")
    rows = select_positions(split, watch, data)
    arrays: dict[str, np.ndarray] = {}
    with _evaluation_mode(model):
        look = _Observer(model, data, views, watch, scratch)
        look.build_bank(_sample(data, rows["valid"], watch.bank))
        for part, positions in rows.items():
            if len(positions) and (parts is None or part in parts):
                found = look.part(part, positions, signals=part not in ("test", "valid"))
                if part == "valid" and watch.valid:
                    found |= look.leave_one_out_margins(positions)
                arrays |= {f"{part}/{name}": value for name, value in found.items()}
        if look.captioned and data.classes:
            names = [watch.prompt.replace("{}", name) for name in data.classes]
            arrays["prompts/text"] = look.embed_text(names).cpu().numpy()
    return Observations(model.digest(), split.digest(data), arrays, _meta(look, split, rows))


@contextmanager
def _evaluation_mode(model: Model) -> Iterator[None]:
    """The model in evaluation mode and in float32; afterwards each module is in the mode it was in."""
    training, bf16 = {m: m.training for m in model.modules()}, model.bf16
    model.eval()
    model.bf16 = False
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        model.bf16 = bf16


def _meta(look: _Observer, split: Split, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the arrays were made with."""
    return {
        "spaces": look.spaces,
        "classifier": look.classifier,
        "classes": list(look.data.classes),
        "views": look.watch.views,
        "temperature": look.watch.temperature,
        "bank": len(look.bank_keys),
        "random": bool(split.provenance.get("random", True)),
        "sizes": {part: len(positions) for part, positions in rows.items()},
        "whole": {part: len(getattr(split, part)) for part in rows},
    }


def select_positions(split: Split, watch: ObservationSettings, data: Data) -> dict[str, np.ndarray]:
    """Which positions of each part are looked at: all of forget and holdout, a random sample of large others.

    The sample is drawn by key, so it does not depend on the order of the data, and from the whole part, so no class
    is missed by position.
    """
    caps = {"retain": watch.cap, "spare": watch.cap, "valid": watch.cap, "test": watch.test_cap}
    chosen: dict[str, np.ndarray] = {}
    for part in ("forget", "holdout", "retain", "spare", "valid", "test"):
        positions = getattr(split, part)
        if len(positions) > caps.get(part, len(positions)):
            positions = _sample(data, positions, caps[part])
        chosen[part] = positions
    return chosen


def _sample(data: Data, positions: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the positions, sorted: a draw that only the keys decide."""
    rank = np.array([_seed(str(key), "sample") for key in data.keys[positions]], dtype=np.uint64)
    return np.sort(positions[np.argsort(rank, kind="stable")[:count]])


def bank_logsumexp(close: Tensor, own: Tensor | None = None) -> Tensor:
    """logsumexp over the bank of similarities [b, v, K], mean over the views, [b].

    ``own``: each example's row in the bank, or -1; it is left out, and log(K / (K - 1)) put back.
    """
    if own is None:
        return close.logsumexp(-1).mean(1)
    members, size = (own >= 0).nonzero()[:, 0], close.shape[-1]
    close[members, :, own[members]] = -torch.inf
    return close.logsumexp(-1).mean(1) + (own >= 0) * math.log(size / (size - 1))


class _Observer:
    """One model looked through: its bank, its spaces, its arrays."""

    def __init__(
        self, model: Model, data: Data, views: Views, watch: ObservationSettings, scratch: Path | None
    ) -> None:
        self.model, self.data, self.views, self.watch, self.scratch = model, data, views, watch, scratch
        self.classifier, self.captioned = model.objective.needs_labels, model.objective.needs_captions
        self.spaces = ["backbone"] if self.classifier else ["backbone", PROJECTOR_SPACE]
        self.device = model.mean.device
        self.banks: Mapping[str, Tensor] = {}
        self.bank_keys: np.ndarray = np.array([])
        self.captions = torch.empty(0)

    @torch.no_grad()
    def build_bank(self, positions: np.ndarray) -> None:
        """Embed one random view of each bank example in each space, and its caption, normalized, [K, d]."""
        self.bank_keys = self.data.keys[positions]
        seen = [self.embed(self.views_of(rows, 1)[:, 0]) for rows in self.chunks(positions)]
        self.banks = {space: torch.cat([F.normalize(z[space], dim=-1) for z in seen]) for space in self.spaces}
        if self.captioned:
            self.captions = F.normalize(self.embed_text(self.texts(positions)), dim=-1)

    def chunks(self, positions: np.ndarray) -> Iterator[np.ndarray]:
        """Positions in batches."""
        for start in range(0, len(positions), self.watch.batch_size):
            yield positions[start : start + self.watch.batch_size]

    def texts(self, rows: np.ndarray) -> list[str]:
        """Captions of image-text data."""
        return [self.data.text[row] for row in rows] if self.data.text is not None else []

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """The text tower's embeddings, [b, d]."""
        size = self.watch.batch_size
        return torch.cat([self.model.encode_text(captions[at : at + size]) for at in range(0, len(captions), size)])

    def images(self, rows: np.ndarray) -> Tensor:
        """Un-augmented images in [0, 1], [b, C, H, W]."""
        return torch.from_numpy(np.ascontiguousarray(self.data.x[rows])).to(self.device).float().div_(255)

    def views_of(self, rows: np.ndarray, count: int) -> Tensor:
        """``count`` random views of each image, seeded by its key, [b, count, C, H, W]."""
        clean = self.images(rows)
        drawn = []
        for key in self.data.keys[rows]:
            generator = torch.Generator().manual_seed(_seed(str(key), "views"))
            drawn.append(self.views.draw_params(count, clean.shape[1:], generator))
        params = ViewParams.cat(drawn).to(self.device)
        seen = self.views.apply(clean.repeat_interleave(count, 0), params)
        return seen.view(len(rows), count, *clean.shape[1:])

    def embed(self, x: Tensor) -> dict[str, Tensor]:
        """Every space's embedding of images [b, C, H, W], un-normalized, [b, d]."""
        features = self.model.features(x)
        return (
            {"backbone": features}
            if self.classifier
            else {
                "backbone": features,
                PROJECTOR_SPACE: self.model.project(features),
            }
        )

    def part(self, part: str, positions: np.ndarray, *, signals: bool) -> dict[str, np.ndarray]:
        """All arrays of one part."""
        arrays: dict[str, np.ndarray] = {"keys": self.data.keys[positions]}
        if self.data.y is not None:
            arrays["labels"] = self.data.y[positions]
        start = 0
        for rows in self.chunks(positions):
            found = self.clean(rows) | (self.signals(rows) if signals else {})
            for name, value in found.items():
                if name not in arrays:
                    arrays[name] = self.allocate(f"{part}.{name}", (len(positions), *value.shape[1:]))
                arrays[name][start : start + len(rows)] = value.cpu().numpy()
            start += len(rows)
        return arrays

    def leave_one_out_margins(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The margins of examples that may be in the bank: each against the others in it.

        One fewer to be compared with would lower its logsumexp by log(K / (K - 1)), which is put back.
        """
        keys, places = self.data.keys, {key: row for row, key in enumerate(self.bank_keys.tolist())}
        found: dict[str, list[np.ndarray]] = {}
        for rows in self.chunks(positions):
            own = torch.tensor([places.get(key, -1) for key in keys[rows].tolist()], device=self.device)
            views = self.views_of(rows, self.watch.views)
            seen = self.similarities(views, own) | (self.agreement(rows, views, own) if self.captioned else {})
            for name, value in seen.items():
                if name.endswith(".margin"):
                    found.setdefault(name, []).append(value.cpu().numpy())
        return {name: np.concatenate(values) for name, values in found.items()}

    def allocate(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An empty float32 array, on disk where there is a scratch folder."""
        if self.scratch is None:
            return np.empty(shape, np.float32)
        return np.lib.format.open_memmap(self.scratch / f"{name}.npy", "w+", np.float32, shape)

    @torch.no_grad()
    def clean(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Features of the un-augmented images, and their logits, or their and their captions' embeddings."""
        features = self.model.features(self.images(rows))
        found = {"features": features}
        if self.classifier:
            found["logits"] = self.model.project(features)
        if self.captioned:
            found |= {"image": self.model.project(features), "text": self.embed_text(self.texts(rows))}
        return found

    def signals(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Per-example membership signals of every space."""
        views = self.views_of(rows, self.watch.views)
        found = self.similarities(views) | (self.agreement(rows, views) if self.captioned else {})
        if self.watch.gradient:
            found["gradient_norm"] = self.input_gradient_norm(rows, views)
        return found

    @torch.no_grad()
    def similarities(self, views: Tensor, own: Tensor | None = None) -> dict[str, Tensor]:
        """Pair cosines, margin and norm, from views [b, v, C, H, W]. ``own``: each image's row in the bank, or -1."""
        count, tau = views.shape[1], self.watch.temperature
        upper = torch.triu_indices(count, count, 1, device=views.device)
        found: dict[str, Tensor] = {}
        for space, flat in self.embed(views.flatten(0, 1)).items():
            z = F.normalize(flat, dim=-1).view(len(views), count, -1)
            pairs = (z @ z.transpose(1, 2))[:, upper[0], upper[1]]
            crowd = bank_logsumexp(z @ self.banks[space].T / tau, own)
            found[f"{space}.pairs"] = pairs
            found[f"{space}.margin"] = pairs.mean(1) / tau - crowd
            found[f"{space}.norm"] = flat.norm(dim=-1).view(len(views), count).mean(1)
        return found

    @torch.no_grad()
    def agreement(self, rows: np.ndarray, views: Tensor, place: Tensor | None = None) -> dict[str, Tensor]:
        """Cosine of image and caption, and its margin over the bank's captions, means over the views, [b].

        ``place``: each example's row in the bank, or -1.
        """
        v = F.normalize(self.embed_text(self.texts(rows)), dim=-1)
        u = F.normalize(self.embed(views.flatten(0, 1))[PROJECTOR_SPACE], dim=-1).view(len(rows), -1, v.shape[1])
        own, tau = (u * v[:, None]).sum(-1), self.watch.temperature
        crowd = bank_logsumexp(u @ self.captions.T / tau, place)
        return {"pair.similarity": own.mean(1), "pair.margin": own.mean(1) / tau - crowd}

    def input_gradient_norm(self, rows: np.ndarray, views: Tensor) -> Tensor:
        """‖∂ℓ/∂x‖₂, [b]: cross-entropy of the un-augmented image, or -log p(second view, or caption, among a bank)."""
        if self.classifier and self.data.y is not None:
            y = torch.from_numpy(np.maximum(self.data.y[rows], 0)).to(self.device)
            return input_norms(lambda x: F.cross_entropy(self.model(x), y, reduction="none"), self.images(rows))
        space, tau = self.spaces[-1], self.watch.temperature
        bank = self.captions if self.captioned else self.banks[space]
        with torch.no_grad():
            partner = self.embed_text(self.texts(rows)) if self.captioned else self.embed(views[:, 1])[space]
            positive = F.normalize(partner, dim=-1)

        def loss(x: Tensor) -> Tensor:
            z = F.normalize(self.embed(x)[space], dim=-1)
            own = (z * positive).sum(-1, keepdim=True) / tau
            return torch.cat([own, z @ bank.T / tau], -1).logsumexp(-1) - own[:, 0]

        return input_norms(loss, views[:, 0])


def _seed(key: str, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{key}".encode(), digest_size=7).digest())
