"""The text tower of an image-text model: a tokenizer and the network that reads its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

Tokenizer = Callable[[Sequence[str]], Tensor]
"""Maps B captions to token numbers, int64 [B, L]."""


class TextTower(nn.Module):
    """A tokenizer and the network that reads its tokens."""

    def __init__(self, tokenizer: Tokenizer, network: nn.Module) -> None:
        super().__init__()
        self.tokenizer, self.network = tokenizer, network

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Compute un-normalized embeddings of B captions, [B, dim]."""
        weight = next(self.network.parameters())
        return self.network(self.tokenizer(captions).to(weight.device))
