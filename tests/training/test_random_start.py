"""A network that the user's own code builds must start from new random weights wherever retraining relies on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from efface import api
from efface.data.dataset import Data
from efface.data.split import partition, select_forget_set
from efface.errors import EffaceError
from efface.training.checkpoint import Checkpoint
from efface.training.networks import own_module
from efface.training.networks.backbones import Backbone
from efface.training.networks.weight_kinds import count_frozen
from efface.training.random_start import describe_start, require_random_start
from efface.training.shards import Shards
from efface.unlearning.methods import METHODS
from tests import tiny

NAME = f"{__name__}:build"


class Net(nn.Module):
    """A convolution between a fixed table and a normalization."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 64).view(1, 1, 8, 8))
        self.scale = nn.Parameter(torch.ones(1, 1, 8, 8))  # constant, as a normalization's
        self.look, self.calm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.more = nn.Conv2d(width, width, 3)

    def forward(self, x):
        """Features [B, width]."""
        return self.more(self.calm(self.look(x * self.scale + self.table)).relu()).mean((2, 3))


def build(kind: str = "plain") -> nn.Module:
    """Build a network as the user's code may."""
    if kind == "seeded":
        torch.manual_seed(5)
    net = Net()
    if kind in ("loaded", "one layer"):
        with torch.no_grad():
            for name, weight in net.named_parameters():
                if weight.dim() > 3 and name != "scale" and (kind == "loaded" or name == "more.weight"):
                    weight.copy_(torch.linspace(-0.2, 0.2, weight.numel()).view_as(weight))
    if kind == "frozen":
        net.requires_grad_(False).eval()
    if kind in ("half frozen", "bias frozen"):
        (net.look if kind == "half frozen" else net.look.bias).requires_grad_(False)  # pyright: ignore[reportOptionalMemberAccess]
    if kind in ("half", "bfloat16", "double"):
        getattr(net, kind)()
    return net


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user named the function."""
    monkeypatch.setattr(own_module, "_allowed", {NAME})


def recipe_of(kind: str, **changed):
    """A tiny recipe whose network the function builds."""
    backbone = Backbone(name=f"python:{NAME}", options={"kind": kind})
    return tiny.recipe("cross_entropy", backbone=backbone, epochs=1, **changed)


def world():
    """Tiny data, its split and a request."""
    x, y = tiny.images(96, seed=1)
    data = Data(x, np.array([f"k{row:03d}" for row in range(96)]), y=y, classes=("a", "b", "c"))
    split = partition(data, valid=20, holdout=12, test=10)
    return data, split, select_forget_set(split, data, "@random:8", allow_duplicates=True)


NOT_RANDOM = {"seeded": "look.weight is the same", "loaded": "look.weight is the same",
              "one layer": "more.weight is the same", "frozen": "is frozen: none of its"}  # fmt: skip
FINE = ("plain", "half frozen", "bias frozen")


@pytest.mark.parametrize("kind", NOT_RANDOM)
@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.exact] + ["bad_teacher"])
def test_what_needs_new_weights_refuses_others(kind, method):
    data, split, request = world()
    shards = Shards(count=2, slices=1) if method == "shards" else None
    recipe = recipe_of(kind, shards=shards)
    start = Checkpoint(recipe.start(0), recipe, seed=0)
    state = torch.get_rng_state()
    with pytest.raises(EffaceError, match=NOT_RANDOM[kind]):
        api.unlearn(start, data, request, method, seed=77, device="cpu")
    if shards is not None:
        with pytest.raises(EffaceError, match=NOT_RANDOM[kind]):
            api.pretrain(data, split, recipe=recipe, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", FINE)
@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.exact])
def test_new_weights_are_retrained(kind, method):
    data, split, request = world()
    recipe = recipe_of(kind, shards=Shards(count=2, slices=1) if method == "shards" else None)
    start = api.pretrain(data, split, recipe=recipe, device="cpu")
    assert api.unlearn(start, data, request, method, device="cpu").exact


def test_the_refusal_says_what_to_do_and_how_much_is_frozen():
    require_random_start(tiny.recipe())  # others start from random weights by themselves
    with pytest.raises(EffaceError, match=r"Let the function return an untrained network") as caught:
        require_random_start(recipe_of("loaded"))
    assert "and so are 1 more" in caught.value.what and "frozen" not in caught.value.why
    said = describe_start(recipe_of("half frozen"))
    frozen = count_frozen(build("half frozen"))
    assert len(said) == 1 and f"{frozen} of " in said[0] and frozen == 8 * 9 + 8
    assert "references and reference banks will be refused" in describe_start(recipe_of("seeded"))[0]
    assert describe_start(recipe_of("plain")) == [] == describe_start(tiny.recipe())


@pytest.mark.parametrize("method", ["finetune", "margin_matching", "ssd", "purge"])
def test_what_deployment_code_froze_is_not_unlearned(method):
    data, _, request = world()
    recipe = recipe_of("frozen")
    with pytest.raises(EffaceError, match="is frozen: none of its"):
        api.unlearn(Checkpoint(recipe.start(0), recipe), data, request, method, device="cpu")


def test_a_frozen_network_is_not_trained_and_a_loaded_one_is():
    data, split, _ = world()
    with pytest.raises(EffaceError, match="is frozen: none of its"):
        api.pretrain(data, split, recipe=recipe_of("frozen"), device="cpu")
    assert api.pretrain(data, split, recipe=recipe_of("loaded"), device="cpu").trained


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
def test_weights_of_another_precision_are_refused_in_one_way_everywhere(kind):
    with pytest.raises(EffaceError, match=r"not of single precision: .*Convert it first") as built:
        recipe_of(kind).start(0)
    model = getattr(tiny.recipe("cross_entropy").start(0), kind)()
    with pytest.raises(EffaceError, match=r"not of single precision: .*Convert it first") as made:
        Checkpoint(model, tiny.recipe("cross_entropy"))
    assert built.value.remedy == made.value.remedy


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "frozen"])
@pytest.mark.parametrize("method", ["finetune", "margin_matching", "ssd", "purge", "retrain"])
def test_a_checkpoint_that_was_changed_afterwards_is_refused_too(kind, method):
    data, _, request = world()
    recipe = tiny.recipe("cross_entropy")
    start = Checkpoint(recipe.start(0), recipe)
    start.model.requires_grad_(False) if kind == "frozen" else getattr(start.model, kind)()
    with pytest.raises(EffaceError, match=r"is frozen|not of single precision"):
        api.unlearn(start, data, request, method, device="cpu")
