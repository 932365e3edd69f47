"""Text towers: captions in, embeddings out [B, dim]. A name and a few numbers make one, as for backbones.

``words``           a small transformer over hashed words; needs no extra
``open_clip:NAME``  the text tower of any model of open_clip with its own tokenizer, untrained (the extra ``clip``);
                    ``open_clip:custom``: everything is in the options

A word's number is a hash of the word. A vocabulary taken from the captions would list the words of forgotten ones,
and no change of weights would take them out of the checkpoint again; here nothing of the captions is kept. The price:
two words may share a row, and writing without spaces is cut into characters.
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

from efface.errors import EffaceError
from efface.training.networks.text_tower import TextTower

PAD, START_TOKEN, FIRST = 0, 1, 2
"""Numbers of no word, of the beginning, and of the first row for words."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]")
"""A character of a script without spaces, a word, or a sign."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """Which network turns captions into embeddings."""

    name: str = "words"
    """``words`` or ``open_clip:NAME``."""
    width: int = 64
    """Width of the transformer (``words`` only, as are the next four)."""
    depth: int = 2
    """Blocks."""
    heads: int = 4
    """Attention heads; they divide the width."""
    context: int = 20
    """Words of a caption that are read; the rest is cut off."""
    buckets: int = 4096
    """Rows that words are hashed to."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of open_clip's text tower: what its ``text_cfg`` takes (``width``, ``layers`` ...), and ``quick_gelu``."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "context", "buckets"):
            if getattr(self, name) < 1:
                raise EffaceError(f"text.{name} cannot be {getattr(self, name)}.", "It is at least 1.")
        if self.width % self.heads:
            raise EffaceError(f"{self.heads} heads do not divide a text tower of width {self.width}.")

    def build(self, dim: int) -> TextTower:
        """A fresh text tower with ``dim`` outputs."""
        library, colon, model = self.name.partition(":")
        if colon and library == "open_clip":
            from efface.training.networks.open_clip import build_text_tower  # the extra, slow to import

            return build_text_tower(model, dim, self.options)
        if self.name != "words":
            raise EffaceError(f"There is no text tower called '{self.name}'.", "Known: words, open_clip:NAME.")
        words = HashingTokenizer(self.context, self.buckets)
        return TextTower(words, TextTransformer(self.width, self.depth, self.heads, self.context, self.buckets, dim))


@dataclass(frozen=True)
class HashingTokenizer:
    """Captions to hashed words."""

    context: int
    buckets: int

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Start, then the words in lower case, then nothing: int64 [B, 1 + words of the longest]."""
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
    """A pre-norm transformer that sees all words at once; the embedding is the projected mean over them."""

    def __init__(self, width: int, depth: int, heads: int, context: int, buckets: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(FIRST + buckets, width)
        self.places = nn.Parameter(0.01 * torch.randn(context + 1, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dim) / math.sqrt(width))
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, L] -> [B, dim]."""
        there = tokens != PAD
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, there)
        x = self.norm(x) * there[..., None]
        return (x.sum(1) / there.sum(1, keepdim=True)) @ self.proj


class TransformerBlock(nn.Module):
    """Attention and a two-layer network, each around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """[B, L, width] -> the same; ``there`` [B, L]: which places hold a word and may be looked at."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*parts, attn_mask=there[:, None, None])
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))
