"""Images that are made where they are needed: the pixels of one process, whatever is done with them."""

from __future__ import annotations

import pytest
import torch

from efface.training.augment import Views
from efface.training.batch import Batch, Subset
from efface.training.divided_images import DividedImages, ImageSource, bounds
from efface.training.processes import World
from tests.tiny import images

ROWS = torch.tensor([3, 1, 14, 8, 9, 2, 20])


def batches(rank: int = 0) -> tuple[Batch, Batch]:
    """The same batch in one process, and in one of two."""
    x, y = images(30)
    views = Views(crop=(0.3, 1.0), blur=0.5)
    made = []
    for world in (World(), World(rank=rank, size=2)):
        subset = Subset(torch.from_numpy(x), torch.arange(30), views, torch.from_numpy(y), world=world)
        made.append(subset.batch(ROWS, torch.Generator().manual_seed(1)))
    return made[0], made[1]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.clean,
        lambda b: b.view(0),
        lambda b: torch.cat([b.view(0), b.view(1)]),
        lambda b: b.view(1)[torch.tensor([2, 2, 0, -1])],
        lambda b: (b + b.rows(2, 5)).view(0)[1:9],
        lambda b: b.pair_with(b.rows(0, 7), number=2).view(1),
        lambda b: b.view(0).flip(0) * 2 + b.clean,
        lambda b: torch.cat([b.view(0), torch.zeros(1, *b.clean.shape[1:])]),
        lambda b: b.view(0)[b.y == 1],
        lambda b: b.view(0).mean((1, 2, 3)),
        lambda b: b.clean.new_zeros(3),
        lambda b: b.rows(3, 3).view(0),
    ],
)
def test_any_use_gives_the_pixels_of_one_process(use, rank):
    alone, shared = (use(batch) for batch in batches(rank))
    whole = shared.whole() if isinstance(shared, DividedImages) else shared
    assert whole.shape == shared.shape == alone.shape
    torch.testing.assert_close(whole, alone, atol=1e-6, rtol=0)


def test_joining_and_selecting_make_nothing():
    made: list[int] = []

    def make(at: torch.Tensor) -> torch.Tensor:
        made.extend(at.tolist())
        return torch.rand(len(at), 1, 2, 2)

    source = ImageSource(make, 6, rank=1, size=2)
    lazy = DividedImages([(source, torch.arange(6))], (1, 2, 2), torch.device("cpu"))
    joined = torch.cat([lazy, lazy])[torch.tensor([0, 11, 4, 5])][1:]
    assert made == []
    own = (joined.owners() == 1).nonzero().flatten()
    assert joined.rows_at(own).shape == (3, 1, 2, 2)
    assert sorted(made) == [3, 4, 5]  # the rows of this process, once
    assert torch.equal(joined.rows_at(own), joined.rows_at(own))
    assert sorted(made) == [3, 4, 5]


def test_each_row_belongs_to_one_process():
    for count in (1, 2, 5, 8):
        source = ImageSource(torch.rand, count, 0, 3)
        owners = source.owners(torch.arange(count))
        edges = bounds(count, 3)
        assert owners.tolist() == [rank for rank in range(3) for _ in range(edges[rank], edges[rank + 1])]


def test_a_gradient_flows_to_all_rows():
    _, shared = batches()
    x = shared.view(0).detach().requires_grad_()
    (x * 3).sum().backward()
    assert torch.equal(x.grad, torch.full(tuple(x.shape), 3.0))
