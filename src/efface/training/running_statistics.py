"""Layers that normalize with running statistics: means and variances that training updates and no gradient reaches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

RUNNING_BUFFERS = ("running_mean", "running_var")
"""The buffers of such a layer."""


def layers_with_statistics(network: nn.Module) -> list[_NormBase]:
    """The layers of a network that normalize with running statistics: BatchNorm, and InstanceNorm where it tracks them.

    Args:
        network: Any module; a copy of it has its layers in the same order.

    """
    return [
        module
        for module in network.modules()
        if isinstance(module, _NormBase) and isinstance(module.running_mean, Tensor)
    ]
