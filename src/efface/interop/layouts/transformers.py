"""Hugging Face transformers: a folder with ``config.json`` and ``model.safetensors`` (or shards, or a .bin).

ViT         ``vit.*`` (or nothing) and ``classifier``
DINOv2      ``dinov2.*`` (or nothing) and ``classifier``
CLIP        ``vision_model.*`` with ``visual_projection``; ``text_model.*`` with ``text_projection``; ``logit_scale``
others      the name of their base model in front of the backbone
"""

from __future__ import annotations

from collections.abc import Mapping

from efface.interop.layouts.protocol import Layout, Meta, PrefixRule, Role, State, first_words

TEXT_PREFIXES = ("text_model", "text_projection", "logit_scale", "logit_bias")
CLIP_PARTS = {"vision_model", "visual_projection", "text_model", "text_projection", "logit_scale"}
"""What a whole model of CLIP has."""
CONSTANTS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
"""The numbers 0, 1, 2, ..., which older versions of the library write into the file."""


def detect_transformers(state: State, meta: Meta) -> Layout | None:
    """Recognize a model of transformers by the ``model_type`` in its ``config.json``."""
    config = meta.get("config.json")
    if not isinstance(config, Mapping) or "model_type" not in config:
        return None
    kind, names = str(config["model_type"]), first_words(state)
    base = next((name for name in (kind, kind.split("_")[0], "vision_model") if name in names), "")
    pairs = kind == "clip" and names >= CLIP_PARTS
    text = (
        (
            *(PrefixRule(name, Role.TEXT, name) for name in TEXT_PREFIXES[:2]),
            PrefixRule("logit_scale", Role.SCALE, "logit_scale"),
        )
        if pairs
        else tuple(PrefixRule(name, Role.EXTRAS, name) for name in TEXT_PREFIXES)
    )
    rules = (
        PrefixRule("visual_projection", Role.HEAD),
        PrefixRule("classifier", Role.HEAD),
        PrefixRule("decoder", Role.EXTRAS, "decoder"),
        *(PrefixRule(name, Role.BUFFERS, name) for name in CONSTANTS),
        *text,
        PrefixRule(base, Role.BACKBONE),
    )
    return Layout(name=f"transformers:{kind}", rules=rules, objective="clip" if pairs else None)
