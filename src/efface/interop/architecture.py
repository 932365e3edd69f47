"""Guess the architecture of a network from the names and shapes of its weights, and note what they do not show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from efface.data.preprocessing_files import IMAGENET, OPENAI
from efface.errors import EffaceError
from efface.interop.checkpoint_file import ForeignCheckpoint
from efface.interop.layouts import Role
from efface.interop.open_clip_models import count_open_clip_blocks, find_open_clip_names
from efface.interop.preprocessing import read_stated
from efface.interop.sidecars import SIDECARS
from efface.interop.text_towers import describe_vocabulary, read_model_cfg
from efface.training.networks import huggingface
from efface.training.networks.backbones import BLOCKS, Backbone

Shapes = Mapping[str, tuple[int, ...]]
Numbers = tuple[float, ...]
RESNETS: dict[tuple[tuple[int, ...], int, int], str] = {
    ((2, 2, 2, 2), 0, 64): "resnet18",
    ((3, 4, 6, 3), 0, 64): "resnet34",
    ((3, 4, 6, 3), 64, 1): "resnet50",
    ((3, 4, 23, 3), 64, 1): "resnet101",
    ((3, 8, 36, 3), 64, 1): "resnet152",
    ((3, 4, 6, 3), 128, 1): "wide_resnet50_2",
    ((3, 4, 23, 3), 128, 1): "wide_resnet101_2",
    ((3, 4, 6, 3), 128, 32): "resnext50_32x4d",
    ((3, 4, 23, 3), 256, 32): "resnext101_32x8d",
}
"""Blocks per stage, then (0, width) of basic blocks or (inner width, groups) of bottlenecks, to torchvision's name."""
HEADS = {
    192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12,
    1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16,
}  # fmt: skip
"""Width to attention heads in the Vision Transformers of timm, torchvision and DINO; no weight shows heads."""
TORCHVISION_VITS = {
    (768, 12, 16): "vit_b_16", (768, 12, 32): "vit_b_32", (1024, 24, 16): "vit_l_16", (1024, 24, 32): "vit_l_32",
    (1280, 32, 14): "vit_h_14",
}  # fmt: skip
"""Width, blocks and patch to torchvision's name."""
VITS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
"""Width to name of the Vision Transformers whose heads are 64 wide."""
CIFAR = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Mean and standard deviation per channel that solo-learn normalizes with, by data set."""


@dataclass(frozen=True, kw_only=True)
class GuessedArchitecture:
    """The guessed architecture of a foreign network."""

    name: str
    """The architecture in words."""
    backbone: Backbone | None = None
    """The backbone as a setting; ``None`` where no backbone here has these weights."""
    unshown: tuple[str, ...] = ()
    """Settings of the recipe that no weight shows and that must be stated, such as a number of heads."""
    alternatives: tuple[str, ...] = ()
    """Backbones by name that have these shapes."""
    channels: int = 3
    size: tuple[int, int] | None = None
    """Height and width of the images, where the weights determine them."""
    mean: Numbers | None = None
    """Subtracted from images in [0, 1], per channel; ``None`` where it is not known."""
    std: Numbers | None = None
    """Standard deviation per channel, by which images are divided."""
    reversed_colors: bool = False
    """Whether the network is given blue, green, red."""
    notes: tuple[str, ...] = ()
    """What was assumed because no weight shows it."""

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary that can be written as JSON."""
        backbone = None if self.backbone is None else vars(self.backbone)
        return vars(self) | {
            "backbone": backbone,
            "notes": list(self.notes),
            "unshown": list(self.unshown),
            "alternatives": list(self.alternatives),
        }


def guess_architecture(foreign: ForeignCheckpoint) -> GuessedArchitecture:
    """Guess the architecture of a file's backbone.

    The library's own configuration is used where the file has one. Otherwise the names and shapes of the weights tell,
    and ``notes`` say what was assumed because no weight shows it.

    Example:
        >>> guess_architecture(read_foreign(Path("resnet18.pth"))).backbone
        Backbone(name='torchvision:resnet18', ...)

    """
    try:
        return _guess(foreign)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        stated = [name for name in foreign.meta if name in SIDECARS]
        if not stated:
            raise
        raise EffaceError(
            f"{', '.join(stated)} beside {foreign.path} cannot be understood.",
            f"Its values are not of the kind that its library writes: {error}.",
            "Fetch it again, or remove it and state its settings.",
        ) from error


def _guess(foreign: ForeignCheckpoint) -> GuessedArchitecture:
    weights = foreign.part(Role.BACKBONE)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    channels = next((shape[1] for shape in shapes.values() if len(shape) == 4), 3)
    mean, std, notes = find_normalization(foreign, channels)
    stated = read_stated(foreign)
    common: dict[str, Any] = {"mean": mean, "std": std}
    common |= {"reversed_colors": stated is not None and stated.reversed_colors}
    for guess in (_guess_transformers, *BY_SHAPES, _guess_by_name):
        try:
            found = guess(shapes, foreign)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            if guess not in BY_SHAPES or (guess is _guess_open_clip and foreign.meta.keys() & set(SIDECARS)):
                raise
            lacking = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            notes = (f"it has the names of {BY_SHAPES[guess]}, but its weights are none: {lacking}", *notes)
            continue
        if found is not None:
            return replace(found, **common, notes=(*found.notes, *notes))
    name = "unknown" if foreign.layout.name == "plain" else f"unknown, in the layout of {foreign.layout.name}"
    return GuessedArchitecture(
        name=name, channels=channels, **common, notes=("name the network: --set recipe.backbone.name=timm:NAME", *notes)
    )


def find_normalization(
    foreign: ForeignCheckpoint, channels: int
) -> tuple[Numbers | None, Numbers | None, tuple[str, ...]]:
    """Find the normalization that the file states, or that its library uses by default.

    Returns:
        Mean and standard deviation per channel (``None`` where they are not known), and notes that say where they
        come from.

    """
    meta = foreign.meta
    buffers = foreign.part(Role.BUFFERS)
    if {"mean", "std"} <= buffers.keys():
        mean, std = _numbers(buffers["mean"]), _numbers(buffers["std"])
        if foreign.layout.name == "efface":
            return mean, std, ()
        bytes_ = max(std) > 2  # of pixels from 0 to 255; the numbers of images in [0, 1] are below 1
        scaled = [tuple(number / 255 for number in row) if bytes_ else row for row in (mean, std)]
        return (*scaled, ("normalization as the file's own layer has it",))  # pyright: ignore[reportReturnType]
    stated = read_stated(foreign)
    if stated is not None and stated.mean and stated.std:
        mean, std = (_spread(values, channels) for values in (stated.mean, stated.std))
        if mean and std:
            return mean, std, (f"normalization as its {stated.source} states",)
    dataset = str(_read_args(meta, "data", "dataset") or _read_args(meta, "dataset") or "").lower()
    if foreign.layout.name == "solo" and dataset in CIFAR:
        return (*CIFAR[dataset], (f"normalization as solo-learn has it for {dataset}",))
    if foreign.layout.name in ("open_clip", "transformers:clip"):
        return (*OPENAI, ("normalization assumed: CLIP's mean and standard deviation",))
    if channels == 3:
        return (*IMAGENET, ("normalization assumed: ImageNet's mean and standard deviation",))
    return None, None, ("normalization unknown: set recipe.mean and recipe.std",)


def _spread(values: Numbers, channels: int) -> Numbers | None:
    """Numbers for each channel; None if there are others than channels, and they differ."""
    return values if len(values) == channels else values[:1] * channels if len(set(values)) == 1 else None


def _numbers(value: Tensor) -> Numbers:
    return tuple(float(number) for number in value.flatten())


def _read_args(meta: Mapping[str, Any], *keys: str) -> Any:
    """Return a nested setting of ``args.json``; ``None`` if it is not there."""
    value: Any = meta.get("args.json")
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _guess_transformers(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    """Read ``config.json``, for the model types that are built with the library's own classes."""
    kind = foreign.layout.name.removeprefix("transformers:")
    config: Any = foreign.meta.get("config.json")
    if kind == "clip":
        kind = huggingface.CLIP_VISION
        config = {**(config.get("vision_config") or {}), "model_type": kind}
    if kind == foreign.layout.name or kind not in huggingface.SUPPORTED_MODEL_TYPES:
        return None
    head = foreign.part(Role.HEAD).get("weight")
    options = huggingface.read_options(config, list(shapes), None if head is None else head.shape[1])
    channels = int(config.get("num_channels", 3))
    fixed = not {"embeddings.position_embeddings", "embeddings.position_embedding.weight"}.isdisjoint(shapes)
    side = config.get("image_size", 224)
    size = (side, side) if isinstance(side, int) else tuple(side)
    return GuessedArchitecture(
        name=f"{kind}, as transformers builds it",
        backbone=Backbone(name=f"hf:{kind}", options=options),
        channels=channels,
        size=size if fixed else None,
        notes=(
            f"features: {huggingface.FeaturePooling(options[huggingface.TAKE]).value}, as its own classes have them",
            *describe_vocabulary(foreign),
        ),
    )


def _guess_open_clip(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    """Guess a Vision Transformer of open_clip from its configuration, or else from its shapes."""
    if foreign.layout.name != "open_clip" or "class_embedding" not in shapes or "conv1.weight" not in shapes:
        return None
    width, channels, patch, _ = shapes["conv1.weight"]
    side = math.isqrt(shapes["positional_embedding"][0] - 1) * patch
    stated = read_model_cfg(foreign)
    options: dict[str, Any] = dict(stated.get("vision_cfg") or {})
    depth, hidden = count_open_clip_blocks(shapes), shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    source, unshown, names = "its configuration", (), ()
    if not options:
        source = "shapes alone: GELU is assumed (quick_gelu: true for OpenAI's own weights)"
        unshown = ("backbone.options.head_width",)
        unshown += ("objective.text.options.heads",) if foreign.part(Role.TEXT) else ()
        text = {name: tuple(value.shape) for name, value in foreign.part(Role.TEXT).items()}
        names, ambiguous = find_open_clip_names(shapes, text)
        unshown += tuple(f"{path.rpartition('.')[0]}.quick_gelu" for path in unshown) if ambiguous else ()
        options = {"width": width, "layers": depth, "patch_size": patch, "mlp_ratio": hidden / width}
    options |= {"image_size": side, **({"quick_gelu": True} if stated.get("quick_gelu") else {})}
    return GuessedArchitecture(
        name=f"open_clip's Vision Transformer, {depth} blocks of {width}, patches of {patch}x{patch}, images of {side}",
        backbone=Backbone(name="open_clip:custom", options=options),
        channels=channels,
        size=(side, side),
        unshown=unshown,
        alternatives=names,
        notes=(
            f"image and text tower from {source}",
            *([f"no weight shows, so state: recipe.{', recipe.'.join(unshown)}"] if unshown else []),
            *([f"known networks of these shapes: {', '.join(names)}"] if names else []),
        ),
    )


def _guess_resnet(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    if "conv1.weight" not in shapes or "layer1.0.conv1.weight" not in shapes:
        return None
    width, channels, kernel, _ = shapes["conv1.weight"]
    found = [re.match(r"layer(\d+)\.(\d+)\.conv1\.weight", name) for name in shapes]
    steps = [(int(m[1]), int(m[2])) for m in found if m]
    blocks = tuple(1 + max(b for s, b in steps if s == stage) for stage in sorted({s for s, _ in steps}))
    inner, grouped = shapes["layer1.0.conv1.weight"][0], shapes["layer1.0.conv2.weight"]
    deep = "layer1.0.conv3.weight" in shapes
    name = RESNETS.get((blocks, inner, grouped[0] // grouped[1]) if deep else (blocks, 0, width))
    description = f"a ResNet with {kernel}x{kernel} stem, {'-'.join(map(str, blocks))} "
    description += f"{'bottlenecks' if deep else 'basic blocks'}, {width} channels"
    if name and kernel == 7:
        return GuessedArchitecture(name=description, backbone=Backbone(name=f"torchvision:{name}"), channels=channels)
    if kernel != 3:
        return GuessedArchitecture(name=description, channels=channels)
    padding = foreign.layout.stem_padding or 1
    stride = Backbone().stride if foreign.layout.name == "efface" else 1
    note = f"stem assumed: stride {stride}, padding {padding}, no max-pool (shapes do not show them)"
    small = next((key for key, value in BLOCKS.items() if value == blocks), None)
    if small and not deep:
        options: dict[str, Any] = {"padding": padding} if padding != 1 else {}
        options |= {} if foreign.layout.stem_relu else {"stem_relu": False}
        backbone = Backbone(name=small, width=width, stride=stride, options=options)
        return GuessedArchitecture(name=description, backbone=backbone, channels=channels, notes=(note,))
    backbone = Backbone(name=f"torchvision:{name}", options={"small_stem": padding}) if name else None
    return GuessedArchitecture(name=description, backbone=backbone, channels=channels, notes=(note,))


def _guess_vit(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    if "patch_embed.proj.weight" not in shapes or "blocks.0.attn.qkv.weight" not in shapes:
        return None
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depth = 1 + max(int(m[1]) for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name)))
    tokens = shapes["pos_embed"][1] if "pos_embed" in shapes else 0
    registers = shapes.get("reg_token", (0, 0))[1]
    prefix = ("cls_token" in shapes) + registers
    side = next((math.isqrt(n) for n in (tokens - prefix, tokens) if n > 0 and math.isqrt(n) ** 2 == n), 0)
    inside = math.isqrt(tokens - prefix) ** 2 == tokens - prefix if tokens > prefix else False
    heads, note, unshown = _guess_heads(width, foreign)
    options: dict[str, Any] = {
        "img_size": side * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
    }
    ratio = shapes["blocks.0.mlp.fc1.weight"][0] / width if "blocks.0.mlp.fc1.weight" in shapes else 4.0
    options |= {"mlp_ratio": ratio} if ratio != 4 else {}
    options |= {"qkv_bias": False} if "blocks.0.attn.qkv.bias" not in shapes else {}
    options |= {"init_values": 1e-5} if "blocks.0.ls1.gamma" in shapes else {}
    options |= {"global_pool": "avg"} if "fc_norm.weight" in shapes else {}
    options |= {"class_token": False, "global_pool": "avg"} if "cls_token" not in shapes else {}
    options |= {"reg_tokens": registers} if registers else {}
    options |= {"no_embed_class": True} if prefix and not inside else {}
    description = (
        f"a Vision Transformer, {depth} blocks of {width}, patches of {patch}x{patch}, images of {side * patch}"
    )
    if not side:
        return GuessedArchitecture(name=description, channels=channels, notes=("its position embedding is not square",))
    name = f"timm:vit_{VITS.get(width, 'tiny')}_patch16_224"
    size = (side * patch, side * patch)
    backbone = Backbone(name=name, options=options)
    return GuessedArchitecture(
        name=description, backbone=backbone, unshown=unshown, channels=channels, size=size, notes=(note,)
    )


def _guess_torchvision_vit(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    if "conv_proj.weight" not in shapes or "encoder.pos_embedding" not in shapes:
        return None
    width, channels, patch, _ = shapes["conv_proj.weight"]
    depth = len([name for name in shapes if re.fullmatch(r"encoder\.layers\.encoder_layer_\d+\.ln_1\.weight", name)])
    side = math.isqrt(shapes["encoder.pos_embedding"][1] - 1) * patch
    name = TORCHVISION_VITS.get((width, depth, patch))
    description = (
        f"torchvision's Vision Transformer, {depth} blocks of {width}, patches of {patch}x{patch}, images of {side}"
    )
    backbone = Backbone(name=f"torchvision:{name}", options={"image_size": side}) if name else None
    return GuessedArchitecture(name=description, backbone=backbone, channels=channels, size=(side, side))


def _guess_heads(width: int, foreign: ForeignCheckpoint) -> tuple[int, str, tuple[str, ...]]:
    """Return the number of attention heads, a note, and the setting to state for a width that no known network has."""
    config: Any = foreign.meta.get("config.json") or {}
    stated = (config.get("model_args") or {}).get("num_heads")
    if isinstance(stated, int):
        return stated, "number of heads as its configuration states", ()
    heads = HEADS.get(width)
    if heads is None:
        heads = max(1, width // 64)
        note = "no weight shows the number of attention heads: set recipe.backbone.options.num_heads"
        return heads, note, ("backbone.options.num_heads",)
    return heads, f"{heads} attention heads assumed, as in known networks of width {width} (no weight shows it)", ()


def _guess_by_name(shapes: Shapes, foreign: ForeignCheckpoint) -> GuessedArchitecture | None:
    """Take the name that the file states, for networks of timm and torchvision that are not known by their shapes."""
    meta, config = foreign.meta, foreign.meta.get("config.json") or {}
    settings: Any = meta.get("args") if isinstance(meta.get("args"), Mapping) else {}
    word = config.get("architecture") or meta.get("arch") or settings.get("model") or settings.get("arch")
    if not isinstance(word, str) or foreign.layout.name.startswith("transformers"):
        return None
    channels = next((shape[1] for shape in shapes.values() if len(shape) == 4), 3)
    library = "timm" if "architecture" in config or settings.get("model") else "torchvision"
    note = "the name is the file's own; no shape was compared yet"
    backbone = Backbone(name=f"{library}:{word}")
    return GuessedArchitecture(
        name=f"{word}, as the file calls it", backbone=backbone, channels=channels, notes=(note,)
    )


BY_SHAPES = {
    _guess_open_clip: "an open_clip model",
    _guess_resnet: "a ResNet",
    _guess_vit: "a Vision Transformer of timm",
    _guess_torchvision_vit: "a Vision Transformer of torchvision",
}
"""Guesses from names and shapes (of open_clip also from its configuration).

A damaged file may have some of the names, or other shapes under them."""
