"""Line search: take as much of a method's change as brings its distances, measured anew at its end, closest to 0.

    θ ← θ₀ + a (θ - θ₀),   a = argmin  Σ_s w_s ( d_s(θ₀) + a (d_s(θ) - d_s(θ₀)) )² + ρ (a - 1)²,   1/2 <= a <= 3/2
    ρ = Σ_s w_s ( 1/|F| + 1/|V| )

d_s: the mean distance of F in a space, in standard deviations of unseen margins, over many views of F and all of V,
with V as the bank. The steps know it from a few rows at a time, and a mean over steps lags behind; here both ends are
seen with the same views. ρ is what luck alone makes of such a distance: one example can lie a standard deviation beside
V without having been trained on, and says little about how far to go, a hundred say a lot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from efface.training.batch import Subset
from efface.training.loop import Run
from efface.training.model import Model
from efface.unlearning.margins import Embeddings

LEAST, MOST = 0.5, 1.5
"""Smallest and largest share of the change that is taken."""
UNSEEN_ROWS, FORGOTTEN_ROWS, LEAST_ROWS, ROWS_OF_EACH = 1000, 1000, 40, 10
"""Most examples of V and most rows of F that are measured, fewest rows of F, and how many rows an example has."""
SHOWN_AT_ONCE = 250
"""Examples that are embedded at once."""


@dataclass(frozen=True, eq=False)
class MeasuredMargins:
    """Margins of forgotten and of unseen examples under one model, in one space."""

    ids: Tensor
    """Positions in the data of the rows of F, int64 [F]."""
    f: Tensor
    """Margins of these rows, [F]."""
    v: Tensor
    """Margins of V, [V]."""


@torch.no_grad()
def measure_margins(
    models: Sequence[Model], forget: Subset, valid: Subset, tau: float, run: Run
) -> list[dict[str, MeasuredMargins]]:
    """Margins of F and V under each of some models, by space; all of them see the same views.

    Args:
        models: The models.
        forget: The examples to forget; each is seen in several views, a random thousand of them if there are more.
        valid: Unseen examples, the bank; a random thousand of them if there are more.
        tau: Temperature of the margins.
        run: Seed of the views.

    """
    rows = min(max(ROWS_OF_EACH * len(forget), LEAST_ROWS), FORGOTTEN_ROWS)
    shuffled = forget.ids[torch.randperm(len(forget), generator=run.rng("line search, forgotten"))]
    ids = shuffled.repeat(-(-rows // len(shuffled)))[:rows]
    unseen = valid.ids[torch.randperm(len(valid), generator=run.rng("line search, unseen"))[:UNSEEN_ROWS]]
    views, embedded = run.rng("line search"), [list[Embeddings]() for _ in models]
    for subset, chunk in [(forget, one) for one in ids.split(SHOWN_AT_ONCE)] + [
        (valid, one) for one in unseen.split(SHOWN_AT_ONCE)
    ]:
        batch = subset.batch(chunk, views)
        for model, shown in zip(models, embedded, strict=True):
            shown.append(Embeddings.of(model, batch))
    return [
        {
            space: MeasuredMargins(ids, margins[:rows], margins[rows:])
            for space, margins in reduce(add, shown).margins(len(unseen), tau).items()
        }
        for shown in embedded
    ]


def find_share(
    before: Mapping[str, float], after: Mapping[str, float], weights: Mapping[str, float], luck: float
) -> float:
    """a: the share of the change that brings the distances closest to 0.

    Args:
        before: Space to the distance under θ₀.
        after: Space to the distance after the change.
        weights: Space to its weight w.
        luck: Variance that a distance has by luck alone; larger keeps a closer to 1.

    Returns:
        a, from 1/2 to 3/2.

    """
    moved = {space: before[space] - after[space] for space in weights}
    pull = sum(weight * after[space] * moved[space] for space, weight in weights.items())
    power = sum(weight * (moved[space] ** 2 + luck) for space, weight in weights.items())
    return min(max(1 + pull / power, LEAST), MOST) if power else 1.0


@torch.no_grad()
def take_share(model: Model, start: Model, share: float) -> None:
    """Set each weight, and the running statistics of BatchNorm, to ``start + share (model - start)``.

    A queue of keys stays. A variance does not fall below half of the smaller one at either end.

    Args:
        model: θ; changed.
        start: θ₀.
        share: a.

    """
    for weight, first in zip(model.parameters(), start.parameters(), strict=True):
        weight.copy_(torch.lerp(first, weight, share))
    for module, old in zip(model.modules(), start.modules(), strict=True):
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, Tensor):
            scale_statistics(module, old, share)


def scale_statistics(module: _BatchNorm, start: nn.Module, share: float) -> None:
    """The same for the running statistics of one BatchNorm."""
    mean, variance = module.running_mean, module.running_var
    first_mean, first_variance = start.get_buffer("running_mean"), start.get_buffer("running_var")
    assert mean is not None
    assert variance is not None
    least = torch.minimum(variance, first_variance) / 2
    mean.copy_(torch.lerp(first_mean, mean, share))
    variance.copy_(torch.maximum(torch.lerp(first_variance, variance, share), least))
