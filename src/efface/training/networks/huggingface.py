"""Vision networks of Hugging Face's transformers, built by its own classes and called by the names in its files.

The library renames weights between its classes and its files, differently from version to version. Here they bear
the names of the files everywhere, so a run folder does not depend on the version that made it. Which name is which
is asked of the library: a state of numbered stand-ins is saved by its own ``save_pretrained`` and read back.
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

from efface.errors import EffaceError, suggest_name

SUPPORTED_MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers", "convnext")
"""Values of ``model_type`` whose features were compared with what the library's own classifier looks at."""
TAKE, POOLER = "take", "pooler"
"""Options of the backbone beside those of ``config.json``: which features, and whether there is a trained pooler."""
NAMELESS = ("architectures", "id2label", "label2id", "num_labels", "transformers_version", "model_type", "problem_type")
"""Entries of ``config.json`` that say nothing of the backbone; also what begins with ``_`` or speaks of a dtype."""
POOLED = ("vit", "deit")
"""Kinds whose class puts a trained layer (``pooler.dense``) on the first token unless it is told not to."""


class FeaturePooling(StrEnum):
    """Which features come out."""

    POOLER = "pooler"
    """``pooler_output``: ViT's trained pooler, DINOv2's normalized class token, ConvNeXt's normalized average."""
    FIRST = "first"
    """The last hidden state's first token: what classifiers of ViT and DeiT look at."""
    FIRST_AND_MEAN = "first_and_mean"
    """The first token beside the mean of the patches: what classifiers of DINOv2 look at."""


def read_options(config: Mapping[str, Any], body: Sequence[str], looked_at: int | None) -> dict[str, Any]:
    """A backbone's options from a ``config.json``, the names of the file's backbone, and the inputs of its head.

    ``looked_at``: width of what the file's classifier looks at; ``None`` where it has none.
    """
    kind = str(config["model_type"])
    kept = {k: v for k, v in config.items() if k not in NAMELESS and not k.startswith("_") and "dtype" not in k}
    pooler = any(name.startswith("pooler.") for name in body)
    if looked_at is not None and looked_at == 2 * int(config.get("hidden_size", 0)):
        take = FeaturePooling.FIRST_AND_MEAN
    elif kind in ("dinov2", "dinov2_with_registers", "convnext") or (pooler and looked_at is None):
        take = FeaturePooling.POOLER
    else:
        take = FeaturePooling.FIRST
    return kept | {TAKE: str(take)} | ({POOLER: pooler} if kind in POOLED else {})


def build_transformers_backbone(kind: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> Network:
    """A fresh network of a kind, in float32; ``options``: those of ``config.json``, and ``take``, ``pooler``."""
    if kind not in SUPPORTED_MODEL_TYPES:
        raise EffaceError(
            f"No network of transformers called '{kind}' can be built here.{suggest_name(kind, SUPPORTED_MODEL_TYPES)}",
            f"Those whose features were compared with the library's own: {', '.join(SUPPORTED_MODEL_TYPES)}.",
            "Others can be inspected; to unlearn one, save its weights under names of timm or torchvision.",
        )
    try:
        import transformers  # slow to import, and an extra
    except ImportError as error:
        raise EffaceError(
            f"hf:{kind} is built by the library transformers, which is not installed.",
            str(error),
            "Install it: pip install 'efface[hf]'.",
        ) from error
    take, extra = FeaturePooling(options.get(TAKE, FeaturePooling.FIRST)), {}
    theirs = {"image_size": list(size)} | {k: v for k, v in options.items() if k not in (TAKE, POOLER)}
    if kind in POOLED:
        extra["add_pooling_layer"] = bool(options.get(POOLER, take is FeaturePooling.POOLER))
    with _quiet(transformers):
        config = transformers.AutoConfig.for_model(kind, **theirs | {"num_channels": channels})
        net = transformers.AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32, **extra)
        return Network(net, take, _names_in_files(net))


class Network(nn.Module):
    """A model of transformers as a backbone: images [B, C, H, W] to features [B, dim]."""

    def __init__(self, net: Any, take: FeaturePooling, names: dict[str, str]) -> None:
        super().__init__()
        self.net, self.take, self.names = net, take, names
        self.patches = 1 + int(getattr(net.config, "num_register_tokens", 0))  # the first of them
        self.register_state_dict_post_hook(_outward)
        self.register_load_state_dict_pre_hook(_inward)

    def forward(self, x: Tensor) -> Tensor:
        """Features of normalized images."""
        out = self.net(pixel_values=x)
        if self.take is FeaturePooling.POOLER:
            return out.pooler_output.flatten(1)
        tokens = out.last_hidden_state
        if self.take is FeaturePooling.FIRST:
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self.patches :].mean(1)], -1)


def _outward(module: Network, state: dict[str, Tensor], prefix: str, _meta: object) -> None:
    """The names of the files in place of the class's own, in the same order."""
    own = {name: state.pop(name) for name in list(state) if name.startswith(f"{prefix}net.")}
    for name, value in own.items():
        state[prefix + module.names[name.removeprefix(f"{prefix}net.")]] = value


def _inward(module: Network, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """The class's own names in place of those of the files."""
    for own, there in module.names.items():
        if prefix + there in state:
            state[f"{prefix}net.{own}"] = state.pop(prefix + there)


def _names_in_files(net: Any) -> dict[str, str]:
    """The class's own name of every tensor to its name in a file that the library writes."""
    own = list(net.state_dict())
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors that are not its own size
        net.save_pretrained(folder, state_dict={name: torch.tensor([float(n)]) for n, name in enumerate(own)})
        written = load_file(Path(folder) / "model.safetensors")
    found = {own[int(value)]: name for name, value in written.items() if value.numel() == 1}
    if found.keys() != set(own) or len(written) != len(own):
        absent = [name for name in own if name not in found]
        raise EffaceError(
            f"This version of transformers writes {type(net).__name__} in another form than it computes with.",
            f"{len(absent)} of {len(own)} tensors are not written one to one: {', '.join(absent[:3])}.",
            "Take another version: 5.24 is known to do.",
        )
    return found


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No progress bars for the writing of a few stand-ins."""
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
