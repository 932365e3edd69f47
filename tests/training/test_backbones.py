"""Backbones: sizes known from the literature, torchvision's own network, and errors that help."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from efface.config import build, describe_fields, dump
from efface.errors import EffaceError
from efface.training.networks.backbones import Backbone
from efface.training.objectives import SimClr
from efface.training.recipe import Recipe

VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 4}


def made(channels: int = 3, size: tuple[int, int] = (32, 32), **settings: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(**settings).build(channels, size)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_has_307_thousand_parameters():
    assert count(made(channels=1, size=(28, 28))) == 306_784
    assert made().dim == 128


@pytest.mark.parametrize(
    ("name", "width", "dim", "last"),
    [("resnet8", 16, 64, 8), ("resnet10", 16, 128, 4), ("resnet18", 8, 64, 4)],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_resnets_give_rows_of_features_at_the_right_resolution(name: str, width: int, dim: int, last: int, stride: int):
    network = made(name=name, width=width, stride=stride)
    seen: list[torch.Size] = []
    getattr(network, f"layer{4 if last == 4 else 3}").register_forward_hook(lambda *hook: seen.append(hook[2].shape))
    features = network(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, dim) and network.dim == dim
    assert seen[0][2:] == (last // stride, last // stride)
    assert network.training and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_of_width_64_is_torchvisions_with_another_stem(training: bool):
    ours = made(name="resnet18", width=64, stride=1).train(training)
    theirs = models.resnet18(weights=None)
    theirs.conv1, theirs.maxpool, theirs.fc = (
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.Identity(),
        nn.Identity(),
    )
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(ours(x), theirs.train(training)(x), atol=1e-5, rtol=1e-5)


def test_initial_weights_have_the_spread_of_he_et_al():
    network = made(width=64)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_zero_init_makes_every_block_start_as_its_shortcut():
    x = torch.rand(2, 3, 16, 16)
    for chosen in ({}, {"zero_init": True}):
        network = made(options=chosen).eval()
        zeros = [float(m.weight.detach().abs().max()) == 0 for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert sum(zeros) == (3 if chosen else 0)
        stem = torch.relu(network.bn1(network.conv1(x)))
        assert torch.equal(network.layer1(stem), stem) is bool(chosen)


def test_building_draws_from_the_global_generator_alone_and_is_repeatable():
    first, second = made(), made()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = Backbone().build(3, (32, 32))
    assert not torch.equal(other.conv1.weight, first.conv1.weight)
    buffers = {name: value for name, value in first.named_buffers() if "running" in name or "tracked" in name}
    assert all(float(value.sum()) in (0, value.numel()) for name, value in buffers.items())  # trying out left no trace
    assert all(int(value) == 0 for name, value in buffers.items() if "tracked" in name)


def test_a_tiny_transformer_of_timm_sees_28_pixels():
    network = made(channels=1, size=(28, 28), name="timm:vit_tiny_patch16_224", options=VIT)
    assert network.dim == 64 and network(torch.rand(3, 1, 28, 28)).shape == (3, 64)
    assert len(network.blocks) == 2 and network.training
    assert not any("head" in name for name, _ in network.named_parameters())


def test_a_convolutional_network_of_timm_has_no_classifier():
    network = made(channels=2, name="timm:resnet10t", size=(32, 32))
    assert network.dim == 512 and network(torch.rand(2, 2, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "channels", "dim", "options"),
    [
        ("resnet18", 1, 512, {}),
        ("resnet18", 3, 512, {"zero_init_residual": True}),
        ("mobilenet_v3_small", 4, 1024, {}),
    ],
)
def test_models_of_torchvision_lose_their_classifier_and_take_any_channels(
    name: str, channels: int, dim: int, options: dict[str, object]
):
    network = made(channels, name=f"torchvision:{name}", options=options)
    assert network.dim == dim and network(torch.rand(2, channels, 32, 32)).shape == (2, dim)
    linear = [m.out_features for m in network.modules() if isinstance(m, nn.Linear)]
    assert 1000 not in linear


TIMM, TV, TINY = "timm:resnet10t", "torchvision:resnet18", "timm:vit_tiny_patch16_224"
REFUSED = [
    ({"name": "resnet9"}, r"no backbone called 'resnet9'. Did you mean 'resnet(8|18)'.*timm:NAME"),
    ({"name": "tim:resnet18"}, r"no backbone library called 'tim'. Did you mean 'timm'"),
    ({"name": "timm:vit_tiny_patch16_22"}, r"timm has no model called.*Did you mean 'vit_tiny_patch16_224'"),
    ({"name": "torchvision:resnet81"}, r"torchvision has no model called.*Did you mean 'resnet18'"),
    ({"name": "timm:hf-hub:someone/something"}, r"timm has no model called 'hf-hub:someone/something'"),
    ({"options": {"zero_inti": True}}, r"resnet8 has no option 'zero_inti'. Did you mean 'zero_init'"),
    ({"name": TIMM, "options": {"img_sise": 28}}, r"timm:resnet10t cannot.*img_sise: 28.*unexpected keyword"),
    ({"name": TIMM, "options": {"pretrained": True}}, r"'pretrained' of timm:resnet10t cannot be set"),
    ({"name": TIMM, "options": {"num_classes": 10}}, r"option 'num_classes'.*without a classifier"),
    ({"name": TV, "options": {"weights": "DEFAULT"}}, r"option 'weights'"),
    ({"name": TV, "options": {"wide": 2}}, r"torchvision:resnet18 cannot be built.*wide: 2"),
    ({"name": "torchvision:vit_b_16", "options": {"image_size": 30}}, r"cannot be built.*image_size: 30"),
    ({"name": "torchvision:squeezenet1_1"}, r"does not end in a linear layer"),
    ({"name": TINY, "options": {"depth": 1}}, r"3x32x32.*\(32\).*img_size: 32, patch_size: 4"),
    ({"name": TINY, "options": VIT}, r"patches of 7x7, which do not fill 32x32"),
    ({"name": TINY, "options": VIT | {"num_heads": 5}}, r"cannot be built.*num_heads: 5.*divisible"),
    ({"name": "torchvision:alexnet"}, r"images of 3x32x32.*set data.size"),
    ({"width": 0}, r"Backbone.width' cannot be 0"),
    ({"width": 1.5}, r"Backbone.width' cannot be 1.5"),
    ({"stride": 4}, r"backbone.stride cannot be 4"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=[str(settings) for settings, _ in REFUSED])
def test_what_cannot_be_built_is_refused_with_a_remedy(settings: dict[str, object], says: str):
    with pytest.raises(EffaceError, match=f"(?s){says}"):
        made(**settings)


def test_the_image_size_that_a_transformer_expects_is_checked():
    with pytest.raises(EffaceError, match=r"images of 1x56x56.*img_size: 56"):
        made(1, (56, 56), name="timm:vit_tiny_patch16_224", options=VIT)


def test_libraries_are_imported_only_when_asked_for():
    code = (
        "import sys, efface.training.networks.backbones as b; b.Backbone().build(1, (8, 8));"
        "assert not {'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_backbone_survives_the_round_trip_through_plain_values_and_every_knob_is_documented():
    chosen = Backbone(name="timm:vit_tiny_patch16_224", options=VIT)
    assert build(Backbone, dump(chosen)) == chosen
    assert all(text for _, _, _, text in describe_fields(Backbone))


def test_a_gray_network_of_any_width_has_a_digest():
    recipe = Recipe(objective=SimClr(), backbone=Backbone(width=4), channels=1, size=(8, 8))
    assert recipe.start(0).digest() == recipe.start(0).digest() != recipe.start(1).digest()
