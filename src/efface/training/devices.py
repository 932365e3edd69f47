"""Choose where a run computes, and in which precision."""

from __future__ import annotations

import torch

from efface.errors import EffaceError
from efface.training import launch


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Turn a device name into a device that can be used on this machine.

    Args:
        name: A torch device, its name (``cpu``, ``cuda:1``), or ``auto``: CUDA if available, else MPS, else the CPU.
            Of several processes on a machine, each gets a GPU of its own for ``auto`` and ``cuda``.

    Raises:
        EffaceError: If the device is unknown or not available.

    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        alone = launch.count_processes() == 1  # several processes cannot share a model on MPS
        found = "mps" if alone and torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else found
    if name == "cuda" and launch.count_processes() > 1:
        name = f"cuda:{launch.local_number()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EffaceError(
            f"The device '{name}' cannot be used.", str(error).split("\n")[0], "Try --device cpu."
        ) from error
    return device


def choose_precision(asked: bool | None, device: str) -> bool:
    """Whether to compute in bfloat16: as asked, or as a device prefers where nobody asked."""
    return prefers_bfloat16(resolve_device(device)) if asked is None else asked


def prefers_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 autocast is faster than float32: on GPUs, and on CPUs with bfloat16 instructions."""
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return device.type == "cuda"
