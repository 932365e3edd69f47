"""The text tower of CLIP as transformers builds it, with the parameter names of the library's files.

Captions are read with CLIP's own vocabulary of 49 408 tokens, by open_clip's tokenizer (the extra ``clip``). A
vocabulary of one's own is refused: it may have been built from the captions, and then lists the words of forgotten
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.errors import EffaceError
from efface.files import parse_json
from efface.training.networks.huggingface import FileNamed, import_transformers, network_entries, without_progress_bars
from efface.training.networks.open_clip import make_clip_tokenizer
from efface.training.networks.text_tower import TextTower

CLIP_TEXT = "clip_text_model"
"""The ``model_type`` of the text tower that can be built."""
SPECIAL_TOKENS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""What open_clip and transformers call the first and the last token."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
"""Files beside a model that hold its vocabulary, the more complete one first."""


class TextNetwork(FileNamed):
    """A text model of transformers with its projection, from tokens [B, L] to embeddings [B, dim]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute un-normalized embeddings of captions."""
        return self.net(input_ids=tokens).text_embeds


def build_transformers_text_tower(kind: str, dim: int, options: Mapping[str, Any]) -> TextTower:
    """Build an untrained text tower with ``dim`` outputs, in float32, and its tokenizer.

    Args:
        kind: ``CLIP_TEXT``.
        dim: Width of the embeddings.
        options: Entries of ``text_config`` in ``config.json``.

    Raises:
        EffaceError: If the kind is not supported, a library is missing, or the vocabulary is not CLIP's.

    """
    if kind != CLIP_TEXT:
        raise EffaceError(
            f"Text towers of transformers of the type '{kind}' are not supported.",
            f"Supported: {CLIP_TEXT}.",
        )
    library = import_transformers(f"hf:{kind}")
    config = library.AutoConfig.for_model(kind, **network_entries(options) | {"projection_dim": dim})
    tokenizer = make_clip_tokenizer(config.max_position_embeddings, config.vocab_size)
    with without_progress_bars(library):
        net = library.CLIPTextModelWithProjection._from_config(config, attn_implementation="eager", dtype=torch.float32)
        return TextTower(lambda captions: tokenizer(list(captions)), TextNetwork(net))


def require_clip_vocabulary(folder: Path) -> bool:
    """Raise an error if a tokenizer beside a model has another vocabulary than CLIP's.

    Returns:
        Whether there is a tokenizer beside it.

    Raises:
        EffaceError: The vocabulary is another one, or cannot be read.

    """
    path = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if path is None:
        return False
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        found = content["model"]["vocab"] if path.name == TOKENIZER_FILES[0] else content
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EffaceError(f"The vocabulary in {path} cannot be read.", str(error), "Fetch it again.") from error
    known: Mapping[str, int] = make_clip_tokenizer(1).encoder
    if found != {SPECIAL_TOKENS.get(word, word): number for word, number in known.items()}:
        raise EffaceError(
            f"The vocabulary in {path} is not CLIP's.",
            "A vocabulary built from captions lists the words of forgotten ones, which no unlearning of weights "
            "removes; and its tokens would be read as other words here.",
            "Train with CLIP's own vocabulary, or bring the image tower alone (CLIPVisionModel).",
        )
    return True
