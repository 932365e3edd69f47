"""Attention maps of transformers from timm: how much attention each patch of an image gets in the last block.

    features are the class token           A_p = mean over heads of attention(class -> p)
    otherwise (pooled tokens, windows)     A_p = mean over heads and over patches q of attention(q -> p)

p, q: patches (Swin: cells of the last stage, which attend to cells of the same window). The maps are the block's own
softmax, captured by a hook; the outputs of the network do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import EffaceError

Reader = Callable[[Tensor, tuple[int, int]], Tensor]
"""Turns attention weights into maps: ``(weights [B', heads, queries, keys], image size) -> [B, rows, columns]``."""


def find_attention_reader(backbone: nn.Module, who: str = "Reading attention maps") -> tuple[Any, Reader]:
    """Find the last attention layer of a transformer, and how to turn its weights into maps.

    Args:
        backbone: The network.
        who: What needs the maps, for the error message.

    Raises:
        EffaceError: If the backbone is not a transformer whose attention can be read.

    """
    import timm.models as timm  # slow to import, rarely needed

    if isinstance(backbone, timm.VisionTransformer):
        block: Any = backbone.blocks[-1]
        if isinstance(block.attn, timm.vision_transformer.Attention):  # pyright: ignore[reportPrivateImportUsage]
            return block.attn, lambda weights, size: _read_tokens(backbone, weights, size)
    if isinstance(backbone, timm.SwinTransformer):
        stage: Any = list(backbone.layers)[-1]
        block = list(stage.blocks)[-1]
        return block.attn, lambda weights, size: _read_windows(block, weights)
    raise EffaceError(
        f"{who} needs a transformer whose attention maps can be read, and this backbone is a "
        f"{type(backbone).__name__}.",
        "Supported are timm's vision transformers (ViT, DeiT) and Swin.",
        "Pretrain with recipe.backbone.name=timm:vit_tiny_patch16_224 and options that fit the images, or use a method "
        "that works on any backbone.",
    )


def compute_attention_maps(backbone: nn.Module, x: Tensor) -> Tensor:
    """Compute the attention maps of the last block.

    Args:
        backbone: A transformer from timm.
        x: Normalized images, [B, C, H, W].

    Returns:
        Maps, [B, rows, columns] >= 0; higher: more attention to the patch.

    Raises:
        EffaceError: If the backbone is not a transformer whose attention can be read.

    """
    layer, read = find_attention_reader(backbone)
    captured: list[Tensor] = []
    fused = layer.fused_attn
    layer.fused_attn = False  # the fused kernel never computes the weights
    hook = layer.attn_drop.register_forward_pre_hook(lambda _module, inputs: captured.append(inputs[0].float()))
    try:
        with torch.no_grad():
            backbone(x)
    finally:
        hook.remove()
        layer.fused_attn = fused
    return read(captured[-1], (x.shape[2], x.shape[3]))


def _read_tokens(backbone: Any, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Map the attention of a ViT: that of the class token, or the mean over patches if the features are pooled."""
    first = backbone.num_prefix_tokens
    mean = weights.mean(1)
    rows = mean[:, 0] if backbone.global_pool == "token" else mean[:, first:].mean(1)
    patch: tuple[int, int] = backbone.patch_embed.patch_size
    grid = size[0] // patch[0], size[1] // patch[1]
    if grid[0] * grid[1] != rows.shape[1] - first:
        raise EffaceError(
            f"The {rows.shape[1] - first} tokens of this transformer are not the {grid[0]}x{grid[1]} patches of its "
            "images.",
            "So it is unknown which pixels each token represents.",
            "Use a transformer that cuts the image itself into patches, such as timm:vit_tiny_patch16_224.",
        )
    return rows[:, first:].unflatten(1, grid)


def _read_windows(block: Any, weights: Tensor) -> Tensor:
    """Map the attention of a Swin block: the mean over the cells of each window, put back in place."""
    from timm.models.swin_transformer import window_partition, window_reverse

    (height, width), (h, w), shift = block.input_resolution, block.window_size, block.shift_size
    padded = -(-height // h) * h, -(-width // w) * w
    inside = weights.new_zeros(1, *padded, 1)
    inside[:, :height, :width] = 1  # padding at the border is no query, and gets no place in the map
    queries = window_partition(inside, (h, w)).view(-1, h * w)
    queries = queries.repeat(len(weights) // len(queries), 1)
    received = (weights.mean(1) * queries[:, :, None]).sum(1) / queries.sum(1, keepdim=True)
    maps = window_reverse(received.view(-1, h, w, 1), (h, w), *padded)
    return maps[:, :height, :width, 0].roll(shift, (1, 2))
