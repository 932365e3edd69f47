"""Line search: take as much of a method's change as brings its distances, measured anew at its end, closest to 0.

    θ    ← θ₀ + a (θ - θ₀),   a = argmin  Σ_s w_s ( d_s(θ₀) + a (d_s(θ) - d_s(θ₀)) )² + ρ (a - 1)²,   1/2 <= a <= 3/2
    ρ    = Σ_s w_s ( 1/|F| + 1/|V| )
    head ← head₀ + h (head - head₀),   h = argmin | d_output(h) |,   1/2 <= h <= 3/2

d_s: the mean distance of F in a space, in standard deviations of unseen margins, over many views of F and all of V,
with V as the bank. The steps know it from a few rows at a time, and a mean over steps lags behind; here all are seen
with the same views. ρ is what luck alone makes of such a distance: one example can lie a standard deviation beside V
without having been trained on, and says little about how far to go, a hundred say a lot. One share for two spaces
leaves both beside 0 where they ask for different ones, and the smaller the forget set the more they do; the head (the
projector or the classifier) moves the output alone, so that it has a share of its own, found among five with the
features as they are, and between these on straight lines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn

from efface.training.batch import Subset
from efface.training.loop import Run
from efface.training.model import Model
from efface.training.running_statistics import RUNNING_BUFFERS, layers_with_statistics
from efface.unlearning.margins import BACKBONE, OUTPUT, Embeddings

LEAST, MOST = 0.5, 1.5
"""Smallest and largest share of the change that is taken."""
HEAD_SHARES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Shares of the head's change that are tried."""
UNSEEN_ROWS, FORGOTTEN_ROWS, LEAST_ROWS, ROWS_OF_EACH = 1000, 1000, 200, 10
"""Most examples of V and most rows of F that are measured, fewest rows of F, and how many rows an example has."""
SHOWN_AT_ONCE = 250
"""Examples that are embedded at once."""


class MeasuredRows:
    """Rows of F and of V that each model is shown in the same views.

    Args:
        forget: The examples to forget; each is seen in several views, a random thousand of them if there are more.
        valid: Unseen examples, the bank; a random thousand of them if there are more.
        run: Seed of the choice and of the views.

    """

    def __init__(self, forget: Subset, valid: Subset, run: Run) -> None:
        self.forget, self.valid, self.run = forget, valid, run
        rows = min(max(ROWS_OF_EACH * len(forget), LEAST_ROWS), FORGOTTEN_ROWS)
        shuffled = forget.ids[torch.randperm(len(forget), generator=run.rng("line search, forgotten"))]
        self.ids = shuffled.repeat(-(-rows // len(shuffled)))[:rows]
        """Positions in the data of the rows of F, int64 [F]."""
        self.unseen = valid.ids[torch.randperm(len(valid), generator=run.rng("line search, unseen"))[:UNSEEN_ROWS]]
        """The same of V, int64 [V]."""

    def __len__(self) -> int:
        return len(self.ids) + len(self.unseen)

    @torch.no_grad()
    def embed(self, *models: Model) -> list[Embeddings]:
        """Embeddings of all rows under each of some models, F first."""
        views, found = self.run.rng("line search"), [list[Embeddings]() for _ in models]
        for subset, ids in ((self.forget, self.ids), (self.valid, self.unseen)):
            for chunk in ids.split(SHOWN_AT_ONCE):
                batch = subset.batch(chunk, views)
                for model, shown in zip(models, found, strict=True):
                    shown.append(Embeddings.of(model, batch))
        return [reduce(add, shown) for shown in found]

    def margins(
        self, shown: Embeddings, tau: float, spaces: Collection[str] = (BACKBONE, OUTPUT)
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Margins of F, [F], and of V, [V], by space, with V as the bank and temperature ``tau``."""
        found = shown.margins(len(self.unseen), tau, spaces=spaces)
        return {space: (values[: len(self.ids)], values[len(self.ids) :]) for space, values in found.items()}


def search_head(head: nn.Module, start: nn.Module, end: nn.Module, measure: Callable[[], float]) -> float:
    """Set a head to the share of its change that brings the distance in the output closest to 0.

    Args:
        head: The head of θ; changed.
        start: That of θ₀.
        end: Where the steps led.
        measure: The distance with the head as it is.

    Returns:
        h.

    """
    distances = list[float]()
    for share in HEAD_SHARES:
        take_share(head, start, share, end)
        distances.append(measure())
    found = find_head_share(HEAD_SHARES, distances)
    take_share(head, start, found, end)
    return found


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


def find_head_share(shares: Sequence[float], distances: Sequence[float]) -> float:
    """h: the share at which the distance is closest to 0, on straight lines between those that were tried.

    Args:
        shares: Shares that were tried, rising.
        distances: The distance in the output at each.

    Returns:
        h, between the first and the last share; of several that are as good, the one closest to 1.

    """
    found = list[float]()
    for (left, first), (right, last) in pairwise(zip(shares, distances, strict=True)):
        if first != last and first * last <= 0:
            found.append(left + (right - left) * first / (first - last))
    if not found:
        least = min(abs(distance) for distance in distances)
        found = [share for share, distance in zip(shares, distances, strict=True) if abs(distance) == least]
    return min(found, key=lambda share: abs(share - 1))


@torch.no_grad()
def take_share(model: nn.Module, start: nn.Module, share: float, end: nn.Module | None = None) -> None:
    """Set each weight, and the running statistics of BatchNorm, to ``start + share (end - start)``.

    A queue of keys stays. A variance does not fall below half of the smaller one at either end.

    Args:
        model: θ; changed.
        start: θ₀.
        share: a.
        end: Where the change led; by default the model as it is.

    """
    end = model if end is None else end
    for weight, first, last in zip(model.parameters(), start.parameters(), end.parameters(), strict=True):
        weight.copy_(torch.lerp(first, last, share))
    for layer, first, last in zip(*map(layers_with_statistics, (model, start, end)), strict=True):
        scale_statistics(layer, first, last, share)


def scale_statistics(layer: nn.Module, start: nn.Module, end: nn.Module, share: float) -> None:
    """The same for the running statistics of one layer."""
    (mean, first_mean, last_mean), (variance, first_variance, last_variance) = (
        [one.get_buffer(name) for one in (layer, start, end)] for name in RUNNING_BUFFERS
    )
    least = torch.minimum(last_variance, first_variance) / 2
    mean.copy_(torch.lerp(first_mean, last_mean, share))
    variance.copy_(torch.maximum(torch.lerp(first_variance, last_variance, share), least))
