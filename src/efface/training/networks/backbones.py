"""Backbones: untrained networks from images [B, C, H, W] to features [B, dim], built from a name and a few numbers.

``resnet8``, ``resnet10``, ``resnet18``  ResNets for small images (3x3 stem, no max-pool), of any width
``timm:NAME``, ``torchvision:NAME``      any of their models, without its classifier
``hf:KIND``                              ViT, DeiT, DINOv2 and ConvNeXt of transformers (extra ``hf``)
``open_clip:NAME``                       the image tower of any of its models, without projection (extra ``clip``)
``python:PACKAGE:FUNCTION``              what the user's own function returns; only if the user names it in this process

All start from random weights: nothing is downloaded. They are drawn from torch's global generator, as in torch's own
layers; fork and seed it around :meth:`Backbone.build`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.config import Settings
from efface.errors import EffaceError, suggest_name, unknown_name_error
from efface.schema import LayerWidth

BLOCKS = {"resnet8": (1, 1, 1), "resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2)}
"""Basic blocks per stage; each stage after the first halves the image and doubles the width."""
SMALL_OPTIONS = ("zero_init", "padding", "stem_relu")
"""Options of the small ResNets."""


@dataclass(frozen=True, kw_only=True)
class Backbone(Settings):
    """Settings of the network that turns images into features.

    Example:
        >>> network = Backbone(name="resnet18", width=64).build(channels=3, size=(32, 32))

    """

    name: str = "resnet8"
    """``resnet8``, ``resnet10``, ``resnet18``, ``timm:NAME``, ``torchvision:NAME``, ``open_clip:NAME``, ``hf:KIND``."""
    width: LayerWidth = 32
    """Channels of the first stage (small ResNets only); there are width x 2^(stages - 1) features."""
    stride: int = 2
    """Stride of the 3x3 stem, 1 or 2 (small ResNets only); 2 is four times cheaper."""
    options: dict[str, Any] = field(default_factory=dict)
    """Small ResNets: ``zero_init``, and the stem's ``padding`` and ``stem_relu``. timm, torchvision: arguments of the
    model (``img_size`` ...); torchvision's ResNets also ``small_stem``: a 3x3 stem with that padding, without
    max-pool. ``hf``: entries of ``config.json``, and ``take``: ``pooler``, ``first`` or ``first_and_mean``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride not in (1, 2):
            raise EffaceError(f"backbone.stride cannot be {self.stride}.", "The stride of the stem is 1 or 2 pixels.")

    def build(self, channels: int, size: tuple[int, int]) -> nn.Module:
        """Build an untrained network.

        Args:
            channels: Channels of the images.
            size: Height and width of the images.

        Returns:
            The network; its attribute ``dim`` is the number of features.

        Raises:
            EffaceError: If the name or an option is unknown, or if the network cannot process a pair of such images.

        """
        library, colon, model = self.name.partition(":")
        if not colon:
            network, label = self._build_small_resnet(channels), self.name
        elif library in LIBRARIES:
            network, label = LIBRARIES[library](model, channels, size, self.options), f"{library}'s {model}"
        else:
            raise unknown_name_error("backbone library", library, LIBRARIES)
        network.dim = _count_features(network, channels, size, label)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        return network

    def _build_small_resnet(self, channels: int) -> ResNet:
        if self.name not in BLOCKS:
            raise EffaceError(
                f"There is no backbone called '{self.name}'.{suggest_name(self.name, BLOCKS)}",
                f"Known: {', '.join(BLOCKS)}, timm:NAME, torchvision:NAME, open_clip:NAME (such as timm:resnet18).",
            )
        unknown = [name for name in self.options if name not in SMALL_OPTIONS]
        if unknown:
            raise EffaceError(
                f"{self.name} has no option '{unknown[0]}'.{suggest_name(unknown[0], SMALL_OPTIONS)}",
                f"Its options are {', '.join(SMALL_OPTIONS)}; width and stride are settings of the backbone.",
            )
        zero_init, padding = bool(self.options.get("zero_init", False)), int(self.options.get("padding", 1))
        network = ResNet(BLOCKS[self.name], channels, self.width, self.stride, zero_init, padding)
        network.stem_relu = bool(self.options.get("stem_relu", True))
        return network


class ResNet(nn.Module):
    """A ResNet of basic blocks for small images: 3x3 stem, no max-pool, global average pool.

    Weights have torchvision's names: ``resnet18`` of width 64 is torchvision's with another stem and without ``fc``.

    Source      He et al., Deep Residual Learning for Image Recognition, 2015, arXiv 1512.03385.
    Departures  a stem for small images, as in SimCLR on CIFAR-10; optionally with stride 2.
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
        """Initialize the network.

        Args:
            blocks: Basic blocks per stage.
            channels: Channels of the images.
            width: Channels of the first stage.
            stride: Stride of the stem.
            zero_init: Initialize the last normalization of each block to 0, so that the block starts as its shortcut.
            padding: Padding of the stem; 2 in solo-learn's stem for CIFAR.

        """
        super().__init__()
        self.stem_relu = True
        """Whether a ReLU follows the stem; lightly's ResNet loses it when its children are put into a Sequential."""
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
        """Compute features [B, dim] of images [B, C, H, W]."""
        x = self.bn1(self.conv1(x))
        x = F.relu(x, inplace=True) if self.stem_relu else x
        for layer in self.layers:
            x = getattr(self, layer)(x)
        return x.mean((2, 3))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(before, after, 3, stride), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = _conv(after, after, 3, 1), nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, before, H, W] to [B, after, H / stride, W / stride]."""
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
        raise _unknown_model_error("timm", name, known)
    _refuse_reserved(
        f"timm:{name}", options, ("pretrained", "checkpoint_path", "num_classes", "in_chans", "features_only")
    )
    with _clear_errors(f"timm:{name}", options):
        made = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **options)
    embed = getattr(made, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if isinstance(patch, tuple) and any(pixels % step for pixels, step in zip(size, patch, strict=True)):
        raise EffaceError(
            f"timm:{name} cuts patches of {patch[0]}x{patch[1]}, which do not fill {size[0]}x{size[1]}.",
            "Pixels left over at the border would be ignored.",
            f"Set backbone.options to {_suggest_options(size)}.",
        )
    return made


def _torchvision(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from torchvision import models  # slow to import, rarely needed

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown_model_error("torchvision", name, known)
    _refuse_reserved(f"torchvision:{name}", options, ("weights", "num_classes"))
    arguments = {key: value for key, value in options.items() if key != "small_stem"}
    with _clear_errors(f"torchvision:{name}", options):
        made = models.get_model(name, weights=None, **arguments)
        if "small_stem" in options:
            if not isinstance(made, models.ResNet):
                raise TypeError("small_stem is an option of ResNets only")
            made.conv1 = _stem(3, made.conv1.out_channels, 1, int(options["small_stem"]))
            nn.init.kaiming_normal_(made.conv1.weight, mode="fan_out", nonlinearity="relu")
            made.set_submodule("maxpool", nn.Identity())
    linear = [where for where, module in made.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [where for where, module in made.named_modules() if isinstance(module, nn.Conv2d)]
    if not linear:
        raise EffaceError(
            f"torchvision:{name} does not end in a linear layer, so its classifier cannot be removed.",
            remedy="Use another model, such as torchvision:resnet18.",
        )
    made.set_submodule(linear[-1], nn.Identity())
    first = made.get_submodule(convolutions[0])
    if isinstance(first, nn.Conv2d) and first.in_channels != channels:
        made.set_submodule(convolutions[0], _change_channels(first, channels))
    return made


def _hf(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from efface.training.networks import huggingface

    with _clear_errors(f"hf:{name}", options):
        return huggingface.build_transformers_backbone(name, channels, size, options)


def _open_clip(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from efface.training.networks.open_clip import build_image_tower  # an optional dependency, slow to import

    return build_image_tower(name, channels, size, options)


def _own(name: str, channels: int, size: tuple[int, int], options: Mapping[str, Any]) -> nn.Module:
    from efface.training.networks.own_module import build_own_backbone  # runs code that the user named

    return build_own_backbone(name, channels, size, options)


LIBRARIES = {"timm": _timm, "torchvision": _torchvision, "open_clip": _open_clip, "hf": _hf, "python": _own}
"""Prefix of a name to the function that builds the model."""


def _change_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Build a new convolution like ``conv`` for another number of input channels."""
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    new = nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)  # pyright: ignore
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new


def _unknown_model_error(library: str, name: str, known: Sequence[str]) -> EffaceError:
    listing = {"timm": "timm.list_models()", "torchvision": "torchvision.models.list_models()"}[library]
    return EffaceError(
        f"{library} has no model called '{name}'.{suggest_name(name, known)}",
        f"It has {len(known)} others, such as {known[0]}.",
        f"See them all with `{listing}` in Python.",
    )


def _refuse_reserved(name: str, options: Mapping[str, Any], ours: Sequence[str]) -> None:
    for key in options:
        if key in ours:
            raise EffaceError(
                f"The option '{key}' of {name} cannot be set.",
                "Backbones start untrained, without a classifier, with the channels of the images.",
                f"Remove backbone.options.{key}; to use trained weights, load a checkpoint.",
            )


@contextmanager
def _clear_errors(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Turn errors of a library for wrong options into one that names the model and the options."""
    try:
        yield
    except CONSTRUCTION_ERRORS as error:
        shown = ", ".join(f"{key}: {value}" for key, value in options.items()) or "none"
        raise EffaceError(
            f"{name} cannot be built with these options: {shown}.",
            f"Its error: {str(error).strip() or type(error).__name__}",
            "Correct backbone.options.",
        ) from error


@torch.no_grad()
def _count_features(network: nn.Module, channels: int, size: tuple[int, int], name: str) -> int:
    """Count the features by trying a pair of black images; raise an error if the network cannot process them."""
    network.eval()
    try:
        features = network(torch.zeros(2, channels, *size))
    except CONSTRUCTION_ERRORS as error:
        raise EffaceError(
            f"{name} cannot process images of {channels}x{size[0]}x{size[1]}.",
            f"Its error: {str(error).strip() or type(error).__name__}",
            f"A transformer needs to know the image size: set backbone.options to {_suggest_options(size)}. "
            "A deep convolutional network may need larger images: set data.size.",
        ) from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise EffaceError(
            f"{name} does not return one row of features per image.",
            f"For two images it returns {shown}.",
            "Use a model that pools its features.",
        )
    network.train()
    return features.shape[1]


def _suggest_options(size: tuple[int, int]) -> str:
    """Suggest options of a transformer that fit images of this size, as written in YAML."""
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
"""What libraries raise for impossible options and sizes."""
