"""Text towers: networks from captions to embeddings [B, dim], built from a name and a few numbers.

``words``           a small transformer over hashed words; needs no extra dependency
``open_clip:NAME``  the untrained text tower of a model of open_clip with its tokenizer (the extra ``clip``);
                    ``open_clip:custom``: the options hold the whole configuration
``hf:clip_text_model``  CLIP's text tower as transformers builds it (the extras ``hf`` and ``clip``)

A word's token is a hash of the word. A vocabulary built from the captions would list the words of forgotten ones, and
no update of the weights would remove them from the checkpoint; a hash stores nothing about the captions. In exchange,
two words may share an embedding, and scripts without spaces are split into characters.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.config import Settings
from efface.errors import EffaceError
from efface.schema import Count, LayerWidth
from efface.training.networks.text_tower import TextTower

PAD, START_TOKEN, FIRST = 0, 1, 2
"""Tokens of the padding, of the start, and of the first word."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
"""A character of a script without spaces, a word, or a punctuation mark."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder(Settings):
    """Settings of the network that turns captions into embeddings.

    Example:
        >>> tower = TextEncoder(name="words", width=64).build(dim=128)
        >>> embeddings = tower(["a red shoe", "two cats"])

    """

    name: str = "words"
    """``words``, ``open_clip:NAME`` or ``hf:clip_text_model``."""
    width: LayerWidth = 64
    """Width of the transformer (``words`` only, as are the next four)."""
    depth: Count = 2
    """Transformer blocks."""
    heads: Count = 4
    """Attention heads; the width must be divisible by them."""
    context: Count = 20
    """Largest number of words per caption; the rest is cut off."""
    buckets: Count = 4096
    """Number of embeddings that words are hashed to."""
    options: dict[str, Any] = field(default_factory=dict)
    """For open_clip: entries of its ``text_cfg`` (``width``, ``layers`` ...), and ``quick_gelu``. For transformers:
    entries of ``text_config``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise EffaceError(
                f"A text tower of width {self.width} cannot have {self.heads} heads.",
                "The width must be divisible by them.",
            )

    def build(self, dim: int) -> TextTower:
        """Build an untrained text tower with ``dim`` outputs."""
        library, colon, model = self.name.partition(":")
        if colon and library == "open_clip":
            from efface.training.networks.open_clip import build_text_tower  # an optional dependency, slow to import

            return build_text_tower(model, dim, self.options)
        if colon and library == "hf":
            from efface.training.networks.huggingface_text import build_transformers_text_tower  # as slow to import

            return build_transformers_text_tower(model, dim, self.options)
        if self.name != "words":
            raise EffaceError(
                f"There is no text tower called '{self.name}'.", "Known: words, open_clip:NAME, hf:clip_text_model."
            )
        words = HashingTokenizer(self.context, self.buckets)
        return TextTower(words, TextTransformer(self.width, self.depth, self.heads, self.context, self.buckets, dim))


@dataclass(frozen=True)
class HashingTokenizer:
    """Turns captions into hashes of their words."""

    context: Count
    buckets: Count

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Tokenize captions: start, lower-case words, padding; int64 [B, 1 + words of the longest]."""
        rows = [
            [
                START_TOKEN,
                *(FIRST + _hash(word) % self.buckets for word in WORD.findall(caption.lower())[: self.context]),
            ]
            for caption in captions
        ]
        longest = max(map(len, rows), default=1)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]).view(len(rows), longest)


@lru_cache(maxsize=2**16)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=6).digest())


class TextTransformer(nn.Module):
    """A pre-norm transformer without causal mask; the embedding is the projected mean over all words."""

    def __init__(self, width: int, depth: int, heads: int, context: int, buckets: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(FIRST + buckets, width)
        self.places = nn.Parameter(0.01 * torch.randn(context + 1, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dim) / math.sqrt(width))
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 [B, L], to embeddings, [B, dim]."""
        mask = tokens != PAD
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[..., None]
        return (x.sum(1) / mask.sum(1, keepdim=True)) @ self.proj


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform [B, L, width] to the same shape; ``mask`` [B, L] is true where there is a token to attend to."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts, attn_mask=mask[:, None, None])
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))
