"""Untrained towers of open_clip's models: image towers without projection, text towers with their tokenizer.

``NAME`` is any of ``open_clip.list_models()``, or ``custom``: then the options hold the whole configuration. Nothing
is downloaded; models whose text tower or tokenizer would have to be are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from efface.errors import EffaceError, optional_imports, suggest_name
from efface.training.networks.text_tower import TextTower

CUSTOM = "custom"
"""Name of a model that is configured by its options alone."""
SMALLEST = {"width": 8, "layers": 1, "heads": 1, "vocab_size": 8, "context_length": 4}
"""Configuration of the text tower that is built and thrown away if only the image tower is needed."""
SHARED_OPTIONS = ("quick_gelu",)
"""Options that open_clip keeps outside the configurations of its two towers."""
CONFIGURATION_ERRORS = (
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What open_clip raises for an impossible configuration."""


def build_image_tower(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    """Build an image tower without its projection.

    Args:
        name: A model of open_clip, or ``custom``.
        channels: Channels of the images; must be 3.
        size: Height and width of the images.
        options: Entries of ``vision_cfg`` to change, and ``quick_gelu``.

    Raises:
        EffaceError: If open_clip is missing or cannot build the tower, or if the images do not have 3 channels.

    """
    if channels != 3:
        raise EffaceError(
            f"The image towers of open_clip need 3 channels, and these images have {channels}.",
            remedy="Set data.channels=3, where the data has that option.",
        )
    settings = {"image_size": size[0] if size[0] == size[1] else list(size), **options}
    tower = _build_model(name, 8, {"vision_cfg": settings}).visual
    if isinstance(getattr(tower, "proj", None), nn.Parameter):
        tower.proj = None
    elif isinstance(getattr(tower, "head", None), nn.Module):
        tower.head = nn.Identity()
    return tower


def build_text_tower(name: str, dim: int, options: Mapping[str, Any]) -> TextTower:
    """Build a text tower with ``dim`` outputs and its tokenizer.

    Args:
        name: A model of open_clip, or ``custom``.
        dim: Width of the embeddings.
        options: Entries of ``text_cfg`` to change, and ``quick_gelu``.

    Raises:
        EffaceError: If open_clip is missing or cannot build the tower, or if its vocabulary is too small.

    """
    model = _build_model(name, dim, {"text_cfg": options})
    tokenizer = make_clip_tokenizer(model.context_length, model.vocab_size)
    return TextTower(lambda captions: tokenizer(list(captions)), model.text)


def make_clip_tokenizer(length: int, words: int | None = None) -> Any:
    """Make the tokenizer with CLIP's vocabulary.

    Args:
        length: Number of tokens of a caption; the rest is cut off.
        words: Size of the vocabulary that a text tower was built for; by default that of the tokenizer.

    Raises:
        EffaceError: If open_clip is missing, or the text tower's vocabulary is too small.

    """
    tokenizer = _import_open_clip().SimpleTokenizer(context_length=length)
    if words is not None and words < tokenizer.vocab_size:
        raise EffaceError(
            f"A text tower with a vocabulary of {words} is too small for open_clip's tokenizer, which has "
            f"{tokenizer.vocab_size} tokens."
        )
    return tokenizer


def _import_open_clip() -> Any:
    with optional_imports("models of open_clip", "clip", "Or use the text tower words."):
        import open_clip  # slow to import
    return open_clip


def _build_model(name: str, dim: int, changed: Mapping[str, Mapping[str, Any]]) -> Any:
    """Build a model with one tower as configured; the other one is as small as possible."""
    library = _import_open_clip()
    known = library.list_models()
    if name != CUSTOM and name not in known:
        raise EffaceError(
            f"open_clip has no model called '{name}'.{suggest_name(name, known)}",
            f"It has {len(known)} others, such as {known[0]}; with 'custom' the options hold the whole configuration.",
        )
    config = {} if name == CUSTOM else copy.deepcopy(library.get_model_config(name))
    shared = {key: config[key] for key in SHARED_OPTIONS if key in config}
    towers = {"vision_cfg": {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}, "text_cfg": SMALLEST}
    for tower, options in changed.items():
        towers[tower] = (config.get(tower) or {}) | {k: v for k, v in options.items() if k not in SHARED_OPTIONS}
        shared |= {k: v for k, v in options.items() if k in SHARED_OPTIONS}
    text = towers["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        raise EffaceError(
            f"The text tower of {name} is Hugging Face's {text.get('hf_model_name') or text['hf_tokenizer_name']}.",
            "The tower or its tokenizer would have to be downloaded.",
            "Use a model with open_clip's own text tower, such as ViT-B-32.",
        )
    try:
        return library.CustomTextCLIP(dim, **towers, **shared)
    except CONFIGURATION_ERRORS as error:
        shown = "; ".join(f"{tower}: {dict(options)}" for tower, options in changed.items())
        raise EffaceError(
            f"open_clip cannot build {name} with these options: {shown}.",
            f"Its error: {str(error).strip() or type(error).__name__}",
            "Correct recipe.backbone.options or recipe.objective.text.options.",
        ) from error
