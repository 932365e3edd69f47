"""The models of open_clip that have the shapes of a file, whose heads and activation no shape shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_Shapes = Mapping[str, tuple[int, ...]]


def find_open_clip_names(shapes: _Shapes, text: _Shapes) -> tuple[tuple[str, ...], bool]:
    """List open_clip's models whose towers have the widths, depths and patches of a file.

    Args:
        shapes: Name to shape in the image tower.
        text: Name to shape in the text tower; empty if there is none.

    Returns:
        The names, and whether some of them have another activation than others, which no shape shows either.

    """
    try:
        import open_clip  # an optional dependency, slow to import
    except ImportError:
        return (), False
    width, _, patch, _ = shapes["conv1.weight"]
    sizes = {"width": width, "layers": count_open_clip_blocks(shapes), "patch_size": patch}
    sizes |= {"image_size": math.isqrt(shapes["positional_embedding"][0] - 1) * patch}
    words = {}
    if {"token_embedding.weight", "positional_embedding"} <= text.keys():
        words = dict(zip(("vocab_size", "width"), text["token_embedding.weight"], strict=True))
        words |= {"layers": count_open_clip_blocks(text), "context_length": text["positional_embedding"][0]}
    found: list[str] = []
    activations: set[bool] = set()
    for name in open_clip.list_models():
        config: Any = open_clip.get_model_config(name)
        towers = ((sizes, config["vision_cfg"], {"layers": 12, "width": 768}), (words, config["text_cfg"], {}))
        if all((default | stated).get(key) == value for own, stated, default in towers for key, value in own.items()):
            found.append(f"open_clip:{name}")
            activations.add(bool(config.get("quick_gelu")))
    return tuple(found), len(activations) > 1


def count_open_clip_blocks(shapes: _Shapes) -> int:
    """Count the blocks of a tower of open_clip by the names of its weights."""
    return 1 + max(int(m[1]) for name in shapes if (m := re.match(r"transformer\.resblocks\.(\d+)\.", name)))
