"""Backbones: a name and a few numbers -> a fresh network, images [B, C, H, W] -> features [B, dim].

``resnet8``, ``resnet10``, ``resnet18``  ResNets for small images (3x3 stem, no max-pool), of any width
``timm:NAME``, ``torchvision:NAME``      any of their models without its classifier, untrained
``hf:KIND``                              ViT, DINOv2 and their like as transformers builds them, untrained
``open_clip:NAME``                       the image tower of any of its models without its projection (extra ``clip``)

Every one starts from random weights: nothing is downloaded. Randomness is torch's global generator, as in
every layer's own initialization; fork and seed it around :meth:`Backbone.build`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import EffaceError, suggest_name, unknown_name_error

BLOCKS = {"resnet8": (1, 1, 1), "resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}
"""Basic blocks in each stage; every stage after the first halves the image and doubles the width."""
SMALL_OPTIONS = ("zero_init", "padding", "stem_relu")
"""Options of the small ResNets."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Which network turns images into features."""

    name: str = "resnet8"
    """``resnet8``, ``resnet10``, ``resnet18``, ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``, ``hf:KIND``."""
    width: int = 32
    """Channels of the first stage (the ResNets of efface only); the features have width x 2^(stages - 1)."""
    stride: int = 2
    """Stride of the 3x3 stem, 1 or 2 (the ResNets of efface only); 2 is four times cheaper."""
    options: dict[str, Any] = field(default_factory=dict)
    """``zero_init``, the stem's ``padding`` and whether a ReLU follows it, ``stem_relu`` (small ResNets), or what the
    model of timm or torchvision takes (``img_size`` ...); for torchvision's ResNets also ``small_stem``: 3x3 with that
    padding, and no max-pool; for ``hf`` the entries of its ``config.json``, and ``take``: ``pooler``, ``first`` or
    ``first_and_mean``."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.width != int(self.width):
            raise EffaceError(f"backbone.width cannot be {self.width}.", "It counts channels: 1, 2, 3 ...")
        if self.stride not in (1, 2):
            raise EffaceError(f"backbone.stride cannot be {self.stride}.", "The stem moves by 1 or 2 pixels.")

    def build(self, channels: int, size: tuple[int, int]) -> nn.Module:
        """A fresh network for images of ``channels`` x ``size`` (height, width); ``dim`` counts its features.

        Raises for names, options and image sizes that it cannot have: a pair of images is tried out.
        """
        library, colon, model = self.name.partition(":")
        if not colon:
            made, label = self._small(channels), self.name
        elif library in LIBRARIES:
            made, label = LIBRARIES[library](model, channels, size, self.options), f"{library}'s {model}"
        else:
            raise unknown_name_error("backbone library", library, LIBRARIES)
        made.dim = _dim(made, channels, size, label)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        return made

    def _small(self, channels: int) -> ResNet:
        if self.name not in BLOCKS:
            raise EffaceError(
                f"There is no backbone called '{self.name}'.{suggest_name(self.name, BLOCKS)}",
                f"Known: {', '.join(BLOCKS)}, timm:NAME, torchvision:NAME, open_clip:NAME (such as timm:resnet18).",
            )
        wrong = [name for name in self.options if name not in SMALL_OPTIONS]
        if wrong:
            raise EffaceError(
                f"{self.name} has no option '{wrong[0]}'.{suggest_name(wrong[0], SMALL_OPTIONS)}",
                f"Its options are {', '.join(SMALL_OPTIONS)}; width and stride are settings of the backbone itself.",
            )
        zero_init, padding = bool(self.options.get("zero_init", False)), int(self.options.get("padding", 1))
        made = ResNet(BLOCKS[self.name], channels, self.width, self.stride, zero_init, padding)
        made.stem_relu = bool(self.options.get("stem_relu", True))
        return made


class ResNet(nn.Module):
    """A ResNet of basic blocks for small images: 3x3 stem, no max-pool, global average pool.

    Weights bear torchvision's names: ``resnet18`` of width 64 is its own with another stem and no ``fc``.

    Source      He et al., Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385.
    Departures  the stem for small images, as SimCLR has it on CIFAR-10; optionally with stride 2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: int,
        width: int,
        stride: int,
        zero_init: bool = False,
        padding: int = 1,
    ) -> None:
        """``zero_init``: start the last normalization of every block at 0: the block is its shortcut.

        ``padding``: of the stem; solo-learn's for CIFAR has 2.
        """
        super().__init__()
        self.stem_relu = True
        """Whether a ReLU follows the stem; lightly's own ResNet loses it when its children are put in a row."""
        self.conv1, self.bn1 = _stem(channels, width, stride, padding), nn.BatchNorm2d(width)
        self.layers = [f"layer{stage + 1}" for stage in range(len(blocks))]
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            steps = [1 if stage == 0 or number else 2 for number in range(count)]
            layer = [Block(before if number == 0 else after, after, step) for number, step in enumerate(steps)]
            self.add_module(self.layers[stage], nn.Sequential(*layer))
            before = after
        self.dim = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Block) and zero_init:
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, dim] of images [B, C, H, W]."""
        x = self.bn1(self.conv1(x))
        x = F.relu(x, inplace=True) if self.stem_relu else x
        for layer in self.layers:
            x = getattr(self, layer)(x)
        return x.mean((2, 3))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, 3, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv(after, after, 3, 1), nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


def _stem(channels: int, width: int, stride: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=padding, bias=False)


def _conv(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)


def _timm(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    import timm  # slow to import, rarely needed

    known = timm.list_models()
    if name not in known:
        raise _no_model("timm", name, known)
    _reserved(f"timm:{name}", options, ("pretrained", "checkpoint_path", "num_classes", "in_chans", "features_only"))
    with _said_clearly(f"timm:{name}", options):
        made = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    embed = getattr(made, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if isinstance(patch, tuple) and any(pixels % step for pixels, step in zip(size, patch, strict=True)):
        raise EffaceError(
            f"timm:{name} cuts patches of {patch[0]}x{patch[1]}, which do not fill {size[0]}x{size[1]}.",
            "What is left over at the border would never be looked at.",
            f"Set backbone.options to {_fitting(size)}.",
        )
    return made


def _torchvision(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from torchvision import models  # slow to import, rarely needed

    known = models.list_models(module=models)
    if name not in known:
        raise _no_model("torchvision", name, known)
    _reserved(f"torchvision:{name}", options, ("weights", "num_classes"))
    theirs = {key: value for key, value in options.items() if key != "small_stem"}
    with _said_clearly(f"torchvision:{name}", options):
        made = models.get_model(name, weights=None, **theirs)
        if "small_stem" in options:
            if not isinstance(made, models.ResNet):
                raise TypeError("small_stem is an option of ResNets alone")
            made.conv1 = _stem(3, made.conv1.out_channels, 1, int(options["small_stem"]))
            nn.init.kaiming_normal_(made.conv1.weight, mode="fan_out", nonlinearity="relu")
            made.set_submodule("maxpool", nn.Identity())
    linear = [where for where, module in made.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [where for where, module in made.named_modules() if isinstance(module, nn.Conv2d)]
    if not linear:
        raise EffaceError(
            f"torchvision:{name} does not end in a linear layer, so its classifier cannot be taken off.",
            remedy="Take another model, such as torchvision:resnet18.",
        )
    made.set_submodule(linear[-1], nn.Identity())
    first = made.get_submodule(convolutions[0])
    if isinstance(first, nn.Conv2d) and first.in_channels != channels:
        made.set_submodule(convolutions[0], _rechanneled(first, channels))
    return made


def _hf(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from efface.training.networks import huggingface

    with _said_clearly(f"hf:{name}", options):
        return huggingface.build_transformers_backbone(name, channels, size, options)


def _open_clip(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from efface.training.networks.open_clip import build_image_tower  # the extra, slow to import

    return build_image_tower(name, channels, size, options)


LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "open_clip": _open_clip, "hf": _hf}


def _rechanneled(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A fresh convolution like ``conv`` for another number of input channels."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    new = nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)  # pyright: ignore
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _no_model(library: str, name: str, known: Sequence[str]) -> EffaceError:
    listing = {"timm": "timm.list_models()", "torchvision": "torchvision.models.list_models()"}[library]
    return EffaceError(
        f"{library} has no model called '{name}'.{suggest_name(name, known)}",
        f"It has {len(known)} others, such as {known[0]}.",
        f"See them all with `{listing}` in Python.",
    )


def _reserved(name: str, options: Mapping[str, Any], ours: Sequence[str]) -> None:
    for key in options:
        if key in ours:
            raise EffaceError(
                f"The option '{key}' of {name} is not free.",
                "Backbones start untrained, without a classifier, with the channels of the images.",
                f"Remove backbone.options.{key}; trained weights come in as a checkpoint.",
            )


@contextmanager
def _said_clearly(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a library raises for wrong options into one error that names model and options."""
    try:
        yield
    except CONSTRUCTION_ERRORS as error:
        shown = ", ".join(f"{key}: {value}" for key, value in options.items()) or "none"
        raise EffaceError(
            f"{name} cannot be built with these options: {shown}.",
            f"It says: {str(error).strip() or type(error).__name__}",
            "Correct backbone.options.",
        ) from error


@torch.no_grad()
def _dim(network: nn.Module, channels: int, size: tuple[int, int], name: str) -> int:
    """Number of features, from trying out a pair of black images; raises where they do not fit."""
    network.eval()
    try:
        features = network(torch.zeros(2, channels, *size))
    except CONSTRUCTION_ERRORS as error:
        raise EffaceError(
            f"{name} cannot look at images of {channels}x{size[0]}x{size[1]}.",
            f"It says: {str(error).strip() or type(error).__name__}",
            f"A transformer is told its image size: set backbone.options to {_fitting(size)}. "
            "A deep convolutional network may need larger images: set data.size.",
        ) from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise EffaceError(
            f"{name} does not give one row of features per image.", f"For two images it gives {shown}.",
            "Take a model that pools its features.",
        )  # fmt: skip
    network.train()
    return features.shape[1]


def _fitting(size: tuple[int, int]) -> str:
    """Options of a transformer that fit images of this size, as one writes them in YAML."""
    patch = next((step for step in (4, 7, 8, 5, 6, 16) if not size[0] % step and not size[1] % step), 1)
    pixels = size[0] if size[0] == size[1] else list(size)
    return f"{{img_size: {pixels}, patch_size: {patch}}} (or other patches that divide it)"


CONSTRUCTION_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
"""What libraries raise for options and sizes that they cannot have."""
