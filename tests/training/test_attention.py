"""Attention maps against reference implementations, and what reading them must not change."""

from __future__ import annotations

import pytest
import torch

from efface.errors import EffaceError
from efface.training.networks.attention import find_attention_reader
from efface.training.networks.backbones import Backbone
from tests import tiny
from tests.reference import attention as reference

SWIN = "timm:swin_tiny_patch4_window7_224"
KINDS = {
    "class token": tiny.VIT,
    "distilled": Backbone(name="timm:deit_tiny_distilled_patch16_224", options=tiny.VIT.options),
    "registers": Backbone(name=tiny.VIT.name, options=tiny.VIT.options | {"reg_tokens": 2}),
    "pooled": Backbone(name=tiny.VIT.name, options=tiny.VIT.options | {"class_token": False, "global_pool": "avg"}),
    "pooled, with a class token": Backbone(name=tiny.VIT.name, options=tiny.VIT.options | {"global_pool": "avg"}),
}


def sharp(recipe):
    """A model whose attention is far from uniform, and three images."""
    model = recipe.start(0)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if "qkv" in name or "relative" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return model, torch.from_numpy(tiny.images(3)[0]).float() / 255


def inputs_of(module, run):
    seen = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().double().tolist()))
    run()
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_vit_equal_the_reference(kind):
    model, x = sharp(tiny.recipe("cross_entropy", backbone=KINDS[kind]))
    layer, prefix = find_attention_reader(model.backbone)[0], model.backbone.num_prefix_tokens
    maps = model.attention(x)
    rows = inputs_of(layer, lambda: model.eval().features(x))
    qkv = layer.qkv.weight.tolist(), layer.qkv.bias.tolist()
    expected = [reference.tokens(row, *qkv, 2, prefix, model.backbone.global_pool == "token") for row in rows]
    assert maps.shape == (3, 2, 2)
    torch.testing.assert_close(maps.flatten(1).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)
    assert maps.std() > 0.01


@pytest.mark.parametrize(("shift", "side"), [(0, 4), (1, 4), (1, 5)])
def test_maps_of_swin_equal_the_reference(shift, side):
    """One stage of two blocks: the second one's windows are shifted; 5 cells do not divide into windows of 2."""
    size = 2 * side
    options = {
        "img_size": size,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1 + shift],
        "num_heads": [2],
        "window_size": 2,
    }
    recipe = tiny.recipe("cross_entropy", backbone=Backbone(name=SWIN, options=options), size=(size, size))
    model = sharp(recipe)[0]
    x = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    layer = find_attention_reader(model.backbone)[0]
    maps = model.attention(x)
    cells = []
    block = model.backbone.layers[-1].blocks[-1]
    hook = block.norm1.register_forward_hook(lambda _, given, out: cells.append(out.detach().double().tolist()))
    model.eval().features(x)
    hook.remove()
    assert block.shift_size == (shift, shift)
    qkv = layer.qkv.weight.tolist(), layer.qkv.bias.tolist()
    table = layer.relative_position_bias_table.tolist()
    expected = [reference.windows(image, *qkv, table, 2, 2, shift) for image in cells[-1]]
    assert maps.shape == (2, side, side)
    torch.testing.assert_close(maps.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_reading_changes_neither_outputs_nor_mode_nor_kernel():
    model, x = sharp(tiny.recipe("cross_entropy", backbone=tiny.VIT))
    layer = find_attention_reader(model.backbone)[0]
    before, mode, fused = model.digest(), model.training, layer.fused_attn
    out = model(x)
    model.attention(x)
    assert (model.digest(), model.training, layer.fused_attn) == (before, mode, fused)
    assert all(module.training for module in model.modules())
    assert torch.equal(model(x), out) and not layer.attn_drop._forward_pre_hooks


def test_maps_do_not_depend_on_the_other_images_or_on_dropout():
    dropped = Backbone(name=tiny.VIT.name, options=tiny.VIT.options | {"attn_drop_rate": 0.5, "proj_drop_rate": 0.5})
    model, x = sharp(tiny.recipe("cross_entropy", backbone=dropped))
    torch.testing.assert_close(model.train().attention(x)[:1], model.attention(x[:1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet10t", "timm:eva02_tiny_patch14_224"])
def test_a_backbone_without_readable_maps_is_refused(name):
    options = {"img_size": 32, "patch_size": 8, "depth": 1} if "eva" in name else {}
    backbone = Backbone(name=name, options=options).build(1, (32, 32))
    with pytest.raises(EffaceError, match=f"lethevit needs a transformer.*{type(backbone).__name__}.*backbone.name="):
        find_attention_reader(backbone, "lethevit")


def test_tokens_that_are_not_patches_are_refused():
    model, x = sharp(tiny.recipe("cross_entropy", backbone=tiny.VIT))
    model.backbone.patch_embed.patch_size = (2, 2)
    with pytest.raises(EffaceError, match="4 tokens of this transformer are not the 4x4 patches"):
        model.attention(x)
