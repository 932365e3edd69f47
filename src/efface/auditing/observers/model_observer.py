"""What one model shows of single examples: their embeddings, and the signals of membership in every space.

The random views of an example are seeded by its key, so they are the same for every model, batch size and order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efface.auditing.observers.rows import RowArrays
from efface.auditing.observers.settings import ObservationSettings
from efface.data.dataset import Data
from efface.training.augment import Views, uniform
from efface.training.gradients import input_norms
from efface.training.model import Model
from efface.training.processes import current_world

PROJECTOR_SPACE = "projector"
"""Name of the space after the projection head."""
CONTROL_PART = {"control": "test"}
"""The control of the holdout is a sample of the test part, observed like the holdout."""


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


class ModelObserver:
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
        seeds = [seed_of_key(str(key), "views") for key in self.data.keys[rows]]
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
            for name, value in self.similarities(rows, self.views_of(rows, self.settings.views), own).items():
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
        found = self.similarities(rows, views)
        if self.settings.gradient and gradient:
            found["gradient_norm"] = self.input_gradient_norm(rows, views)
        return found

    @torch.no_grad()
    def similarities(self, rows: np.ndarray, views: Tensor, own: Tensor | None = None) -> dict[str, Tensor]:
        """Compute pair cosines, margin and norm in each space, and the agreement with captions where there are any.

        Args:
            rows: Positions of the images.
            views: Their views, [b, v, C, H, W].
            own: Each image's row in the bank, or -1; None: none of them is in it.

        """
        count, tau = views.shape[1], self.settings.temperature
        upper = torch.triu_indices(count, count, 1, device=views.device)
        found, shown = dict[str, Tensor](), self.embed(views.flatten(0, 1))
        for space, flat in shown.items():
            z = F.normalize(flat, dim=-1).view(len(views), count, -1)
            pairs = (z @ z.transpose(1, 2))[:, upper[0], upper[1]]
            bank = bank_logsumexp(z @ self.banks[space].T / tau, own)
            found[f"{space}.pairs"] = pairs
            found[f"{space}.margin"] = pairs.mean(1) / tau - bank
            found[f"{space}.norm"] = flat.norm(dim=-1).view(len(views), count).mean(1)
        return found | (self.agreement(rows, shown[PROJECTOR_SPACE], own) if self.captioned else {})

    @torch.no_grad()
    def agreement(self, rows: np.ndarray, shown: Tensor, own: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the cosine of image and caption, and its margin over the bank's captions: means over views, [b].

        Args:
            rows: Positions of the images.
            shown: Embeddings of their views, [b v, d].
            own: Each example's row in the bank, or -1; None: none of them is in it.

        """
        v = F.normalize(self.embed_text(self.texts(rows)), dim=-1)
        u = F.normalize(shown, dim=-1).view(len(rows), -1, v.shape[1])
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


def seed_of_key(key: str, purpose: str) -> int:
    """Seed of what is drawn for an example, which depends on its key and the purpose alone."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}:{key}".encode(), digest_size=7).digest())
