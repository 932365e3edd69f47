"""A batch that goes through the network in parts has the gradients of the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, LossTerms
from efface.training.gradients import feature_norms
from efface.training.loop import Run, train_steps
from efface.training.micro_batches import count_parts, run_in_parts, split_evenly
from efface.training.model import Model
from efface.training.recipe import Recipe
from tests import tiny


def transformer_recipe(name: str) -> Recipe:
    return tiny.recipe(name, backbone=tiny.VIT)


def whole_batch() -> Batch:
    x, y = tiny.images(8)
    part = tiny.parts(x, y, {"part": (0, 8)}, tiny.blurred)["part"]
    return part.batch(part.ids, torch.Generator().manual_seed(0))


def gradients(model: Model, loss: Callable[[Model], Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss(model).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        most = 1e-5 * max(1.0, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) <= most, name


@pytest.mark.parametrize("name", sorted(tiny.SMALL))
def test_the_gradient_of_every_objective(name: str) -> None:
    """The networks of these objectives compare the images of a batch: parts alone would have other negatives."""
    recipe, batch = transformer_recipe(name), whole_batch()
    model = recipe.start(0).train()
    whole = gradients(copy.deepcopy(model), lambda one: one.objective.loss(one, batch).per_example.mean())
    model.set_micro_batch(3)
    seen: list[int] = []
    model.backbone.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    assert_close(gradients(model, lambda one: one.objective.loss(one, batch).per_example.mean()), whole)
    assert max(seen) <= 3


def test_second_derivatives() -> None:
    recipe, batch = transformer_recipe("simclr"), whole_batch()
    model = recipe.start(0).train()

    def penalty(one: Model) -> Tensor:
        return feature_norms(one, one.objective.anchor_loss(one, batch), batch.view(0), graph=True).square().mean()

    whole = gradients(copy.deepcopy(model), penalty)
    model.set_micro_batch(3)
    assert_close(gradients(model, penalty), whole)


class Noisy(nn.Module):
    """A network with BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x))).flatten(1)


def test_batchnorm_sees_parts_and_its_statistics_move_once_for_each() -> None:
    torch.manual_seed(0)
    network, x = Noisy().train(), torch.randn(7, 3, 6, 6)
    plain = copy.deepcopy(network)
    torch.manual_seed(1)
    wanted = torch.cat([plain(part) for part in x.tensor_split(3)])
    wanted.square().mean().backward()
    torch.manual_seed(1)
    found = run_in_parts(network, x, 3)
    network.eval()  # the second pass is in the mode of the first one
    found.square().mean().backward()
    assert torch.equal(found, wanted)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert torch.equal(network.norm.running_mean, plain.norm.running_mean)
    assert network.norm.num_batches_tracked == plain.norm.num_batches_tracked == 3
    assert not network.norm.training and network.norm.momentum == plain.norm.momentum


@pytest.mark.parametrize(("count", "size", "parts"), [(7, None, [7]), (7, 3, [3, 2, 2]), (3, 8, [3]), (4, 1, [1] * 4)])
def test_parts_differ_by_one_at_most(count: int, size: int | None, parts: list[int]) -> None:
    number = count_parts(count, size)
    assert sorted((len(one) for one in split_evenly(torch.zeros(count), number)), reverse=True) == parts
    words = [str(one) for one in range(count)]
    assert [one for part in split_evenly(words, number) for one in part] == words
    assert sorted((len(one) for one in split_evenly(words, number)), reverse=True) == parts


@pytest.mark.parametrize(("micro", "advised"), [(None, "recipe.micro_batch=2"), (4, "recipe.micro_batch=1")])
def test_a_step_that_memory_does_not_suffice_for_says_how_many_images_to_take(micro: int | None, advised: str) -> None:
    recipe, batch = transformer_recipe("simclr"), whole_batch()
    model = recipe.start(0)
    model.set_micro_batch(micro)

    def terms(_batch: Batch) -> LossTerms:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(EffaceError, match=advised):
        train_steps(model, [batch], terms, recipe.optim.build(model, 1), Run())
    other = RuntimeError("shapes cannot be multiplied")

    def wrong(_batch: Batch) -> LossTerms:
        raise other

    with pytest.raises(RuntimeError) as caught:
        train_steps(model, [batch], wrong, recipe.optim.build(model, 1), Run())
    assert caught.value is other
