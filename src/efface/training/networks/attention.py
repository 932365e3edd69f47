"""Attention maps of transformers from timm: how much each patch of an image is looked at in the last block.

    with a class token that the features come from     A_p = mean over heads of attention(class -> p)
    otherwise (pooled tokens, windows)                 A_p = mean over heads and over patches q of attention(q -> p)

p, q: patches (Swin: cells of the last stage, each looked at by the cells of its own window). The maps are the
block's own softmax, read while it runs; the network's outputs do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import EffaceError

Reader = Callable[[Tensor, tuple[int, int]], Tensor]
"""``(weights [B', heads, queries, keys], (height, width) of the images) -> maps [B, rows, columns]``."""


def find_attention_reader(backbone: nn.Module, who: str = "Reading attention maps") -> tuple[Any, Reader]:
    """The last attention layer and how its weights are read; an error, in ``who``'s name, where there is none."""
    import timm.models as timm  # slow to import, rarely needed

    if isinstance(backbone, timm.VisionTransformer):
        block: Any = backbone.blocks[-1]
        if isinstance(block.attn, timm.vision_transformer.Attention):  # pyright: ignore[reportPrivateImportUsage]
            return block.attn, lambda weights, size: _tokens(backbone, weights, size)
    if isinstance(backbone, timm.SwinTransformer):
        stage: Any = list(backbone.layers)[-1]
        block = list(stage.blocks)[-1]
        return block.attn, lambda weights, size: _windows(block, weights)
    raise EffaceError(
        f"{who} needs a transformer whose attention maps can be read, and this backbone is a "
        f"{type(backbone).__name__}.",
        "They can be read of timm's vision transformers (ViT, DeiT) and of Swin.",
        "Pretrain with backbone.name=timm:vit_tiny_patch16_224 and options that fit the images, or take a method "
        "that works on any backbone.",
    )


def compute_attention_maps(backbone: nn.Module, x: Tensor) -> Tensor:
    """Maps [B, rows, columns] >= 0 of normalized images [B, C, H, W], from the last block; higher: more looked at."""
    layer, read = find_attention_reader(backbone)
    seen: list[Tensor] = []
    fused = layer.fused_attn
    layer.fused_attn = False  # the fused kernel never forms the weights
    hook = layer.attn_drop.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].float()))
    try:
        with torch.no_grad():
            backbone(x)
    finally:
        hook.remove()
        layer.fused_attn = fused
    return read(seen[-1], (x.shape[2], x.shape[3]))


def _tokens(backbone: Any, weights: Tensor, size: tuple[int, int]) -> Tensor:
    first = backbone.num_prefix_tokens
    heads = weights.mean(1)
    rows = heads[:, 0] if backbone.global_pool == "token" else heads[:, first:].mean(1)
    patch: tuple[int, int] = backbone.patch_embed.patch_size
    grid = size[0] // patch[0], size[1] // patch[1]
    if grid[0] * grid[1] != rows.shape[1] - first:
        raise EffaceError(
            f"The {rows.shape[1] - first} tokens of this transformer are not the {grid[0]}x{grid[1]} patches of its "
            "images.",
            "So it is unknown which pixels a token stands for.",
            "Take a transformer that cuts the image itself into patches, such as timm:vit_tiny_patch16_224.",
        )
    return rows[:, first:].unflatten(1, grid)


def _windows(block: Any, weights: Tensor) -> Tensor:
    from timm.models.swin_transformer import window_partition, window_reverse

    (height, width), (h, w), shift = block.input_resolution, block.window_size, block.shift_size
    whole = -(-height // h) * h, -(-width // w) * w
    real = weights.new_zeros(1, *whole, 1)
    real[:, :height, :width] = 1  # what is filled up at the border neither looks nor is looked at
    asks = window_partition(real, (h, w)).view(-1, h * w)
    asks = asks.repeat(len(weights) // len(asks), 1)
    received = (weights.mean(1) * asks[:, :, None]).sum(1) / asks.sum(1, keepdim=True)
    maps = window_reverse(received.view(-1, h, w, 1), (h, w), *whole)
    return maps[:, :height, :width, 0].roll(shift, (1, 2))
