"""Pictures as tensors, also those that are decoded only when they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efface.data.dataset import Data
from efface.data.lazy_pixels import LazyPixels


class LazyImages:
    """Stands where the tensor of all images does, uint8 [N, C, H, W], and decodes rows when they are taken.

    Args:
        pixels: What decodes them.

    """

    def __init__(self, pixels: LazyPixels) -> None:
        self.pixels = pixels

    @property
    def shape(self) -> torch.Size:
        """Number, channels, height and width."""
        return torch.Size(self.pixels.shape)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Any) -> Tensor:
        """Decode one row [C, H, W], or several [n, C, H, W]."""
        return torch.from_numpy(self.pixels[rows.numpy() if isinstance(rows, Tensor) and rows.ndim else rows])

    def expect(self, rows: Tensor) -> None:
        """Begin to decode the rows of the next batch while this one is computed."""
        self.pixels.expect(rows.numpy())


Images = Tensor | LazyImages
"""All images of the data, uint8 [N, C, H, W]; rows are taken from it as from a tensor."""


def images_of(data: Data) -> Images:
    """All images of the data as a tensor that shares their memory, or as what decodes them when they are needed."""
    return LazyImages(data.x) if isinstance(data.x, LazyPixels) else torch.from_numpy(data.x)
