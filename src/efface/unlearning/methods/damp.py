"""DAMP: take out of every layer's input what the forgotten classes do not share with the others.

    d_c = μ_c - M M⁺ μ_c                  c: a forgotten class;  Q: orthonormal basis of all d_c
    W ← W (I - α Q Qᵀ)                    α = s · l / L

μ_c: mean input of a layer over class c, over places and tokens too; M: such means of the retained classes as columns,
M⁺ its pseudo-inverse; W: the layer's weights, of each place of a convolution; l: number of the layer of L, from the
image; s: how well forgotten and retained inputs can be told apart by a line, 2 · balanced accuracy - 1, at least 0.
All at θ₀, the checkpoint as received, over training views; nothing is trained, biases and frozen weights stay.

Source      Hatami, Aalishah and Monosov, Class Unlearning via Depth-Aware Removal of Forget-Specific Directions, CVPR
            2026, arXiv 2604.15166.
Departures  there is no official code, and the text could not be read: d_c, Q and the update are given in a summary by
            others. That α grows with depth and with the separability of a probe is said there, the formula is not:
            s · l / L is ours, and so is the probe (least squares on half of the examples, its accuracy on the other
            half). The layers are the linear ones and convolutions of one group, without the first. Where there are no
            more inputs than retained classes, nothing is particular to a class, and the layer stays.
Tests cover directions that retained classes share; the rows of W in place of its columns; a probe that is judged on
            what it was fitted to; the first layer; one class after the other in place of all together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import PairCount
from efface.training.batch import Subset
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.processes import ONE
from efface.unlearning.layer_inputs import find_image_layers, record_inputs
from efface.unlearning.predictions import IMAGES_AT_ONCE
from efface.unlearning.protocol import MethodInputs, Needs

LEAST_OF_A_CLASS = 2
"""Fewest examples of F: half of them show how well they can be told from others."""
NOTHING = 1e-4
"""A residual shorter than this share of its mean input is rounding."""
RIDGE = 1e-3
"""Ridge of the probe, as a share of the mean variance of the inputs."""


@dataclass(frozen=True, kw_only=True)
class Damp(Settings):
    """DAMP: from how many examples the directions are measured."""

    needs: ClassVar[Needs] = Needs.FORGET | Needs.RETAIN | Needs.LABELS | Needs.CLASSES
    exact: ClassVar[bool] = False
    examples: PairCount = 2000
    """Most examples of F, and of R, whose inputs are measured."""

    def unlearn(self, model: Model, inputs: MethodInputs, run: Run) -> Model:
        """Measure the inputs of every layer, then project the weights."""
        if len(inputs.forget) < LEAST_OF_A_CLASS:
            raise EffaceError(
                f"damp tells a class from others by at least {LEAST_OF_A_CLASS} examples, and it has one."
            )
        with run.timed():
            forgotten, gone = self.layer_inputs(model, inputs.forget, run)
            retained, kept = self.layer_inputs(model, inputs.retain, run)
            layers = list(forgotten)[1:]
            size = {
                "forget": float(forgotten[layers[-1]].norm(dim=1).mean()),
                "retain": float(retained[layers[-1]].norm(dim=1).mean()),
            }
            run.log_values("inputs", size, examples=len(gone) + len(kept))
            for number, layer in enumerate(layers, 1):
                f, r = forgotten[layer], retained[layer]
                basis = own_directions(class_means(f, gone), class_means(r, kept))
                told = separability(f, r) if basis.shape[1] else 0.0
                alpha = told * number / len(layers)
                free = all(weight.requires_grad for weight in layer.parameters(recurse=False))
                if free:
                    remove_directions(layer, basis, alpha)
                found = {"alpha": alpha, "directions": basis.shape[1]} if free else {"alpha": 0.0, "directions": 0}
                run.log_values("project", found, layer=number)
        return model

    @torch.no_grad()
    def layer_inputs(self, model: Model, subset: Subset, run: Run) -> tuple[dict[nn.Module, Tensor], Tensor]:
        """The mean input of each layer for each example, [n, d], in the order of the layers; and the labels, [n].

        With several processes each computes all of them: a layer sees only what its own process computes.
        """
        subset, world = replace(subset, world=ONE), model.world
        ids = subset.ids[torch.randperm(len(subset), generator=run.rng(subset.name))[: self.examples]]
        found, labels, rng = dict[nn.Module, list[Tensor]](), list[Tensor](), torch.Generator().manual_seed(0)
        model.world, kinds = ONE, None
        try:
            for rows in ids.split(IMAGES_AT_ONCE):
                batch = subset.batch(rows, rng)
                kinds = find_image_layers(model, batch.view(0)) if kinds is None else kinds
                for layer, x in record_inputs(model, batch.view(0), kinds).items():
                    found.setdefault(layer, []).append(x)
                labels.append(batch.labels())
        finally:
            model.world = world
        return {layer: torch.cat(parts) for layer, parts in found.items()}, torch.cat(labels)


def class_means(x: Tensor, labels: Tensor) -> Tensor:
    """Mean input of each class as a column, [d, classes]."""
    return torch.stack([x[labels == one].mean(0) for one in labels.unique()], 1)


def own_directions(forgotten: Tensor, retained: Tensor) -> Tensor:
    """Q: orthonormal basis of what the columns of ``forgotten`` do not share with those of ``retained``, [d, k]."""
    residual = forgotten - retained @ (torch.linalg.pinv(retained) @ forgotten)
    long = residual.norm(dim=0) > NOTHING * forgotten.norm(dim=0)
    if len(forgotten) <= retained.shape[1] or not long.any():
        return forgotten.new_zeros(len(forgotten), 0)
    return torch.linalg.qr(residual[:, long])[0]


def separability(f: Tensor, r: Tensor) -> float:
    """2 · balanced accuracy - 1, at least 0, on every other row of a linear probe fitted to the rest."""
    x, y = torch.cat([f, r]), torch.cat([torch.ones(len(f)), -torch.ones(len(r))]).to(f)
    weight = torch.where(y > 0, 0.5 / max(1, len(f[::2])), 0.5 / max(1, len(r[::2])))
    shown = torch.cat([torch.arange(len(f)) % 2 == 0, torch.arange(len(r)) % 2 == 0]).to(f.device)
    w = weight[shown, None]
    center = (w * x[shown]).sum(0)
    z = x - center
    spread = z[shown].T @ (w * z[shown])
    spread += (RIDGE * spread.diagonal().mean() + 1e-12) * torch.eye(len(spread)).to(spread)
    score = z @ torch.linalg.solve(spread, (w * z[shown] * y[shown, None]).sum(0))
    right = (score > 0) == (y > 0)
    balanced = (right[~shown & (y > 0)].double().mean() + right[~shown & (y < 0)].double().mean()) / 2
    return max(0.0, 2 * float(balanced) - 1)


@torch.no_grad()
def remove_directions(layer: nn.Module, basis: Tensor, alpha: float) -> None:
    """W ← W (I - α Q Qᵀ), of each place of a convolution."""
    weight: Any = layer.weight
    rows = weight.movedim(1, -1)
    weight.sub_((alpha * (rows @ basis) @ basis.T).movedim(-1, 1))
