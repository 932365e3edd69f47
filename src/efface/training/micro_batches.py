"""Run a network on a few images at a time, with the gradients of the whole batch.

A contrastive loss needs the embeddings of all images at once, but their activations only for one part of them at a
time: the features of every part are computed without keeping activations, the loss is differentiated with respect to
the features, and each part is run again when its gradient is needed. Gradients are those of the whole batch, second
derivatives included. Random layers draw the same numbers in both passes.

BatchNorm in training mode is the exception: it normalizes over the part that it is given, as it does on each of several
devices. Its running statistics are updated once.

Source      Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
            arXiv 2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint


def count_parts(count: int, size: int | None) -> int:
    """How many parts of at most ``size`` examples a batch of ``count`` has; 1 without a size."""
    return 1 if size is None else max(1, -(-count // size))


def run_in_parts(network: nn.Module, inputs: Tensor | Sequence[str], size: int | None) -> Tensor:
    """Run a network on parts of near-equal size.

    Args:
        network: Maps B inputs to B rows; each row must depend on its own input alone, but for BatchNorm.
        inputs: Images [B, C, H, W], or B captions.
        size: Largest size of a part; None: all at once.

    Returns:
        The rows, [B, dim], as ``network(inputs)`` would return them.

    Example:
        >>> features = run_in_parts(model.backbone, images, 16)

    """
    if size is None or len(inputs) <= size:  # without a size, an exported graph takes any number of images
        return network(inputs)
    parts = split_evenly(inputs, count_parts(len(inputs), size))
    if not torch.is_grad_enabled():
        return torch.cat([network(part) for part in parts])
    modes = {module: module.training for module in network.modules()}

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _repeated(modes)

    run: Callable[..., Tensor] = checkpoint  # pyright: ignore[reportAssignmentType]
    return torch.cat([run(network, part, use_reentrant=False, context_fn=contexts) for part in parts])


def split_evenly(inputs: Tensor | Sequence[str], count: int) -> list[Any]:
    """Split B inputs into ``count`` parts whose sizes differ by one at most."""
    if isinstance(inputs, Tensor):
        return list(inputs.tensor_split(count))
    edges = [len(inputs) * number // count for number in range(count + 1)]
    return [inputs[first:last] for first, last in pairwise(edges)]


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether a network normalizes over the batch when it is trained, so that its parts are not independent."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


@contextmanager
def _repeated(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    """Context for the second pass: every module in the mode of the first one, running statistics as they are."""
    before = {module: module.training for module in modes}
    norms = [module for module in modes if isinstance(module, _BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for module, mode in modes.items():
        module.training = mode
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for norm, momentum, tracked in kept:
            norm.momentum, norm.num_batches_tracked = momentum, tracked
