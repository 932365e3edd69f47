"""Differentiable operations on rows that are divided among processes, and BatchNorm over the rows of all of them.

What every process computes alike (a loss from all rows) has the same gradient everywhere. What a process computes on
rows of its own has the gradient *times the number of processes*. So the mean over processes of a parameter's gradient
is the gradient of one process, whether the parameter was used on own rows, on all rows, or on both: this is the mean
that DistributedDataParallel takes. Gathering and dividing rows below keep this rule, also for second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Parts = Sequence[Tensor]
"""For each process the positions of its rows, int64 [n] on the CPU; together they are all rows, each once."""


class _GatherRows(torch.autograd.Function):
    """Own rows to all rows, in their order."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return all_gather_rows(own.detach(), parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return len(ctx.parts) * take_rows(gradients[0], ctx.parts), None


class _TakeRows(torch.autograd.Function):
    """All rows to own rows."""

    @staticmethod
    def forward(ctx: Any, full: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return full.detach()[parts[dist.get_rank()].to(full.device)]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gather_rows(gradients[0], ctx.parts) / len(ctx.parts), None


class _AverageOverProcesses(torch.autograd.Function):
    """The mean over processes of a gradient that each of them has computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        mean = value.detach().clone()
        dist.all_reduce(mean)
        return mean.div_(dist.get_world_size())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


gather_rows: Callable[[Tensor, Parts], Tensor] = _GatherRows.apply  # pyright: ignore[reportAssignmentType]
"""Gather the rows of all processes: ``(own [n, ...], parts) -> [N, ...]``, differentiable."""
take_rows: Callable[[Tensor, Parts], Tensor] = _TakeRows.apply  # pyright: ignore[reportAssignmentType]
"""Take the rows of this process: ``(full [N, ...], parts) -> [n, ...]``, differentiable."""
average_over_processes: Callable[[Tensor], Tensor] = _AverageOverProcesses.apply  # pyright: ignore
"""Average a gradient with respect to parameters over processes, differentiable."""


def all_gather_rows(own: Tensor, parts: Parts) -> Tensor:
    """Gather rows without gradient, [N, ...]; processes may have different numbers of rows."""
    longest = max(map(len, parts))
    padded = own.new_zeros((longest, *own.shape[1:]))
    padded[: len(own)] = own
    received = [torch.empty_like(padded) for _ in parts]
    dist.all_gather(received, padded)
    rows = torch.cat([one[: len(part)] for one, part in zip(received, parts, strict=True)])
    return rows[torch.argsort(torch.cat(list(parts))).to(own.device)]


class _NormalizeTogether(torch.autograd.Function):
    """Normalize each channel by the mean and variance over the rows of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        dims = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        count = mean.new_full((1,), x.numel() // x.shape[1])
        own = torch.cat([mean, variance, count]).double()
        received = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(received, own)
        table = torch.stack(received)
        means, variances, counts = table.split([len(mean), len(mean), 1], 1)
        total = counts.sum()
        center = (counts * means).sum(0) / total
        spread = (counts * (variances + (means - center).square())).sum(0) / total
        mean, variance = center.float(), spread.float()
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.eps, ctx.dims, ctx.has_bias = eps, dims, bias is not None
        ctx.mark_non_differentiable(mean, variance, total)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return y, mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, variance, total = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.dim() - 2)]
        gradient = gradients[0].float()
        scale = (variance + ctx.eps).rsqrt()
        normalized = (x.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(ctx.dims), (gradient * normalized).sum(ctx.dims)])
        everywhere = own.clone()
        dist.all_reduce(everywhere)
        level, slope = (everywhere / total.float()).unbind()
        factor = scale if weight is None else scale * weight.float()
        inner = (gradient - level.view(shape) - normalized * slope.view(shape)) * factor.view(shape)
        of_weight = None if weight is None else own[1].to(weight.dtype)
        return inner.to(x.dtype), of_weight, own[0] if ctx.has_bias else None, None


def batch_norm_together(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what ``torch.nn.functional.batch_norm`` does in training, with the statistics of all processes' rows.

    Works on every device: PyTorch's SyncBatchNorm refuses the CPU. The running statistics become the same in every
    process. Second derivatives are an error; methods that need them freeze the statistics.
    """
    y, mean, variance, count = _NormalizeTogether.apply(x, weight, bias, eps)  # pyright: ignore
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (count / (count - 1)).float()
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return y


class batch_statistics_together(TorchFunctionMode):
    """Context in which BatchNorm in training mode takes its statistics over the rows of all processes.

    It applies to every module that calls ``torch.nn.functional.batch_norm``: those of torch, torchvision, timm and
    transformers, and those of users. Modules stay as they are, and so do the names of their weights.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, or its counterpart for several processes."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            names = ("x", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
            given = dict(zip(names, args, strict=False)) | {("x" if k == "input" else k): v for k, v in kwargs.items()}
            if given.get("training"):
                return batch_norm_together(**given)
        return func(*args, **kwargs)
