"""The text tower in a file of open_clip or transformers: its settings and its vocabulary."""

from __future__ import annotations

from typing import Any

from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.layouts import Role
from efface.interop.open_clip_models import count_open_clip_blocks
from efface.training.networks.huggingface import network_entries
from efface.training.networks.huggingface_text import CLIP_TEXT, require_clip_vocabulary


def read_text_tower(foreign: ForeignCheckpoint) -> dict[str, Any]:
    """Read the settings of a text tower of open_clip or transformers, and the width of the space of both towers.

    Empty if the file has no such text tower.
    """
    if foreign.layout.name == "transformers:clip" and "text_projection.weight" in foreign.part(Role.TEXT):
        config: Any = foreign.meta["config.json"].get("text_config") or {}
        dim = len(foreign.part(Role.TEXT)["text_projection.weight"])
        return {"dim": dim, "linear": True, "text": {"name": f"hf:{CLIP_TEXT}", "options": network_entries(config)}}
    weights = {name: tuple(value.shape) for name, value in foreign.part(Role.TEXT).items()}
    if not {"token_embedding.weight", "positional_embedding", "text_projection"} <= weights.keys():
        return {}
    stated = read_model_cfg(foreign)
    options: dict[str, Any] = dict(stated.get("text_cfg") or {})
    if not options:
        words, width = weights["token_embedding.weight"]
        options = {
            "width": width,
            "vocab_size": words,
            "layers": count_open_clip_blocks(weights),
            "heads": max(1, width // 64),
        }
        options |= {"context_length": weights["positional_embedding"][0]}
    options |= {"quick_gelu": True} if stated.get("quick_gelu") else {}
    return {"dim": weights["text_projection"][1], "text": {"name": "open_clip:custom", "options": options}}


def describe_vocabulary(foreign: ForeignCheckpoint) -> tuple[str, ...]:
    """Say which vocabulary the captions are read with, where there is a text tower; raise if it is not CLIP's."""
    if not foreign.part(Role.TEXT):
        return ()
    folder = foreign.path if foreign.path.is_dir() else foreign.path.parent
    known = require_clip_vocabulary(folder)
    return (
        f"captions: CLIP's vocabulary, {'as its tokenizer has it' if known else 'assumed, as no tokenizer is there'}",
    )


def read_model_cfg(foreign: ForeignCheckpoint) -> dict[str, Any]:
    """Return ``model_cfg`` of ``open_clip_config.json``; empty if there is none."""
    return (foreign.meta.get("open_clip_config.json") or {}).get("model_cfg") or {}
