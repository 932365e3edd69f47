"""The towers of open_clip's models, untrained: an image tower without its projection, a text tower with its tokenizer.

``NAME`` is any of ``open_clip.list_models()``, or ``custom``: then the options hold the whole configuration. Nothing
is downloaded; models whose text tower or tokenizer would be fetched are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from efface.errors import EffaceError, suggest_name
from efface.training.networks.text_tower import TextTower

CUSTOM = "custom"
SMALLEST = {"width": 8, "layers": 1, "heads": 1, "vocab_size": 8, "context_length": 4}
"""A text tower that is built and thrown away where only images are looked at."""
TOGETHER = ("quick_gelu",)
"""Options that open_clip keeps outside of its two towers."""
CONFIGURATION_ERRORS = (
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What open_clip raises for a configuration that it cannot have."""


def build_image_tower(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    """An image tower up to its projection; ``options``: of its ``vision_cfg``, and ``quick_gelu``."""
    if channels != 3:
        raise EffaceError(
            f"The image towers of open_clip look at 3 channels, and these images have {channels}.",
            remedy="Set data.channels=3, where the data has that option.",
        )
    told = {"image_size": size[0] if size[0] == size[1] else list(size), **options}
    tower = _built(name, 8, {"vision_cfg": told}).visual
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        tower.proj = None
    elif isinstance(getattr(tower, "head", None), nn.Module):
        tower.head = nn.Identity()
    return tower


def build_text_tower(name: str, dim: int, options: Mapping[str, Any]) -> TextTower:
    """A text tower with ``dim`` outputs; ``options``: of its ``text_cfg``, and ``quick_gelu``."""
    made = _built(name, dim, {"text_cfg": options})
    tokenizer = _library().SimpleTokenizer(context_length=made.context_length)
    if made.vocab_size < tokenizer.vocab_size:
        raise EffaceError(
            f"A text tower of {made.vocab_size} words cannot read open_clip's tokens, which are {tokenizer.vocab_size}."
        )
    return TextTower(lambda captions: tokenizer(list(captions)), made.text)


def _library() -> Any:
    try:
        import open_clip  # the extra: slow to import, and not always there
    except ImportError:
        raise EffaceError(
            "open_clip is not installed.",
            "Its models need it.",
            "pip install 'efface[clip]', or use the text tower words.",
        ) from None
    return open_clip


def _built(name: str, dim: int, changed: Mapping[str, Mapping[str, Any]]) -> Any:
    """A model with one configured tower; the other is small where that is cheap."""
    library = _library()
    known = library.list_models()
    if name != CUSTOM and name not in known:
        raise EffaceError(
            f"open_clip has no model called '{name}'.{suggest_name(name, known)}",
            f"It has {len(known)} others, such as {known[0]}; 'custom' takes everything from the options.",
        )
    config = {} if name == CUSTOM else copy.deepcopy(library.get_model_config(name))
    together = {key: config[key] for key in TOGETHER if key in config}
    towers = {"vision_cfg": {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}, "text_cfg": SMALLEST}
    for tower, options in changed.items():
        towers[tower] = (config.get(tower) or {}) | {k: v for k, v in options.items() if k not in TOGETHER}
        together |= {k: v for k, v in options.items() if k in TOGETHER}
    text = towers["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise EffaceError(
            f"The text tower of {name} is Hugging Face's {text.get('hf_model_name') or text['hf_tokenizer_name']}.",
            "It, or its tokenizer, would have to be downloaded.",
            "Take a model with open_clip's own, such as ViT-B-32.",
        )
    try:
        return library.CustomTextCLIP(dim, **towers, **together)
    except CONFIGURATION_ERRORS as error:
        shown = "; ".join(f"{tower}: {dict(options)}" for tower, options in changed.items())
        raise EffaceError(
            f"open_clip cannot build {name} with these options: {shown}.",
            f"It says: {str(error).strip() or type(error).__name__}",
            "Correct recipe.backbone.options or recipe.objective.text.options.",
        ) from error
