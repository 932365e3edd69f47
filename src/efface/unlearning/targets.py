"""Targets from a reference bank: how familiar each forgotten example is to models that never saw it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MarginTargets:
    """Margins of the forgotten examples in models that never saw them, less the mean of unseen ones there.

    Made from the method's half of a bank; the audit of the result uses the other half.
    """

    ids: Tensor
    """Positions of the examples in the data, sorted, int64 [n]."""
    margins: dict[str, Tensor]
    """Space (``backbone``, ``output``) to targets, float [n], in the units of :mod:`efface.unlearning.margins`."""
    bank: str
    """Digest of the part of the bank that they come from."""
    tau: float
    """Temperature of the margins."""

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of some examples, given by their positions in the data."""
        return torch.searchsorted(self.ids, ids.cpu())
