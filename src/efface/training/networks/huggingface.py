"""Vision networks of Hugging Face's transformers, with the parameter names of the library's files.

The library's classes and files name weights differently, and the names of its classes change between versions. State
dicts use the names of the files here, so a run folder does not depend on the version that made it. The library itself
provides the mapping: a state dict of numbered placeholders is saved by its ``save_pretrained`` and read back.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import EffaceError, optional_imports, suggest_name

CLIP_VISION = "clip_vision_model"
"""The ``model_type`` of CLIP's image tower alone."""
SUPPORTED_MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "convnext", CLIP_VISION)
"""Values of ``model_type`` whose features were verified against the inputs of the library's own classifiers."""
TAKE, POOLER = "take", "pooler"
"""Options in addition to those of ``config.json``: which features to use, and whether there is a trained pooler."""
IGNORED_ENTRIES = (
    "architectures",
    "id2label",
    "label2id",
    "num_labels",
    "transformers_version",
    "model_type",
    "problem_type",
)
"""Entries of ``config.json`` that do not concern the backbone; so do those that start with ``_`` or name a dtype."""
TYPES_WITH_POOLER = ("vit", "deit")
"""Model types with a trained layer on the first token (``pooler.dense``), unless it is turned off."""
POOLED_TYPES = ("dinov2", "dinov2_with_registers", "convnext", CLIP_VISION)
"""Model types whose pooled output has no layer of its own to train."""


class FeaturePooling(StrEnum):
    """Which output of the network is used as features."""

    POOLER = "pooler"
    """``pooler_output``: ViT's trained pooler, DINOv2's and CLIP's normalized class token, ConvNeXt's normalized
    average."""
    FIRST = "first"
    """First token of the last hidden state: the input of the classifiers of ViT and DeiT."""
    FIRST_AND_MEAN = "first_and_mean"
    """First token and mean over the patches, concatenated: the input of the classifiers of DINOv2."""


def network_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json``, or of a part of it, that a network is built from."""
    return {k: v for k, v in config.items() if k not in IGNORED_ENTRIES and not k.startswith("_") and "dtype" not in k}


def read_options(config: Mapping[str, Any], body: Sequence[str], looked_at: int | None) -> dict[str, Any]:
    """Read the options of a backbone from a checkpoint of transformers.

    Args:
        config: The contents of ``config.json``.
        body: Names of the backbone's tensors in the file.
        looked_at: Number of inputs of the file's classifier, or ``None`` if it has none.

    Returns:
        Options for :func:`build_transformers_backbone`.

    """
    kind = str(config["model_type"])
    kept = network_entries(config)
    pooler = any(name.startswith("pooler.") for name in body)
    if looked_at is not None and looked_at == 2 * int(config.get("hidden_size", 0)):
        take = FeaturePooling.FIRST_AND_MEAN
    elif kind in POOLED_TYPES or (pooler and looked_at is None):
        take = FeaturePooling.POOLER
    else:
        take = FeaturePooling.FIRST
    return kept | {TAKE: str(take)} | ({POOLER: pooler} if kind in TYPES_WITH_POOLER else {})


def build_transformers_backbone(kind: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> Network:
    """Build an untrained network, in float32.

    Args:
        kind: One of ``SUPPORTED_MODEL_TYPES``.
        channels: Channels of the images.
        size: Height and width of the images.
        options: Entries of ``config.json``, and ``take`` and ``pooler``.

    Raises:
        EffaceError: If the kind is not supported or transformers is not installed.

    """
    if kind not in SUPPORTED_MODEL_TYPES:
        raise EffaceError(
            f"transformers networks of the type '{kind}' are not supported.{suggest_name(kind, SUPPORTED_MODEL_TYPES)}",
            f"Supported, and verified against the library's own features: {', '.join(SUPPORTED_MODEL_TYPES)}.",
            "Others can be inspected; to unlearn one, save its weights with the names of timm or torchvision.",
        )
    transformers = import_transformers(f"hf:{kind}")
    take, extra = FeaturePooling(options.get(TAKE, FeaturePooling.FIRST)), {}
    entries = {"image_size": list(size)} | {k: v for k, v in options.items() if k not in (TAKE, POOLER)}
    if kind in TYPES_WITH_POOLER:
        extra["add_pooling_layer"] = bool(options.get(POOLER, take is FeaturePooling.POOLER))
    with without_progress_bars(transformers):
        config = transformers.AutoConfig.for_model(kind, **entries | {"num_channels": channels})
        net = transformers.AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32, **extra)
        return Network(net, take)


def import_transformers(name: str) -> Any:
    """Import the library, for a network with this name.

    Raises:
        EffaceError: It is not installed.

    """
    with optional_imports(name, "hf"):
        import transformers  # slow to import
    return transformers


class FileNamed(nn.Module):
    """A model of transformers whose state dict has the names of the library's files."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.names = net, _find_file_names(net)
        self.register_state_dict_post_hook(_write_file_names)
        self.register_load_state_dict_pre_hook(_read_file_names)


class Network(FileNamed):
    """A model of transformers as a backbone, from images [B, C, H, W] to features [B, dim]."""

    def __init__(self, net: Any, take: FeaturePooling) -> None:
        super().__init__(net)
        self.take = take
        self.patches = 1 + int(getattr(net.config, "num_register_tokens", 0))  # index of the first

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features of normalized images."""
        out = self.net(pixel_values=x)
        if self.take is FeaturePooling.POOLER:
            return out.pooler_output.flatten(1)
        tokens = out.last_hidden_state
        if self.take is FeaturePooling.FIRST:
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self.patches :].mean(1)], -1)


def _write_file_names(module: FileNamed, state: dict[str, Tensor], prefix: str, _meta: object) -> None:
    """Rename entries of a state dict from the names of the class to those of the files, in the same order."""
    renamed = {name: state.pop(name) for name in list(state) if name.startswith(f"{prefix}net.")}
    for name, value in renamed.items():
        state[prefix + module.names[name.removeprefix(f"{prefix}net.")]] = value


def _read_file_names(module: FileNamed, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename entries of a state dict from the names of the files to those of the class."""
    for class_name, file_name in module.names.items():
        if prefix + file_name in state:
            state[f"{prefix}net.{class_name}"] = state.pop(prefix + file_name)


def _find_file_names(net: Any) -> dict[str, str]:
    """Map the name of each tensor in the class to its name in files that the library writes."""
    from safetensors.torch import load_file

    names = list(net.state_dict())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # placeholders do not have the shape of the tensors
        net.save_pretrained(folder, state_dict={name: torch.tensor([float(n)]) for n, name in enumerate(names)})
        written = load_file(Path(folder) / "model.safetensors")
    found = {names[int(value)]: name for name, value in written.items() if value.numel() == 1}
    if found.keys() != set(names) or len(written) != len(names):
        absent = [name for name in names if name not in found]
        raise EffaceError(
            f"This version of transformers does not save the tensors of {type(net).__name__} as they are.",
            f"{len(absent)} of {len(names)} tensors are not written one to one: {', '.join(absent[:3])}.",
            "Use another version; 5.24 is known to work.",
        )
    return found


@contextmanager
def without_progress_bars(library: Any) -> Iterator[None]:
    """Turn off the library's progress bars."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
