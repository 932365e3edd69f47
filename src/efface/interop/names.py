"""Names of tensors without what tools add to them: wrappers inside a name, and tensors that are only bookkeeping.

torch.compile, FSDP and activation checkpointing put a word of their own anywhere into a name, and averaging and
profiling tools register counters beside the weights. Neither says anything about the network. They are taken out before
a layout is recognized, so that one counter cannot hide the prefix that all weights share.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from efface.interop.layouts.protocol import State

TOOL_WORDS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_dynamo_wrapped_module")
"""Words that torch.compile, activation checkpointing and FSDP put between two words of a name."""
PARALLEL = "module"
"""The word that DistributedDataParallel puts in front of the names of what it wraps, which may be an inner module."""
BATCH_COUNTER = "num_batches_tracked"
"""BatchNorm's counter of batches; files of old versions of torch do not have it."""
COUNTERS = (
    "n_averaged", "num_updates", "num_averaged", "initted", "step", "steps", "total_ops", "total_params", "decay",
    "ema_decay", "global_step", "epoch", "iteration",
)  # fmt: skip
"""Last words of single numbers that averaging tools (torch, timm, mmengine, torch-ema) and profilers (thop) store."""
MEAN_WORDS, STD_WORDS = ("mean", "new_mean", "mu", "pixel_mean"), ("std", "new_std", "sigma", "pixel_std")
"""Last words of the buffers of a normalization layer in front of the network."""
NORMALIZATION_OWNERS = (
    "normalize",
    "normalizer",
    "normalization",
    "normalise",
    "preprocess",
    "norm_layer",
    "data_preprocessor",
)
"""Names of such a layer; where the buffers have one of the last words alone, they belong to the model itself."""


def is_bookkeeping(name: str, value: Tensor) -> bool:
    """Whether a tensor is a counter of a tool: one number, that is no weight and no part of a layer.

    BatchNorm's own counter belongs to its layer, and positions in a queue are set to zero, so neither is one.
    """
    last = name.rpartition(".")[2].rpartition("/")[2]
    if value.numel() != 1 or last == BATCH_COUNTER or last.endswith("ptr"):
        return False
    return last in COUNTERS or not value.is_floating_point()


def votes(name: str, value: Tensor) -> bool:
    """Whether a name tells how the weights are named: no counter of a tool or of a layer does."""
    return not is_bookkeeping(name, value) and not name.endswith(BATCH_COUNTER)


def clean_names(state: State) -> dict[str, str]:
    """Map each name to the name without what tools put into it; a clash leaves all names as they are.

    Example:
        >>> clean_names({"encoder_q._orig_mod.conv1.weight": weight})
        {'encoder_q._orig_mod.conv1.weight': 'encoder_q.conv1.weight'}

    """
    cleaned = {name: _without_words(name) for name in state}
    inner = _parallel_owners(cleaned[name] for name, value in state.items() if votes(name, value))
    for name, clean in cleaned.items():
        owner, _, rest = clean.partition(".")
        if owner in inner and rest.startswith(f"{PARALLEL}."):
            cleaned[name] = f"{owner}.{rest.removeprefix(f'{PARALLEL}.')}"
    return cleaned if len(set(cleaned.values())) == len(cleaned) else {name: name for name in state}


def find_normalization_buffers(state: State) -> list[tuple[str, str]]:
    """Find the means and standard deviations of normalization layers in front of networks.

    Returns:
        Pairs of names, each with one number for every channel of the images; that of the main section first.

    """
    channels = next((value.shape[1] for value in state.values() if value.dim() == 4), 0)
    found: list[tuple[str, str]] = []
    for name, value in state.items():
        owner, _, last = name.rpartition(".") if "." in name else (*name.rpartition("/")[:2], name.rpartition("/")[2])
        if last not in MEAN_WORDS or value.numel() != channels or not value.is_floating_point():
            continue
        if owner.rpartition("/")[2].rpartition(".")[2] not in (*NORMALIZATION_OWNERS, "", PARALLEL, "model", "net"):
            continue
        other = name.removesuffix(last) + STD_WORDS[MEAN_WORDS.index(last)]
        if other in state and state[other].numel() == channels:
            found.append((name, other))
    return sorted(found, key=lambda names: "/" in names[0])


def _without_words(name: str) -> str:
    section, slash, rest = name.rpartition("/")
    return section + slash + ".".join(word for word in rest.split(".") if word not in TOOL_WORDS)


def _parallel_owners(names: Iterable[str]) -> set[str]:
    """Return the first words below which every name has ``module`` next: modules that were wrapped on their own."""
    below: dict[str, list[bool]] = {}
    for name in names:
        if "/" not in name:
            first, _, rest = name.partition(".")
            below.setdefault(first, []).append(rest.startswith(f"{PARALLEL}."))
    return {first for first, wrapped in below.items() if all(wrapped) and first != PARALLEL}
